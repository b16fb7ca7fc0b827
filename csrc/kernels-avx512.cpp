// F32 on AVX512F: 25 sums, 5 vectors of b and 1 of a, of 32 registers.
#define KERNELS kernels_avx512
#define NAME "avx512"
#define LANES 16
#define GROUP 5
#define VECTORS 5
#include "f32-kernels.h"
