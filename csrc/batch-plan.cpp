#include "batch-plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace pyvllama {

batch_plan::batch_plan(std::vector<int32_t> row_group, int n_groups) : row_group_(std::move(row_group)) {
    for (size_t i = 0; i < row_group_.size(); ++i) {
        if (row_group_[i] < NO_IMAGE || row_group_[i] >= n_groups) {
            throw std::invalid_argument("row " + std::to_string(i) + " names image group " +
                                        std::to_string(row_group_[i]) + " of " + std::to_string(n_groups));
        }
        sees_images_ = sees_images_ || row_group_[i] != NO_IMAGE;
    }
}

bool batch_plan::next_run(int first, int n_rows, row_run & run) const {
    const int end = std::min(n_rows, this->n_rows() - first);
    int r = run.first + run.n_rows;
    while (r < end && row_group_[first + r] == NO_IMAGE) {
        ++r;
    }
    run.first = r;
    run.n_rows = 0;
    run.segments.clear();
    for (; r < end && row_group_[first + r] != NO_IMAGE; ++r, ++run.n_rows) {
        const int32_t group = row_group_[first + r];
        if (run.segments.empty() || run.segments.back().group != group) {
            run.segments.push_back({ run.n_rows, 0, group });
        }
        run.segments.back().n_rows++;
    }
    return run.n_rows > 0;
}

std::vector<row_run> batch_plan::runs(int first, int n_rows) const {
    std::vector<row_run> runs;
    for (row_run run; next_run(first, n_rows, run);) {
        runs.push_back(run);
    }
    return runs;
}

}  // namespace pyvllama
