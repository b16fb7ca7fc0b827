// F32 on AVX2 with FMA: 12 sums, 2 vectors of b and 1 of a, of 16 registers.
#define KERNELS kernels_avx2
#define NAME "avx2"
#define LANES 8
#define GROUP 6
#define VECTORS 2
#include "f32-kernels.h"
