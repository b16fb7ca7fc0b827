// Cross attention of many rows on the CPU, by our own kernels (cpu-kernels.h) instead of ggml's: scores exist for a few
// keys at a time, rows and heads are taken as they lie, several images need no copy. F32 throughout, whatever the type
// of keys and values.
#pragma once

#include <deque>
#include <vector>

#include "cpu-kernels.h"
#include "custom-ops.h"
#include "image-states.h"

namespace pyvllama {

class cross_attn_cpu : custom_ops {
  public:
    cross_attn_cpu(ggml_context * ctx, const f32_kernels & kernels) : custom_ops(ctx), kernels_(kernels) {}

    // Can it do heads of so many numbers?
    static bool takes(int64_t n_embd_head) { return n_embd_head <= MAX_EMBD_HEAD; }

    // Does scores() take these keys?
    bool takes_keys(const ggml_tensor * k) const;

    // k^T q of few rows, where what counts is that keys are read once and fast: ggml's product of F16 takes one key and
    // one query at a time. k [n_embd_head, n_tokens, n_kv] F16, q [n_embd_head, n, n_kv] F32, contiguous ->
    // [n_tokens, n, n_kv] F32
    ggml_tensor * scores(ggml_tensor * k, ggml_tensor * q);

    // Rows [first, first + n_rows) of out get what those of q see of the images of one layer, all in attention_form
    // softmax. q [n_embd_head, n_head, all rows] F32, contiguous; out [n_embd_head*n_head, all rows] F32, or nullptr
    // for a new one. Returns out, to be read by what comes after these rows.
    ggml_tensor * attend(ggml_tensor * q, int first, int n_rows, const std::vector<image_states_ptr> & images,
                         size_t j_cross, ggml_tensor * out);

  private:
    ggml_tensor * pack(const std::vector<ggml_tensor *> & parts, bool keys, int first_head, int n_heads);

    const f32_kernels & kernels_;
    std::deque<std::vector<float>> key_bias_;
};

}  // namespace pyvllama
