// F32 on what every CPU of the architecture has: NEON with 32 registers on aarch64, SSE2 with 16 on x86-64. Elsewhere
// the compiler makes plain code of the vectors.
#define KERNELS kernels_baseline
#define LANES 4
#define GROUP 6
#ifdef __aarch64__
#define NAME "neon"
#define VECTORS 4
#else
#define NAME "baseline"
#define VECTORS 2
#endif
#include "f32-kernels.h"
