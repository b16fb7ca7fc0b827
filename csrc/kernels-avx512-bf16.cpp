// Products of bf16 matrices on AVX512-BF16: vdpbf16ps adds two products of bf16 to each F32 sum. See cpu-kernels.h for
// what may stand in this file.
//
// Both products of attention and those with weights have one form: a few rows of a times a panel of b, sums in
// registers. A pair of neighbours in a row of a (32 bits) is broadcast, a panel of b holds such pairs side by side.
#include <immintrin.h>

#include "kernels-variants.h"

namespace pyvllama {

namespace {

using vec = __m512;

// Two neighbours, bf16; GCC and Clang let such a type look at memory of another one.
typedef uint32_t pair __attribute__((may_alias, aligned(2)));

inline __m512bh pair_of(const uint16_t * a) {
    return (__m512bh) _mm512_set1_epi32((int) *(const pair *) a);
}

inline __m512bh load(const uint16_t * b) {
    return (__m512bh) _mm512_loadu_si512(b);
}

// acc[r][j] += sum over i of a[r][i] * b[i][j], n even; b has width columns
template <int M, int N>
inline __attribute__((always_inline)) void multiply(vec (&acc)[M][N], const uint16_t * const (&a)[M],
                                                    const uint16_t * b, size_t width, int n) {
    for (int p = 0; p < n / 2; ++p) {
        __m512bh column[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            column[j] = load(b + p * 2 * width + 32 * j);
        }
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) {
            const __m512bh row = pair_of(a[r] + 2 * p);
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j) {
                acc[r][j] = _mm512_dpbf16_ps(acc[r][j], row, column[j]);
            }
        }
    }
}

// ---- products with weights

constexpr int ROWS = 6, COLUMNS = GEMM_PANEL / 16;  // 24 sums, 4 vectors of b, 1 of a: 29 of 32 registers
constexpr int BLOCK = 1280;                         // inputs at once: 160 KiB of a panel and 240 KiB of a stay in L2

void pack_weights(const uint16_t * w, size_t w_stride, int n, int n_in, uint16_t * panel) {
    pair * out = (pair *) panel;
    for (int first = 0; first < n_in / 2; first += 16) {  // a cache line of each row, so that all stays in L1
        const int last = first + 16 < n_in / 2 ? first + 16 : n_in / 2;
        for (int c = 0; c < GEMM_PANEL; ++c) {
            const pair * row = (const pair *) (w + c * w_stride);
            if (c < n) {
                for (int p = first; p < last; ++p) {
                    out[p * GEMM_PANEL + c] = row[p];
                }
            } else {
                for (int p = first; p < last; ++p) {
                    out[p * GEMM_PANEL + c] = 0;
                }
            }
        }
    }
}

void gemm(const uint16_t * a, size_t a_stride, int n_rows, int n_in, const uint16_t * panel, float * c) {
    for (int k = 0; k < n_in; k += BLOCK) {
        const int n = n_in - k < BLOCK ? n_in - k : BLOCK;
        for (int first = 0; first < n_rows; first += ROWS) {
            const uint16_t * rows[ROWS];
            vec acc[ROWS][COLUMNS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {  // the last row again where there are no more
                const int row = first + r < n_rows ? first + r : n_rows - 1;
                rows[r] = a + row * a_stride + k;
#pragma GCC unroll 8
                for (int j = 0; j < COLUMNS; ++j) {
                    acc[r][j] = k == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(c + row * GEMM_PANEL + 16 * j);
                }
            }
            multiply(acc, rows, panel + (size_t) k * GEMM_PANEL, GEMM_PANEL, n);
            for (int r = 0; r < ROWS && first + r < n_rows; ++r) {
#pragma GCC unroll 8
                for (int j = 0; j < COLUMNS; ++j) {
                    _mm512_storeu_ps(c + (first + r) * GEMM_PANEL + 16 * j, acc[r][j]);
                }
            }
        }
    }
}

void from_f32(const float * x, int n, uint16_t * y) {
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        _mm256_storeu_si256((__m256i *) (y + i), (__m256i) _mm512_cvtneps_pbh(_mm512_loadu_ps(x + i)));
    }
    if (i < n) {
        const __mmask16 rest = (__mmask16) ((1u << (n - i)) - 1);
        _mm256_mask_storeu_epi16(y + i, rest, (__m256i) _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(rest, x + i)));
    }
}

void to_f16(const float * x, int n, uint16_t * y) {
    constexpr int NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    int i = 0;
    for (; i + 16 <= n; i += 16) {
        _mm256_storeu_si256((__m256i *) (y + i), _mm512_cvtps_ph(_mm512_loadu_ps(x + i), NEAREST));
    }
    if (i < n) {
        const __mmask16 rest = (__mmask16) ((1u << (n - i)) - 1);
        _mm256_mask_storeu_epi16(y + i, rest, _mm512_cvtps_ph(_mm512_maskz_loadu_ps(rest, x + i), NEAREST));
    }
}

// ---- attention

using element = uint16_t;

constexpr int LANES = 16, GROUP = 5, VECTORS = 5;  // 25 sums, 5 vectors of b, 1 of a
constexpr int PANEL = LANES * VECTORS;
constexpr int PANELS = 6;  // of a block: its keys and values stay in L2
constexpr int STEP = 2;

void pack_keys(const uint16_t * k, size_t k_stride, int n, int n_embd_head, uint16_t * out) {
    pair * pairs = (pair *) out;
    for (int c = 0; c < PANEL; ++c) {
        const pair * row = (const pair *) (k + c * k_stride);
        if (c < n) {
            for (int p = 0; p < n_embd_head / 2; ++p) {
                pairs[p * PANEL + c] = row[p];
            }
        } else {
            for (int p = 0; p < n_embd_head / 2; ++p) {
                pairs[p * PANEL + c] = 0;
            }
        }
    }
}

void pack_values(const uint16_t * v, size_t v_stride, int n, int n_embd_head, uint16_t * out) {
    const int padded = (n_embd_head + 15) / 16 * 16;
    for (int c = 0; c < PANEL; c += 2, out += 2 * padded) {
        const uint16_t * even = v + c * v_stride;
        const int n_even = c < n ? n_embd_head : 0, n_odd = c + 1 < n ? n_embd_head : 0;
        for (int d = 0; d < n_odd; ++d) {
            out[2 * d] = even[d];
            out[2 * d + 1] = even[v_stride + d];
        }
        for (int d = n_odd; d < padded; ++d) {
            out[2 * d] = d < n_even ? even[d] : 0;
            out[2 * d + 1] = 0;
        }
    }
}

// 2^x for x <= 0, within 8e-5 of it: the result is rounded to bf16 anyway, by up to 4e-3.
inline __m512 exp2_of(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);  // -0.5 .. 0.5
    __m512 y = _mm512_set1_ps(0.05517167f);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.24261113f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.69326099f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.99992807f));
    return _mm512_scalef_ps(y, whole);
}

inline vec load(const float * p) {
    return _mm512_loadu_ps(p);
}

inline void store(float * p, vec v) {
    _mm512_storeu_ps(p, v);
}

inline vec all(float x) {
    return _mm512_set1_ps(x);
}

inline vec larger(vec a, vec b) {
    return _mm512_max_ps(a, b);
}

inline float largest_of(vec v) {
    return _mm512_reduce_max_ps(v);
}

inline float weigh(const float * scores, int n, float scale, float top, uint16_t * weights) {
    const vec s = all(scale), shift = all(top * scale);
    vec sum0 = all(0.0f), sum1 = sum0;
    for (int i = 0; i < n; i += 32) {
        const vec p0 = exp2_of(_mm512_fmsub_ps(load(scores + i), s, shift));
        const vec p1 = i + 16 < n ? exp2_of(_mm512_fmsub_ps(load(scores + i + 16), s, shift))
                                  : all(0.0f);  // an odd number of panels
        sum0 = _mm512_add_ps(sum0, p0);
        sum1 = _mm512_add_ps(sum1, p1);
        _mm512_storeu_si512(weights + i, (__m512i) _mm512_cvtne2ps_pbh(p1, p0));
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
}

inline void write(const float * sums, int n, float share, uint16_t * out) {
    float scaled[MAX_EMBD_HEAD];
    for (int i = 0; i < n; i += 16) {  // whole vectors, as sums are padded
        store(scaled + i, _mm512_mul_ps(load(sums + i), all(share)));
    }
    from_f32(scaled, n, out);
}

}  // namespace

}  // namespace pyvllama

#include "attention-kernel.h"

namespace pyvllama {

const bf16_kernels kernels_avx512_bf16 = {
    "avx512_bf16", { PANEL, 16, pack_keys, pack_values, attend }, from_f32, to_f16, pack_weights, gemm,
};

}  // namespace pyvllama
