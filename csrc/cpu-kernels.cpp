#include "cpu-kernels.h"

#include <cstdlib>
#include "errors.h"
#include "kernels-variants.h"

#ifdef PYVLLAMA_KERNELS_X86
#include <cpuid.h>
#endif
#ifdef PYVLLAMA_KERNELS_NEON_BF16
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#endif

namespace pyvllama {

namespace {

#ifdef PYVLLAMA_KERNELS_X86
bool has_f16c() {  // not every GCC knows it by name
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && has_avx2();
}

#ifdef PYVLLAMA_KERNELS_AVX512_BF16
bool has_avx512_bf16() {
    return __builtin_cpu_supports("avx512bf16") && has_avx512();
}
#endif
#endif

#ifdef PYVLLAMA_KERNELS_NEON_BF16
bool has_neon_bf16() {
#if defined(__linux__)
    constexpr unsigned long HAS_BF16 = 1ul << 14;  // HWCAP2_BF16, which not every system's headers know
    return getauxval(AT_HWCAP2) & HAS_BF16;
#elif defined(__APPLE__)
    int has = 0;
    size_t size = sizeof(has);
    return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, nullptr, 0) == 0 && has;
#else
    return false;
#endif
}
#endif

}  // namespace

std::string cpu_kernels::name() const {
    return bf16 ? bf16->name : f32 ? f32->name : "ggml";
}

std::vector<cpu_kernels> all_cpu_kernels() {
    std::vector<cpu_kernels> all;
#ifdef PYVLLAMA_KERNELS
#ifdef PYVLLAMA_KERNELS_X86
#ifdef PYVLLAMA_KERNELS_AVX512_BF16
    if (has_avx512_bf16()) {
        all.push_back({ &kernels_avx512, &kernels_avx512_bf16 });
    }
#endif
    if (has_avx512()) {
        all.push_back({ &kernels_avx512, nullptr });
    }
    if (has_avx2()) {
        all.push_back({ &kernels_avx2, nullptr });
    }
#endif
#ifdef PYVLLAMA_KERNELS_NEON_BF16
    if (has_neon_bf16()) {
        all.push_back({ &kernels_baseline, &kernels_neon_bf16 });
    }
#endif
    all.push_back({ &kernels_baseline, nullptr });
#endif
    all.push_back({});
    return all;
}

cpu_kernels choose_cpu_kernels() {
    const std::vector<cpu_kernels> all = all_cpu_kernels();
    const char * wish = std::getenv("PYVLLAMA_CPU_KERNELS");
    if (!wish || !*wish) {
        return all.front();
    }
    std::string known;
    for (const cpu_kernels & kernels : all) {
        if (wish == kernels.name()) {
            return kernels;
        }
        known += " " + kernels.name();
    }
    throw config_error("PYVLLAMA_CPU_KERNELS is '" + std::string(wish) + "'; this CPU can run:" + known);
}

}  // namespace pyvllama
