// Products of bf16 matrices on ARM CPUs with BF16: bfmmla multiplies two rows by two columns, four numbers of each, and
// adds to four F32 sums. See cpu-kernels.h for what may stand in this file.
//
// Both products of attention and those with weights have one form: a few rows of a times a panel of b, sums in
// registers. A panel of b holds four neighbours of a column side by side, then those of the next column; where their
// number leaves two, two.
#include <arm_neon.h>

#include "kernels-variants.h"

namespace pyvllama {

namespace {

using vec = float32x4_t;

inline vec load(const float * p) {
    return vld1q_f32(p);
}

inline void store(float * p, vec v) {
    vst1q_f32(p, v);
}

inline vec all(float x) {
    return vdupq_n_f32(x);
}

inline vec larger(vec a, vec b) {
    return vmaxnmq_f32(a, b);
}

inline float largest_of(vec v) {
    return vmaxnmvq_f32(v);
}

// Halves of a and b: the low ones, the high ones.
inline vec low_halves(vec a, vec b) {
    return vreinterpretq_f32_u64(vzip1q_u64(vreinterpretq_u64_f32(a), vreinterpretq_u64_f32(b)));
}

inline vec high_halves(vec a, vec b) {
    return vreinterpretq_f32_u64(vzip2q_u64(vreinterpretq_u64_f32(a), vreinterpretq_u64_f32(b)));
}

inline vec load_8(const uint16_t * p) {
    return vreinterpretq_f32_u16(vld1q_u16(p));
}

inline vec load_4(const uint16_t * p) {
    return vreinterpretq_f32_u16(vcombine_u16(vld1_u16(p), vdup_n_u16(0)));
}

// Two numbers and two zeros, twice.
inline vec load_2_and_2(const uint16_t * p, const uint16_t * q) {
    uint32_t x, y;
    __builtin_memcpy(&x, p, sizeof(x));
    __builtin_memcpy(&y, q, sizeof(y));
    return vreinterpretq_f32_u64(vcombine_u64(vcreate_u64(x), vcreate_u64(y)));
}

inline vec add_products(vec sums, vec rows, vec columns) {
    return vbfmmlaq_f32(sums, vreinterpretq_bf16_f32(rows), vreinterpretq_bf16_f32(columns));
}

// acc[r][j] += sum over i of a[r][i] * b[i][first + j], n even; b has width columns. M is even.
template <int M, int N>
inline __attribute__((always_inline)) void multiply(vec (&acc)[M][N], const uint16_t * const (&a)[M],
                                                    const uint16_t * b, size_t width, int n, int first = 0) {
    constexpr int PAIRS = M / 2;
    vec sums[PAIRS][2 * N];  // of two rows and two columns
#pragma GCC unroll 8
    for (int r = 0; r < PAIRS; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            sums[r][2 * j] = low_halves(acc[2 * r][j], acc[2 * r + 1][j]);
            sums[r][2 * j + 1] = high_halves(acc[2 * r][j], acc[2 * r + 1][j]);
        }
    }
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        vec rows[2][PAIRS];
#pragma GCC unroll 8
        for (int r = 0; r < PAIRS; ++r) {
            const vec even = load_8(a[2 * r] + i), odd = load_8(a[2 * r + 1] + i);
            rows[0][r] = low_halves(even, odd);
            rows[1][r] = high_halves(even, odd);
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
#pragma GCC unroll 16
            for (int j = 0; j < 2 * N; ++j) {
                const vec columns = load_8(b + (i + 4 * half) * width + 4 * first + 8 * j);
#pragma GCC unroll 8
                for (int r = 0; r < PAIRS; ++r) {
                    sums[r][j] = add_products(sums[r][j], rows[half][r], columns);
                }
            }
        }
    }
    if (i + 4 <= n) {
#pragma GCC unroll 8
        for (int r = 0; r < PAIRS; ++r) {
            const vec rows = low_halves(load_4(a[2 * r] + i), load_4(a[2 * r + 1] + i));
#pragma GCC unroll 16
            for (int j = 0; j < 2 * N; ++j) {
                sums[r][j] = add_products(sums[r][j], rows, load_8(b + i * width + 4 * first + 8 * j));
            }
        }
        i += 4;
    }
    if (i < n) {
#pragma GCC unroll 8
        for (int r = 0; r < PAIRS; ++r) {
            const vec rows = load_2_and_2(a[2 * r] + i, a[2 * r + 1] + i);
#pragma GCC unroll 16
            for (int j = 0; j < 2 * N; ++j) {
                const uint16_t * columns = b + i * width + 2 * first + 4 * j;
                sums[r][j] = add_products(sums[r][j], rows, load_2_and_2(columns, columns + 2));
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < PAIRS; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            acc[2 * r][j] = low_halves(sums[r][2 * j], sums[r][2 * j + 1]);
            acc[2 * r + 1][j] = high_halves(sums[r][2 * j], sums[r][2 * j + 1]);
        }
    }
}

// Numbers [first, last) of a column of b; nullptr: zeros.
inline void put_column(const uint16_t * column, int first, int last, int c, size_t width, uint16_t * b) {
    constexpr uint16_t zeros[4] = {};
    int i = first;
    for (; i + 4 <= last; i += 4) {
        __builtin_memcpy(b + i * width + 4 * c, column ? column + i : zeros, 4 * sizeof(*b));
    }
    if (i < last) {
        __builtin_memcpy(b + i * width + 2 * c, column ? column + i : zeros, 2 * sizeof(*b));
    }
}

// ---- products with weights

constexpr int ROWS = 6, VECTORS = 4, COLUMNS = 4 * VECTORS;  // 24 sums, 3 pairs of rows twice, 1 of columns: 31 of 32
constexpr int BLOCK = 256;                                   // inputs at once: 32 KiB of a panel stay in L1

void pack_weights(const uint16_t * w, size_t w_stride, int n, int n_in, uint16_t * panel) {
    for (int first = 0; first < n_in; first += 32) {  // a cache line of each row, so that all stays in L1
        const int last = first + 32 < n_in ? first + 32 : n_in;
        for (int c = 0; c < GEMM_PANEL; ++c) {
            put_column(c < n ? w + c * w_stride : nullptr, first, last, c, GEMM_PANEL, panel);
        }
    }
}

// out[r][j] += sum over i of rows[r][i] * panel[i][first + j] for COLUMNS columns. A function of its own: within
// another loop compilers keep some of the sums in memory.
__attribute__((noinline)) void add_product(const uint16_t * const (&rows)[ROWS], const uint16_t * panel, int first,
                                           int n, float * const (&out)[ROWS]) {
    vec acc[ROWS][VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) {
            acc[r][j] = load(out[r] + first + 4 * j);
        }
    }
    multiply(acc, rows, panel, GEMM_PANEL, n, first);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
        for (int j = 0; j < VECTORS; ++j) {
            store(out[r] + first + 4 * j, acc[r][j]);
        }
    }
}

void gemm(const uint16_t * a, size_t a_stride, int n_rows, int n_in, const uint16_t * panel, float * c) {
    for (int i = 0; i < n_rows * GEMM_PANEL; ++i) {
        c[i] = 0;
    }
    for (int k = 0; k < n_in; k += BLOCK) {
        const int n = n_in - k < BLOCK ? n_in - k : BLOCK;
        for (int first = 0; first < n_rows; first += ROWS) {
            const uint16_t * rows[ROWS];
            float * out[ROWS];
            for (int r = 0; r < ROWS; ++r) {  // the last row again where there are no more
                const int row = first + r < n_rows ? first + r : n_rows - 1;
                rows[r] = a + row * a_stride + k;
                out[r] = c + row * GEMM_PANEL;
            }
            for (int column = 0; column < GEMM_PANEL; column += COLUMNS) {
                add_product(rows, panel + (size_t) k * GEMM_PANEL, column, n, out);
            }
        }
    }
}

inline uint16x8_t rounded(vec low, vec high) {
    return vreinterpretq_u16_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(low), high));
}

void from_f32(const float * x, int n, uint16_t * y) {
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        vst1q_u16(y + i, rounded(load(x + i), load(x + i + 4)));
    }
    if (i < n) {
        float rest[8] = {};
        uint16_t some[8];
        __builtin_memcpy(rest, x + i, (size_t) (n - i) * sizeof(*x));
        vst1q_u16(some, rounded(load(rest), load(rest + 4)));
        __builtin_memcpy(y + i, some, (size_t) (n - i) * sizeof(*y));
    }
}

void to_f16(const float * x, int n, uint16_t * y) {
    int i = 0;
    for (; i + 4 <= n; i += 4) {
        vst1_u16(y + i, vreinterpret_u16_f16(vcvt_f16_f32(load(x + i))));
    }
    if (i < n) {
        float rest[4] = {};
        uint16_t some[4];
        __builtin_memcpy(rest, x + i, (size_t) (n - i) * sizeof(*x));
        vst1_u16(some, vreinterpret_u16_f16(vcvt_f16_f32(load(rest))));
        __builtin_memcpy(y + i, some, (size_t) (n - i) * sizeof(*y));
    }
}

// ---- attention

using element = uint16_t;

constexpr int LANES = 4, GROUP = ROWS;
constexpr int PANEL = LANES * VECTORS;
constexpr int PANELS = 16;  // of a block: its keys and values stay in L2
constexpr int STEP = 4;

void pack_keys(const uint16_t * k, size_t k_stride, int n, int n_embd_head, uint16_t * out) {
    for (int c = 0; c < PANEL; ++c) {
        put_column(c < n ? k + c * k_stride : nullptr, 0, n_embd_head, c, PANEL, out);
    }
}

void pack_values(const uint16_t * v, size_t v_stride, int n, int n_embd_head, uint16_t * out) {
    const int padded = (n_embd_head + LANES - 1) / LANES * LANES;
    for (int first = 0; first < PANEL; first += STEP, out += STEP * padded) {
        const uint16_t * row = v + first * v_stride;
        int whole = 0;
        if (first + STEP <= n) {
            for (; whole + 8 <= n_embd_head; whole += 8) {
                uint16x8x4_t rows;
                for (int t = 0; t < STEP; ++t) {
                    rows.val[t] = vld1q_u16(row + t * v_stride + whole);
                }
                vst4q_u16(out + STEP * whole, rows);
            }
        }
        for (int c = whole; c < padded; ++c) {
            for (int t = 0; t < STEP; ++t) {
                out[STEP * c + t] = first + t < n && c < n_embd_head ? row[t * v_stride + c] : 0;
            }
        }
    }
}

// 2^x for x <= 0, within 8e-5 of it: the result is rounded to bf16 anyway, by up to 4e-3. 0 below -126.5.
inline vec exp2_of(vec x) {
    x = vmaxq_f32(x, all(-127.0f));
    const vec whole = vrndnq_f32(x), part = x - whole;  // -0.5 .. 0.5
    vec y = all(0.05517167f);
    y = y * part + all(0.24261113f);
    y = y * part + all(0.69326099f);
    y = y * part + all(0.99992807f);
    return y * vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127)), 23));
}

inline float weigh(const float * scores, int n, float scale, float top, uint16_t * weights) {
    const vec s = all(scale), shift = all(top * scale);
    vec sum0 = all(0.0f), sum1 = sum0;
    for (int i = 0; i < n; i += 8) {
        const vec p0 = exp2_of(load(scores + i) * s - shift), p1 = exp2_of(load(scores + i + 4) * s - shift);
        sum0 += p0;
        sum1 += p1;
        vst1q_u16(weights + i, rounded(p0, p1));
    }
    return vaddvq_f32(sum0 + sum1);
}

inline void write(const float * sums, int n, float share, uint16_t * out) {
    float scaled[MAX_EMBD_HEAD];
    for (int i = 0; i < n; i += LANES) {  // whole vectors, as sums are padded
        store(scaled + i, load(sums + i) * all(share));
    }
    from_f32(scaled, n, out);
}

}  // namespace

}  // namespace pyvllama

#include "attention-kernel.h"

namespace pyvllama {

const bf16_kernels kernels_neon_bf16 = {
    "neon_bf16", { PANEL, LANES, pack_keys, pack_values, attend }, from_f32, to_f16, pack_weights, gemm,
};

}  // namespace pyvllama
