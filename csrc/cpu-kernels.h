// What the vision tower and cross attention compute on the CPU without ggml: plain functions on plain arrays, one
// thread each, in several versions for several instruction sets. cpu-kernels.cpp picks those that this CPU can run.
//
// The versions are compiled from their own files with their own flags. Nothing but such functions may stand in those
// files: an inline function of the standard library compiled there could be what the linker keeps for everyone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace pyvllama {

// Rows of queries of one head against packed keys and values: out = softmax(scale * (q k^T + key_bias)) v.
// T is float, or uint16_t for bf16. Strides are in elements.
template <typename T>
struct attention_part {
    const T * q;
    size_t q_stride;
    int n_q;                 // at most MAX_QUERIES
    const T * k;             // as pack_keys leaves it
    const T * v;             // as pack_values leaves it
    const float * key_bias;  // [padded(n_k)]: PADDING_BIAS where there is no key
    int n_k;
    int n_embd_head;
    float scale;
    T * out;
    size_t out_stride;
};

constexpr int MAX_QUERIES = 160;        // of one part
constexpr float PADDING_BIAS = -1e30f;  // of a key that is none: its weight is exactly 0
constexpr int MAX_EMBD_HEAD = 128;

template <typename T>
struct attention_kernels {
    int panel;  // keys are padded to a multiple of it
    int align;  // values of a head are padded to a multiple of it
    // One panel: keys [n_embd_head, n <= panel] -> padded_embd * panel elements; missing keys are zero.
    void (*pack_keys)(const T * k, size_t k_stride, int n, int n_embd_head, T * out);
    // The same for values, whose n_embd_head is padded.
    void (*pack_values)(const T * v, size_t v_stride, int n, int n_embd_head, T * out);
    void (*run)(const attention_part<T> & part);

    int padded_keys(int n) const { return (n + panel - 1) / panel * panel; }
    int padded_embd(int n) const { return (n + align - 1) / align * align; }
};

// How numbers are stored: as ggml has these types.
enum class stored { f32, f16, bf16, q8_0 };

constexpr int FEW_KEYS = 1024;  // most keys of a few_part

// A few queries of one head against some keys and values where they lie: one part of softmax(scale * q k^T) v, to be
// put together with others. Nothing is read behind the last key or value.
struct few_part {
    const char * k;   // [n_embd_head, n_keys]
    size_t k_stride;  // in bytes
    stored k_type;
    const char * v;   // [n_keys, n_embd_head]
    size_t v_stride;  // in bytes
    stored v_type;    // not q8_0
    int n_keys;
    int n_embd_head;  // a multiple of 16; with q8_0 of 32
    const float * q;  // [n_embd_head, n_q]
    int n_q;
    float scale;
    // [n_embd_head + 2, n_q]: of each query the sum of values times 2^(score - top), where a score is
    // scale * log2(e) * (q . k); then top, the largest score; then the sum of these weights
    float * out;
};

// F32 throughout.
struct f32_kernels {
    const char * name;
    attention_kernels<float> attention;
    // y = (x - mean) / sqrt(variance + eps) * weight + bias
    void (*layer_norm)(const float * x, const float * weight, const float * bias, int n, float eps, float * y);
    // y = gelu(x + bias), the exact one (erf). Within 3e-7 * |x + bias| of it.
    void (*bias_gelu)(const float * x, const float * bias, int n, float * y);
    // nullptr where there is nothing faster than ggml's products.
    void (*few)(const few_part & part);
};

constexpr int GEMM_PANEL = 64;  // outputs of a packed panel
constexpr int GEMM_ROWS = 96;   // most rows of a product

// bf16 in, F32 sums.
struct bf16_kernels {
    const char * name;
    attention_kernels<uint16_t> attention;
    void (*from_f32)(const float * x, int n, uint16_t * y);  // rounds to nearest, ties to even
    void (*to_f16)(const float * x, int n, uint16_t * y);    // F32 to F16, the same way
    // weights [n_in, n <= 64] -> a panel of 64 * n_in elements; missing ones are zero. n_in is even. Parts of a
    // multiple of 8 inputs, and the last, may be packed one by one.
    void (*pack_weights)(const uint16_t * w, size_t w_stride, int n, int n_in, uint16_t * panel);
    // c [64, n_rows] = panel^T a; a: [n_in, n_rows], n_rows <= GEMM_ROWS
    void (*gemm)(const uint16_t * a, size_t a_stride, int n_rows, int n_in, const uint16_t * panel, float * c);
};

// Either may be missing. Without f32 everything is left to ggml.
struct cpu_kernels {
    const f32_kernels * f32 = nullptr;
    const bf16_kernels * bf16 = nullptr;

    std::string name() const;  // of the table that counts; "ggml" where there is none
};

// What this CPU can run, the fastest first, {} last.
std::vector<cpu_kernels> all_cpu_kernels();

// The fastest, or those that the environment variable PYVLLAMA_CPU_KERNELS names. Throws config_error.
cpu_kernels choose_cpu_kernels();

}  // namespace pyvllama
