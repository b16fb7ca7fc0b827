// The importance of a weight's columns: how large their inputs are over a calibration set. What llama.cpp's
// tools/imatrix collects, for the text model, the cross-attention layers and the vision tower alike.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "ggml-backend.h"

namespace pyvllama {

class importance_collector {
  public:
    struct entry {
        // Per column the sum of the squared inputs. Double: llama-imatrix adds up in F32, which loses the small columns
        // of a large set (after 2^24 rows of equal size nothing is added any more).
        std::vector<double> sums;
        int64_t n_rows = 0;
    };

    // process_output: also of output.weight. As in llama-imatrix, without it that weight is left out: llama.cpp's
    // mixtures keep it at 6 bits or more.
    explicit importance_collector(bool process_output) : process_output_(process_output) {}

    // Is the node a product with a named weight, and its input therefore to be counted?
    bool wants(const ggml_tensor * node) const;

    // Counts the rows of a computed node's input, the first max_rows of them if that is not negative. All rows of
    // batched inputs count alike. Throws backend_error if one holds an infinite number or none.
    void add(const ggml_tensor * node, int64_t max_rows = -1);

    // By the weight's name in its GGUF file. Weights that were never multiplied have no entry.
    const std::map<std::string, entry> & entries() const { return entries_; }

  private:
    const bool process_output_;
    std::map<std::string, entry> entries_;
    std::vector<uint8_t> host_;  // copy of an input on another device
};

// Rows of a graph's matrices that count: the first n of each, or all.
struct row_counter {
    importance_collector * collector = nullptr;  // none: nothing is collected
    int64_t max_rows = -1;
};

}  // namespace pyvllama
