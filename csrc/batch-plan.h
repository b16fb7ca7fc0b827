// Which token row of a batch sees which images. Pure: no ggml, no device.
//
// A llama_decode may compute a batch in several ubatches; with one KV stream (kv_unified) these are consecutive pieces
// of the batch, in order. So the plan is made for the batch, and cut at ubatch borders as these become known.
#pragma once

#include <cstdint>
#include <vector>

namespace pyvllama {

constexpr int32_t NO_IMAGE = -1;

// Consecutive rows that see the same group of images.
struct row_segment {
    int first;  // row, counted from the start of the run
    int n_rows;
    int group;
    bool operator==(const row_segment & o) const { return first == o.first && n_rows == o.n_rows && group == o.group; }
};

// Consecutive rows that all see some image: computed in one go.
struct row_run {
    int first = 0;  // row, counted from the start of the ubatch
    int n_rows = 0;
    std::vector<row_segment> segments;  // cover the run without holes
    bool operator==(const row_run & o) const {
        return first == o.first && n_rows == o.n_rows && segments == o.segments;
    }
};

class batch_plan {
  public:
    batch_plan() = default;
    // row_group[i]: index of the group of images that row i sees, or NO_IMAGE (the row passes unchanged).
    // Throws std::invalid_argument if an index is not in [-1, n_groups).
    batch_plan(std::vector<int32_t> row_group, int n_groups);

    int n_rows() const { return (int) row_group_.size(); }
    bool sees_images() const { return sees_images_; }

    // The runs within rows [first, first + n_rows) of the batch: one ubatch. run becomes the one behind what it was; {}
    // before the first. False: there is no more. Allocates nothing once run has had as many segments.
    bool next_run(int first, int n_rows, row_run & run) const;
    std::vector<row_run> runs(int first, int n_rows) const;

  private:
    std::vector<int32_t> row_group_;
    bool sees_images_ = false;
};

}  // namespace pyvllama
