// F32 on AVX512F: 25 sums, 5 vectors of b and 1 of a, of 32 registers.
#include <immintrin.h>

namespace pyvllama {

namespace {

inline __m512 load_f16(const char * p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *) p));
}

inline __m512 load_bf16(const char * p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *) p)), 16));
}

inline __m512 load_i8(const char * p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *) p)));
}

inline __m512 all_f16(const char * p) {
    short x;
    __builtin_memcpy(&x, p, sizeof(x));
    return _mm512_cvtph_ps(_mm256_set1_epi16(x));
}

// Each step halves the number of vectors and doubles how many sums one holds. s: which sum a lane belongs to.
template <typename V>
inline __m512 add_up(const V * sums) {
    __m512 t[8], u[4], w[2];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {  // lanes of 128 bits: s = i, i, i + 8, i + 8
        const __m512 a = sums[i], b = sums[i + 8];
        t[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // i, i + 8, i + 4, i + 12
        u[i] = _mm512_add_ps(_mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd));
    }
    for (int i = 0; i < 2; ++i) {  // within each: i, i + 2, i, i + 2
        w[i] = _mm512_add_ps(_mm512_unpacklo_ps(u[i], u[i + 2]), _mm512_unpackhi_ps(u[i], u[i + 2]));
    }
    const __m512d a = _mm512_castps_pd(w[0]), b = _mm512_castps_pd(w[1]);
    const __m512 x = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                                   _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));  // 0, 2, 1, 3
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15), x);
}

}  // namespace

}  // namespace pyvllama

#define KERNELS kernels_avx512
#define NAME "avx512"
#define LANES 16
#define GROUP 5
#define VECTORS 5
#define FEW_QUERIES
#define SUMS 16
#include "f32-kernels.h"
