// Which row sees what, cut at any ubatch border.
#include <random>

#include "batch-plan.h"
#include "check.h"

using namespace pyvllama;

// The runs of all ubatches of a split, as one group per row of the batch: what must not depend on the split.
static std::vector<int32_t> seen_by_rows(const batch_plan & plan, const std::vector<int> & split) {
    std::vector<int32_t> seen(plan.n_rows(), NO_IMAGE);
    int base = 0;
    for (int n : split) {
        int previous_end = -1;
        for (const row_run & run : plan.runs(base, n)) {
            CHECK(run.n_rows > 0 && run.first > previous_end && run.first + run.n_rows <= n);  // apart from one another
            int covered = 0, group = NO_IMAGE;
            for (const row_segment & s : run.segments) {
                CHECK(s.first == covered && s.n_rows > 0 && s.group != group);  // no holes, no split for nothing
                for (int i = 0; i < s.n_rows; ++i) {
                    seen[base + run.first + s.first + i] = s.group;
                }
                covered += s.n_rows;
                group = s.group;
            }
            CHECK(covered == run.n_rows);
            previous_end = run.first + run.n_rows;
        }
        base += n;
    }
    return seen;
}

int main() {
    {
        const batch_plan empty;
        CHECK(empty.n_rows() == 0 && !empty.sees_images() && empty.runs(0, 10).empty());
    }
    {
        const batch_plan text({ -1, -1, -1 }, 0);
        CHECK(text.n_rows() == 3 && !text.sees_images() && text.runs(0, 3).empty());
    }
    {  // text, an image, text, two groups next to one another, text of another sequence
        const batch_plan plan({ -1, -1, 0, 0, 0, 1, 1, -1, 0 }, 2);
        CHECK(plan.sees_images());
        const std::vector<row_run> expected = { { 2, 5, { { 0, 3, 0 }, { 3, 2, 1 } } }, { 8, 1, { { 0, 1, 0 } } } };
        CHECK(plan.runs(0, 9) == expected);
        const std::vector<row_run> middle = { { 0, 2, { { 0, 1, 0 }, { 1, 1, 1 } } } };  // rows 4 and 5 as a ubatch
        CHECK(plan.runs(4, 2) == middle);
        CHECK(plan.runs(0, 2).empty());
        CHECK(plan.runs(9, 5).empty());
    }
    THROWS(batch_plan({ 0 }, 0), std::invalid_argument, "row 0 names image group 0 of 0");
    THROWS(batch_plan({ -1, -2 }, 1), std::invalid_argument, "row 1");
    std::mt19937 rng(1);
    for (int round = 0; round < 500; ++round) {
        std::vector<int32_t> rows(1 + rng() % 40);
        for (int32_t & r : rows) {
            r = (int32_t) (rng() % 4) - 1;
        }
        const batch_plan plan(rows, 3);
        std::vector<int> split;
        for (int left = (int) rows.size(); left > 0; left -= split.back()) {
            split.push_back(1 + (int) (rng() % left));
        }
        CHECK(seen_by_rows(plan, split) == rows);
    }
    return summary("batch-plan");
}
