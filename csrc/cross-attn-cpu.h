// Cross attention on the CPU, by our own kernels (cpu-kernels.h) instead of ggml's: scores exist for a few keys at a
// time, rows and heads are taken as they lie, several images need no copy. F32 throughout, whatever the type of keys
// and values; of many rows in bf16, where the kernels have that and the layer's weights are no more exact.
#pragma once

#include <deque>
#include <vector>

#include "cpu-kernels.h"
#include "custom-ops.h"
#include "image-states.h"

namespace pyvllama {

class cross_attn_cpu : custom_ops {
  public:
    // bf16: may attend() use it?
    cross_attn_cpu(ggml_context * ctx, const cpu_kernels & kernels, bool bf16)
        : custom_ops(ctx), kernels_(*kernels.f32), bf16_(bf16 ? kernels.bf16 : nullptr) {}

    // Can it do heads of so many numbers?
    static bool takes(int64_t n_embd_head) { return n_embd_head <= MAX_EMBD_HEAD; }

    // Can attend_few() do them?
    bool takes_few(int64_t n_embd_head) const { return kernels_.few && n_embd_head % 16 == 0; }

    // From so many rows of a segment on attend() is faster than attend_few(), or than ggml where there is no such
    // thing.
    int min_rows(int64_t n_embd_head) const;

    // Rows [first, first + n_rows) of out get what those of q see of the images of one layer, all in attention_form
    // softmax. q [n_embd_head, n_head, all rows] F32, contiguous; out [n_embd_head*n_head, all rows] F32, or nullptr
    // for a new one. Returns out, to be read by what comes after these rows.
    ggml_tensor * attend(ggml_tensor * q, int first, int n_rows, const std::vector<image_states_ptr> & images,
                         size_t j_cross, ggml_tensor * out);

    // The same for few rows, where what counts is that keys and values are read once and fast: they are not unpacked.
    ggml_tensor * attend_few(ggml_tensor * q, int first, int n_rows, const std::vector<image_states_ptr> & images,
                             size_t j_cross, ggml_tensor * out);

  private:
    bool in_bf16(int64_t n_embd_head) const { return bf16_ && n_embd_head % 2 == 0; }
    template <typename T>
    ggml_tensor * attend_in(const attention_kernels<T> & a, ggml_tensor * q, int first, int n_rows,
                            const std::vector<image_states_ptr> & images, size_t j_cross, ggml_tensor * out);
    template <typename T>
    ggml_tensor * pack(const attention_kernels<T> & a, const std::vector<ggml_tensor *> & parts, bool keys,
                       int first_head, int n_heads);
    // Puts together what attend_few has of n_parts parts.
    ggml_tensor * merge(ggml_tensor * sums, ggml_tensor * q, int first, int n_rows, int n_parts, ggml_tensor * out);

    const f32_kernels & kernels_;
    const bf16_kernels * bf16_;
    std::deque<std::vector<float>> key_bias_;
};

}  // namespace pyvllama
