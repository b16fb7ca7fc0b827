// The versions of the kernels that were compiled. Which of them this CPU can run: cpu-kernels.cpp.
#pragma once

#include "cpu-kernels.h"

namespace pyvllama {

extern const f32_kernels kernels_baseline, kernels_avx2, kernels_avx512;
extern const bf16_kernels kernels_avx512_bf16, kernels_neon_bf16;

}  // namespace pyvllama
