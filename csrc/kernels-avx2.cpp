// F32 on AVX2 with FMA and F16C: 12 sums, 2 vectors of b and 1 of a, of 16 registers.
#include <immintrin.h>

namespace pyvllama {

namespace {

inline __m256 load_f16(const char * p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) p));
}

inline __m256 load_bf16(const char * p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *) p)), 16));
}

inline __m256 load_i8(const char * p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *) p)));
}

inline __m256 all_f16(const char * p) {
    short x;
    __builtin_memcpy(&x, p, sizeof(x));
    return _mm256_cvtph_ps(_mm_set1_epi16(x));
}

template <typename V>
inline __m256 add_up(const V * s) {
    const __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
    const __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(s[4], s[5]), _mm256_hadd_ps(s[6], s[7]));
    // halves of a: of sums 0 to 3; of b: of sums 4 to 7
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

}  // namespace

}  // namespace pyvllama

#define KERNELS kernels_avx2
#define NAME "avx2"
#define LANES 8
#define GROUP 6
#define VECTORS 2
#define FEW_QUERIES
#define SUMS 8
#include "f32-kernels.h"
