// F32 on what every CPU of the architecture has: NEON with 32 registers on aarch64, SSE2 with 16 on x86-64. Elsewhere
// the compiler makes plain code of the vectors.
#ifdef __aarch64__
#include <arm_neon.h>

namespace pyvllama {

namespace {

// Every aarch64 CPU converts F16. To compute in it, or in bf16, would round the queries.
inline float32x4_t load_f16(const char * p) {
    uint16x4_t x;
    __builtin_memcpy(&x, p, sizeof(x));
    return vcvt_f32_f16(vreinterpret_f16_u16(x));
}

inline float32x4_t load_bf16(const char * p) {
    uint16x4_t x;
    __builtin_memcpy(&x, p, sizeof(x));
    return vreinterpretq_f32_u32(vshll_n_u16(x, 16));
}

inline float32x4_t load_i8(const char * p) {
    uint32_t x;
    __builtin_memcpy(&x, p, sizeof(x));
    // each number into the highest byte, where it is 2^24 times as large; 255 is no byte's index and gives zero
    const uint8x16_t order = { 255, 255, 255, 0, 255, 255, 255, 1, 255, 255, 255, 2, 255, 255, 255, 3 };
    return vcvtq_n_f32_s32(vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_u32(vdupq_n_u32(x)), order)), 24);
}

inline float32x4_t all_f16(const char * p) {
    uint16_t x;
    __builtin_memcpy(&x, p, sizeof(x));
    return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x)));
}

template <typename V>
inline float32x4_t add_up(const V * s) {
    return vpaddq_f32(vpaddq_f32((float32x4_t) s[0], (float32x4_t) s[1]),
                      vpaddq_f32((float32x4_t) s[2], (float32x4_t) s[3]));
}

}  // namespace

}  // namespace pyvllama

#define NAME "neon"
#define VECTORS 4
#define FEW_QUERIES
#define SUMS 16  // and 4 keys: as many multiplications at a time as wide CPUs have under way
#else
#define NAME "baseline"
#define VECTORS 2
#endif
#define KERNELS kernels_baseline
#define LANES 4
#define GROUP 6
#include "f32-kernels.h"
