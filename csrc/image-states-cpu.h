// Keys and values of an image on the CPU by our own bf16 products (cpu-kernels.h) instead of ggml's: norm of the keys,
// transposition of the values and their rounding are done where a product leaves its sums.
#pragma once

#include "tower-ops.h"

namespace pyvllama {

class image_states_cpu : custom_ops {
  public:
    // states: [n_embd, n_tokens] F32; kernels: with bf16
    image_states_cpu(ggml_context * ctx, const cpu_kernels & kernels, ggml_tensor * states)
        : custom_ops(ctx), kernels_(*kernels.bf16), ops_(ctx, kernels), states_(ops_.to_bf16(states)) {}

    // weight [n_embd, n_embd_head*n_head_kv] of any type (rounded to BF16), norm [n_embd_head] F32
    // -> k [n_embd_head, n_tokens, n_head_kv], contiguous
    ggml_tensor * keys(ggml_tensor * weight, ggml_tensor * norm, float eps, ggml_tensor * k);

    // The same without a norm -> v [n_tokens, n_embd_head, n_head_kv], contiguous
    ggml_tensor * values(ggml_tensor * weight, ggml_tensor * v);

  private:
    // write(first row, rows, head, sums): sums [n_embd_head, rows] of one head
    using write_fn = std::function<void(int, int, int, const float *)>;
    ggml_tensor * product(ggml_tensor * weight, int n_embd_head, ggml_tensor * into, std::vector<ggml_tensor *> args,
                          const write_fn & write);
    void round(ggml_type type, const float * x, int n, void * y) const;

    const bf16_kernels & kernels_;
    tower_ops ops_;
    ggml_tensor * states_;  // [n_embd, n_tokens] BF16
};

}  // namespace pyvllama
