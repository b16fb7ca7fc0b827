// F32 on AVX512F: 25 sums, 5 vectors of b and 1 of a, of 32 registers.
#include <immintrin.h>

#include "cpu-kernels.h"

namespace pyvllama {

namespace {

template <int N>
inline void scores_of(const uint16_t * k, size_t k_stride, int n_keys, int d, const float * q, float * out,
                      size_t out_stride) {
    for (int i = 0; i < n_keys; ++i, k += k_stride) {
        __m512 sums[N];
        for (int j = 0; j < N; ++j) {
            sums[j] = _mm512_setzero_ps();
        }
        for (int c = 0; c < d; c += 16) {
            const __m512 key = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) (k + c)));
            for (int j = 0; j < N; ++j) {
                sums[j] = _mm512_fmadd_ps(key, _mm512_loadu_ps(q + (size_t) j * d + c), sums[j]);
            }
        }
        for (int j = 0; j < N; ++j) {
            out[j * out_stride + i] = _mm512_reduce_add_ps(sums[j]);
        }
    }
}

constexpr int QUERIES = 4;  // that share a key: as many as the query heads of a KV head in the real model

void f16_scores(const uint16_t * k, size_t k_stride, int n_keys, int d, const float * q, int n_q, float * out,
                size_t out_stride) {
    int j = 0;
    for (; j + QUERIES <= n_q; j += QUERIES) {
        scores_of<QUERIES>(k, k_stride, n_keys, d, q + (size_t) j * d, out + j * out_stride, out_stride);
    }
    for (; j < n_q; ++j) {
        scores_of<1>(k, k_stride, n_keys, d, q + (size_t) j * d, out + j * out_stride, out_stride);
    }
}

}  // namespace

}  // namespace pyvllama

#define KERNELS kernels_avx512
#define NAME "avx512"
#define LANES 16
#define GROUP 5
#define VECTORS 5
#define F16_SCORES f16_scores
#include "f32-kernels.h"
