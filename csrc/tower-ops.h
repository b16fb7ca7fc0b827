// The kernels of cpu-kernels.h as nodes of the vision tower's graph on the CPU.
#pragma once

#include <vector>

#include "cpu-kernels.h"
#include "custom-ops.h"
#include "ggml-cpp.h"
#include "mllama-weights.h"

namespace pyvllama {

// What is done with a product.
struct linear_form {
    ggml_tensor * bias = nullptr;    // [n_out] F32
    ggml_tensor * add_to = nullptr;  // [n_out, n_rows] F32: result = add_to + gate * (product + bias), F32
    float gate = 1.0f;
    bool gelu = false;             // result = gelu(product + bias), BF16
    ggml_tensor * into = nullptr;  // [n_out, n_rows] F32: where product + bias goes, instead of a BF16 result
};

// Which keys a row sees: the first n_real rows all n_rows keys, the others the first n_real.
struct attention_rows {
    int n_real, n_rows;
};

constexpr size_t MAX_STACKED = GGML_MAX_SRC - 2;

class tower_ops : custom_ops {
  public:
    tower_ops(ggml_context * ctx, const cpu_kernels & kernels) : custom_ops(ctx), kernels_(kernels) {}

    // x [n, n_rows] F32 -> F32 or BF16
    ggml_tensor * norm(ggml_tensor * x, const layer_norm & ln, float eps, ggml_type type);
    ggml_tensor * to_bf16(ggml_tensor * x);

    // F32 only
    ggml_tensor * gelu(ggml_tensor * x, ggml_tensor * bias);  // in place
    // x + gate * (y + bias); bias may be nullptr
    ggml_tensor * add(ggml_tensor * x, ggml_tensor * y, ggml_tensor * bias, float gate);
    // The same in place, after another node (or nullptr).
    ggml_tensor * add_in_place(ggml_tensor * x, ggml_tensor * y, ggml_tensor * bias, float gate, ggml_tensor * after);

    // x [n_in, n_rows] BF16, weight [n_in, n_out] of any type (rounded to BF16) -> [n_out, n_rows]
    ggml_tensor * linear(ggml_tensor * x, ggml_tensor * weight, const linear_form & form) {
        return product(x, pack(weight), weight->ne[1], form);
    }
    // The same in two steps, for several products with one weight.
    ggml_tensor * pack(ggml_tensor * weight);
    ggml_tensor * product(ggml_tensor * x, ggml_tensor * panels, int64_t n_out, const linear_form & form);

    // k, v [n_head*n_embd_head, n_rows], q the same or with the n_real rows alone, all F32 or all BF16 -> as q.
    // key_bias: F32 input, see there.
    ggml_tensor * attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, int n_head, ggml_tensor * key_bias,
                            const attention_rows & rows);
    // What key_bias holds where the logarithms of the keys' weights are these ([n_rows]); type: of the keys.
    std::vector<float> key_bias(const std::vector<float> & log_weights, int n_embd_head, const attention_rows & rows,
                                ggml_type type) const;

    // last F32, others (at most MAX_STACKED) BF16, all [n, n_rows] -> [(1 + n_others) * n, n_rows] BF16: last, then the
    // others interleaved: feature i of other j at n + i * n_others + j.
    ggml_tensor * stack(ggml_tensor * last, const std::vector<ggml_tensor *> & others);

  private:
    void * add_sum(ggml_tensor * x, ggml_tensor * y, ggml_tensor * bias, float gate);
    template <typename T>
    ggml_tensor * attention_of(const attention_kernels<T> & kernels, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                               int n_head, ggml_tensor * key_bias, const attention_rows & rows);

    const cpu_kernels kernels_;
};

}  // namespace pyvllama
