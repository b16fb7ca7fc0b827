// Our own functions as nodes of a ggml graph on the CPU: cut into units that the backend's threads take one by one, so
// that a thread which is held up (by other work on its core) does not hold up the others.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <vector>

#include "ggml.h"

namespace pyvllama {

// In how many cuts of a size, the last one maybe smaller.
inline int n_cuts(int64_t n, int64_t size) {
    return (int) ((n + size - 1) / size);
}

// The nodes use this object while they are computed.
class custom_ops {
  protected:
    explicit custom_ops(ggml_context * ctx) : ctx_(ctx) {}

    // What a node does. run: (node, unit).
    void * add_op(int64_t n_units, std::function<void(const ggml_tensor *, int)> run);
    // ne: two or three sizes; name: what its time counts as
    ggml_tensor * node(const char * name, ggml_type type, std::initializer_list<int64_t> ne,
                       std::vector<ggml_tensor *> args, void * op);
    ggml_tensor * node_inplace(const char * name, ggml_tensor * x, std::vector<ggml_tensor *> args, void * op);

    ggml_context * ctx_;

  private:
    struct op {
        int n_units;
        std::function<void(const ggml_tensor *, int)> run;
        std::atomic<int> next{ 0 }, n_finished{ 0 };
    };
    static void compute(ggml_tensor * dst, int ith, int nth, void * data);

    std::deque<op> ops_;
};

}  // namespace pyvllama
