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

std::vector<row_run> batch_plan::runs(int first, int n_rows) const {
    std::vector<row_run> runs;
    const int end = std::min(first + n_rows, this->n_rows());
    bool open = false;
    for (int r = first; r < end; ++r) {
        const int32_t group = row_group_[r];
        if (group == NO_IMAGE) {
            open = false;
            continue;
        }
        if (!open) {
            runs.push_back({ r - first, 0, {} });
            open = true;
        }
        row_run & run = runs.back();
        if (run.segments.empty() || run.segments.back().group != group) {
            run.segments.push_back({ run.n_rows, 0, group });
        }
        run.segments.back().n_rows++;
        run.n_rows++;
    }
    return runs;
}

}  // namespace pyvllama
