// Products of bf16 matrices on AVX512-BF16: vdpbf16ps adds two products of bf16 to each F32 sum. See cpu-kernels.h for
// what may stand in this file.
//
// Both products of attention and those with weights have one form: a few rows of a times a panel of b, sums in
// registers. A pair of neighbours in a row of a (32 bits) is broadcast, a panel of b holds such pairs side by side.
#include <immintrin.h>

#include "kernels-variants.h"

namespace pyvllama {

namespace {

using sums = __m512;

// Two neighbours, bf16; GCC and Clang let such a type look at memory of another one.
typedef uint32_t pair __attribute__((may_alias, aligned(2)));

inline __m512bh pair_of(const uint16_t * a) {
    return (__m512bh) _mm512_set1_epi32((int) *(const pair *) a);
}

inline __m512bh load(const uint16_t * b) {
    return (__m512bh) _mm512_loadu_si512(b);
}

// acc[r][j] += sum over pairs p of a[r][2p..] * b[p][j]; b: N vectors a pair
template <int M, int N>
inline __attribute__((always_inline)) void multiply(sums (&acc)[M][N], const uint16_t * const (&a)[M],
                                                    const uint16_t * b, size_t b_stride, int n_pairs) {
    for (int p = 0; p < n_pairs; ++p) {
        __m512bh column[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            column[j] = load(b + p * b_stride + 32 * j);
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

constexpr int ROWS = 6, VECTORS = GEMM_PANEL / 16;  // 24 sums, 4 vectors of b, 1 of a: 29 of 32 registers
constexpr int BLOCK = 1280;                         // inputs at once: 160 KiB of a panel and 240 KiB of a stay in L2

void pack_weights(const uint16_t * w, size_t w_stride, int n, int n_in, uint16_t * panel) {
    pair * out = (pair *) panel;
    for (int first = 0; first < n_in / 2; first += 16) {  // a cache line of each row, so that all stays in L1
        const int last = first + 16 < n_in / 2 ? first + 16 : n_in / 2;
        for (int c = 0; c < GEMM_PANEL; ++c) {
            const pair * row = (const pair *) (w + c * w_stride);
            for (int p = first; p < last; ++p) {
                out[p * GEMM_PANEL + c] = c < n ? row[p] : 0;
            }
        }
    }
}

void gemm(const uint16_t * a, size_t a_stride, int n_rows, int n_in, const uint16_t * panel, float * c) {
    for (int k = 0; k < n_in; k += BLOCK) {
        const int n_pairs = (n_in - k < BLOCK ? n_in - k : BLOCK) / 2;
        for (int first = 0; first < n_rows; first += ROWS) {
            const uint16_t * rows[ROWS];
            sums acc[ROWS][VECTORS];
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {  // the last row again where there are no more
                const int row = first + r < n_rows ? first + r : n_rows - 1;
                rows[r] = a + row * a_stride + k;
#pragma GCC unroll 8
                for (int j = 0; j < VECTORS; ++j) {
                    acc[r][j] = k == 0 ? _mm512_setzero_ps() : _mm512_loadu_ps(c + row * GEMM_PANEL + 16 * j);
                }
            }
            multiply(acc, rows, panel + (size_t) k * GEMM_PANEL, 2 * GEMM_PANEL, n_pairs);
            for (int r = 0; r < ROWS && first + r < n_rows; ++r) {
#pragma GCC unroll 8
                for (int j = 0; j < VECTORS; ++j) {
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

// ---- attention

constexpr int GROUP = 5, KEYS = 5;  // queries, vectors of keys: 25 sums, 5 vectors of b, 1 of a
constexpr int PANEL = 16 * KEYS;
constexpr int PANELS = 6;  // of a block: its keys and values stay in L2

void pack_keys(const uint16_t * k, size_t k_stride, int n, int n_embd_head, uint16_t * out) {
    pair * pairs = (pair *) out;
    for (int c = 0; c < PANEL; ++c) {
        const pair * row = (const pair *) (k + c * k_stride);
        for (int p = 0; p < n_embd_head / 2; ++p) {
            pairs[p * PANEL + c] = c < n ? row[p] : 0;
        }
    }
}

void pack_values(const uint16_t * v, size_t v_stride, int n, int n_embd_head, uint16_t * out) {
    const int padded = (n_embd_head + 15) / 16 * 16;
    for (int c = 0; c < PANEL; c += 2, out += 2 * padded) {
        const uint16_t *even = v + c * v_stride, *odd = even + v_stride;
        for (int d = 0; d < padded; ++d) {
            out[2 * d] = c < n && d < n_embd_head ? even[d] : 0;
            out[2 * d + 1] = c + 1 < n && d < n_embd_head ? odd[d] : 0;
        }
    }
}

// 2^x for x <= 0, within 8e-5 of it: the result is rounded to bf16 anyway, by up to 4e-3.
inline __m512 exp2_short(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 part = _mm512_sub_ps(x, whole);  // -0.5 .. 0.5
    __m512 y = _mm512_set1_ps(0.05517167f);
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.24261113f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.69326099f));
    y = _mm512_fmadd_ps(y, part, _mm512_set1_ps(0.99992807f));
    return _mm512_scalef_ps(y, whole);
}

struct head_rows {
    alignas(64) float out[MAX_QUERIES * MAX_EMBD_HEAD];  // sums of values, not divided yet
    float top[MAX_QUERIES];                              // largest score so far
    float sum[MAX_QUERIES];                              // of weights, relative to it
};

// Scores of GROUP queries -> weights in bf16; what was summed up so far is scaled to the new largest score.
inline void softmax(const float * scores, const sums (&tops)[GROUP], int n_keys, float scale, int first, int padded,
                    head_rows & rows, uint16_t * weights) {
    for (int r = 0; r < GROUP; ++r) {
        const float before = rows.top[first + r], seen = _mm512_reduce_max_ps(tops[r]);
        const float top = seen > before ? seen : before;
        if (top > before) {
            const __m512 shrink = exp2_short(_mm512_set1_ps((before - top) * scale));
            float * out = rows.out + (size_t) (first + r) * padded;
            for (int d = 0; d < padded; d += 16) {
                _mm512_storeu_ps(out + d, _mm512_mul_ps(_mm512_loadu_ps(out + d), shrink));
            }
            rows.sum[first + r] *= _mm512_cvtss_f32(shrink);
            rows.top[first + r] = top;
        }
        const __m512 s = _mm512_set1_ps(scale), shift = _mm512_set1_ps(top * scale);
        __m512 sum0 = _mm512_setzero_ps(), sum1 = sum0;
        for (int i = 0; i < n_keys; i += 32) {
            const float * x = scores + r * PANELS * PANEL + i;
            const __m512 p0 = exp2_short(_mm512_fmsub_ps(_mm512_loadu_ps(x), s, shift));
            const __m512 p1 = i + 16 < n_keys ? exp2_short(_mm512_fmsub_ps(_mm512_loadu_ps(x + 16), s, shift))
                                              : _mm512_setzero_ps();  // an odd number of panels
            sum0 = _mm512_add_ps(sum0, p0);
            sum1 = _mm512_add_ps(sum1, p1);
            _mm512_storeu_si512(weights + r * PANELS * PANEL + i, (__m512i) _mm512_cvtne2ps_pbh(p1, p0));
        }
        rows.sum[first + r] += _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
    }
}

template <int N>
inline void add_values(float * out, int padded, const uint16_t * const (&weights)[GROUP], const uint16_t * v, int n) {
    sums acc[GROUP][N];
#pragma GCC unroll 8
    for (int r = 0; r < GROUP; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            acc[r][j] = _mm512_loadu_ps(out + r * padded + 16 * j);
        }
    }
    multiply(acc, weights, v, 2 * padded, n / 2);
#pragma GCC unroll 8
    for (int r = 0; r < GROUP; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            _mm512_storeu_ps(out + r * padded + 16 * j, acc[r][j]);
        }
    }
}

void attend(const attention_part<uint16_t> & part) {
    const int d = part.n_embd_head, padded = (d + 15) / 16 * 16, n_panels = (part.n_k + PANEL - 1) / PANEL;
    const int n_rows = (part.n_q + GROUP - 1) / GROUP * GROUP;  // the last query again where there are no more
    const float scale = part.scale * 1.44269504f;               // log2(e)
    head_rows rows;
    for (int r = 0; r < n_rows; ++r) {
        rows.top[r] = 2 * PADDING_BIAS;
        rows.sum[r] = 0;
        for (int i = 0; i < padded; ++i) {
            rows.out[(size_t) r * padded + i] = 0;
        }
    }
    alignas(64) float scores[GROUP * PANELS * PANEL];
    alignas(64) uint16_t weights[GROUP * PANELS * PANEL];
    const uint16_t * weight_rows[GROUP];
    for (int r = 0; r < GROUP; ++r) {
        weight_rows[r] = weights + r * PANELS * PANEL;
    }
    for (int block = 0; block < n_panels; block += PANELS) {
        const int n = n_panels - block < PANELS ? n_panels - block : PANELS;
        const uint16_t * v = part.v + (size_t) block * PANEL * padded;
        for (int first = 0; first < n_rows; first += GROUP) {
            const uint16_t * q[GROUP];
            sums tops[GROUP];
#pragma GCC unroll 8
            for (int r = 0; r < GROUP; ++r) {
                q[r] = part.q + (size_t) (first + r < part.n_q ? first + r : part.n_q - 1) * part.q_stride;
                tops[r] = _mm512_set1_ps(2 * PADDING_BIAS);
            }
            for (int i = 0; i < n; ++i) {
                sums acc[GROUP][KEYS];
#pragma GCC unroll 8
                for (int j = 0; j < KEYS; ++j) {
                    const __m512 bias = _mm512_loadu_ps(part.key_bias + (block + i) * PANEL + 16 * j);
#pragma GCC unroll 8
                    for (int r = 0; r < GROUP; ++r) {
                        acc[r][j] = bias;
                    }
                }
                multiply(acc, q, part.k + (size_t) (block + i) * PANEL * d, 2 * PANEL, d / 2);
#pragma GCC unroll 8
                for (int r = 0; r < GROUP; ++r) {
#pragma GCC unroll 8
                    for (int j = 0; j < KEYS; ++j) {
                        _mm512_storeu_ps(scores + (r * PANELS + i) * PANEL + 16 * j, acc[r][j]);
                        tops[r] = _mm512_max_ps(tops[r], acc[r][j]);
                    }
                }
            }
            softmax(scores, tops, n * PANEL, scale, first, padded, rows, weights);
            float * out = rows.out + (size_t) first * padded;
            int j = 0;
            for (; j + 5 <= padded / 16; j += 5) {
                add_values<5>(out + 16 * j, padded, weight_rows, v + 32 * j, n * PANEL);
            }
            for (; j < padded / 16; ++j) {
                add_values<1>(out + 16 * j, padded, weight_rows, v + 32 * j, n * PANEL);
            }
        }
    }
    for (int r = 0; r < part.n_q; ++r) {
        float * out = rows.out + (size_t) r * padded;
        const __m512 share = _mm512_set1_ps(1.0f / rows.sum[r]);
        for (int i = 0; i < padded; i += 16) {
            _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_loadu_ps(out + i), share));
        }
        from_f32(out, d, part.out + r * part.out_stride);
    }
}

}  // namespace

const bf16_kernels kernels_avx512_bf16 = {
    "avx512_bf16", { PANEL, 16, pack_keys, pack_values, attend }, from_f32, pack_weights, gemm,
};

}  // namespace pyvllama
