// The F32 kernels of cpu-kernels.h, written once for vectors of any width with the compilers' vector types. A file that
// includes this defines KERNELS (the table's name), NAME, LANES (floats of a vector), and GROUP and VECTORS: how many
// rows times how many vectors of sums the registers hold; and FEW_QUERIES, if it has what few-queries-kernel.h needs.
// See cpu-kernels.h for what may stand here.
#include <math.h>

#include "kernels-variants.h"

namespace pyvllama {

namespace {

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t int_vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t bits_vec __attribute__((vector_size(4 * LANES)));

inline vec load(const float * p) {
    vec v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
}

inline void store(float * p, vec v) {
    __builtin_memcpy(p, &v, sizeof(v));
}

inline vec all(float x) {
    return vec{} + x;
}

inline vec larger(vec a, vec b) {
    return a > b ? a : b;
}

inline float sum_of(vec v) {
    float s = 0;
    for (int i = 0; i < LANES; ++i) {
        s += v[i];
    }
    return s;
}

inline float largest_of(vec v) {
    float m = v[0];
    for (int i = 1; i < LANES; ++i) {
        m = v[i] > m ? v[i] : m;
    }
    return m;
}

// 2^x for x <= 127, within 2e-7 of it; 0 below -126.5.
inline vec exp2_of(vec x) {
    x = larger(all(-127.0f), x);          // in this order a NaN stays one
    const vec shifted = x + 12582912.0f;  // 1.5 * 2^23: rounds, and leaves the whole number in the lowest bits
    const vec part = x - (shifted - 12582912.0f);
    vec y = all(1.53458121e-4f);
    y = y * part + 1.33999314e-3f;
    y = y * part + 9.61848896e-3f;
    y = y * part + 5.55032878e-2f;
    y = y * part + 0.240226469f;
    y = y * part + 0.693147206f;
    y = y * part + 1.0f;
    const bits_vec power = ((bits_vec) shifted + 127u) << 23;
    return y * (vec) power;
}

// ---- rows

void layer_norm(const float * x, const float * weight, const float * bias, int n, float eps, float * y) {
    const int whole = n / LANES * LANES;
    vec sums = all(0.0f);
    for (int i = 0; i < whole; i += LANES) {
        sums += load(x + i);
    }
    float sum = sum_of(sums);
    for (int i = whole; i < n; ++i) {
        sum += x[i];
    }
    const float mean = sum / (float) n;
    sums = all(0.0f);
    for (int i = 0; i < whole; i += LANES) {
        const vec d = load(x + i) - mean;
        sums += d * d;
    }
    sum = sum_of(sums);
    for (int i = whole; i < n; ++i) {
        sum += (x[i] - mean) * (x[i] - mean);
    }
    const float scale = 1.0f / sqrtf(sum / (float) n + eps);
    for (int i = 0; i < whole; i += LANES) {
        store(y + i, (load(x + i) - mean) * scale * load(weight + i) + load(bias + i));
    }
    for (int i = whole; i < n; ++i) {
        y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
    }
}

// x * Phi(x), with Phi from erf as in Abramowitz and Stegun, 7.1.26: |error of erf| <= 1.5e-7.
inline vec gelu(vec x) {
    const vec size = x < 0.0f ? -x : x;
    const vec t = 1.0f / (1.0f + 0.23164188f * size);  // 0.3275911 / sqrt(2)
    vec y = all(1.061405429f);
    y = y * t - 1.453152027f;
    y = y * t + 1.421413741f;
    y = y * t - 0.284496736f;
    y = y * t + 0.254829592f;
    const vec tail = 0.5f * y * t * exp2_of(-0.72134752f * x * x);  // 1 - Phi(|x|); log2(e)/2
    return x < 0.0f ? x * tail : x - x * tail;
}

void bias_gelu(const float * x, const float * bias, int n, float * y) {
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
        store(y + i, gelu(load(x + i) + load(bias + i)));
    }
    if (i < n) {
        vec rest = all(0.0f);
        for (int j = i; j < n; ++j) {
            rest[j - i] = x[j] + bias[j];
        }
        rest = gelu(rest);
        for (int j = i; j < n; ++j) {
            y[j] = rest[j - i];
        }
    }
}

// ---- attention

using element = float;

constexpr int PANEL = LANES * VECTORS;
constexpr int PANELS = (256 + PANEL - 1) / PANEL;  // of a block: its keys and values stay in L2
constexpr int STEP = 1;

template <int M, int N>
inline __attribute__((always_inline)) void multiply(vec (&acc)[M][N], const float * const (&a)[M], const float * b,
                                                    size_t width, int n) {
    for (int i = 0; i < n; ++i) {
        vec column[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            column[j] = load(b + i * width + LANES * j);
        }
#pragma GCC unroll 8
        for (int r = 0; r < M; ++r) {
            const float x = a[r][i];
#pragma GCC unroll 8
            for (int j = 0; j < N; ++j) {
                acc[r][j] += x * column[j];
            }
        }
    }
}

void pack_keys(const float * k, size_t k_stride, int n, int n_embd_head, float * out) {
    for (int c = 0; c < PANEL; ++c) {
        if (c < n) {
            for (int i = 0; i < n_embd_head; ++i) {
                out[i * PANEL + c] = k[c * k_stride + i];
            }
        } else {
            for (int i = 0; i < n_embd_head; ++i) {
                out[i * PANEL + c] = 0.0f;
            }
        }
    }
}

void pack_values(const float * v, size_t v_stride, int n, int n_embd_head, float * out) {
    const int padded = (n_embd_head + LANES - 1) / LANES * LANES;
    for (int c = 0; c < PANEL; ++c, out += padded) {
        const int n_there = c < n ? n_embd_head : 0;
        for (int i = 0; i < n_there; ++i) {
            out[i] = v[c * v_stride + i];
        }
        for (int i = n_there; i < padded; ++i) {
            out[i] = 0.0f;
        }
    }
}

inline float weigh(const float * scores, int n, float scale, float top, float * weights) {
    vec sum = all(0.0f);
    for (int i = 0; i < n; i += LANES) {
        const vec p = exp2_of((load(scores + i) - top) * scale);
        sum += p;
        store(weights + i, p);
    }
    return sum_of(sum);
}

inline void write(const float * sums, int n, float share, float * out) {
    for (int i = 0; i < n; ++i) {
        out[i] = sums[i] * share;
    }
}

}  // namespace

}  // namespace pyvllama

#include "attention-kernel.h"
#ifdef FEW_QUERIES
#include "few-queries-kernel.h"
#endif

namespace pyvllama {

const f32_kernels KERNELS = {
    NAME, { PANEL, LANES, pack_keys, pack_values, attend }, layer_norm, bias_gelu,
#ifdef FEW_QUERIES
    few,
#else
    nullptr,
#endif
};

}  // namespace pyvllama
