// What this CPU can do at most: products and sums of registers, in bf16 where it has AVX512-BF16, and in F32.
// Prints one JSON object: GFLOP/s of all threads together. tools/bench/vision.py compiles and runs it.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16, SUMS = 24;
#elif defined(__AVX2__)
constexpr int LANES = 8, SUMS = 12;
#else
constexpr int LANES = 4, SUMS = 12;
#endif
typedef float vec __attribute__((vector_size(4 * LANES)));
constexpr long STEPS = 1000000;
volatile float result;

// A register that the compiler knows nothing about from here on.
#if defined(__aarch64__)
#define UNKNOWN(x) asm volatile("" : "+w"(x))
#elif defined(__AVX512F__)
#define UNKNOWN(x) asm volatile("" : "+v"(x))
#else
#define UNKNOWN(x) asm volatile("" : "+x"(x))
#endif

void f32() {
    vec sum[SUMS], a = vec{} + 1.0f, b = a;
    for (int j = 0; j < SUMS; ++j) {  // all different, or the compiler computes only one
        sum[j] = vec{} + (float) j;
    }
    for (long i = 0; i < STEPS; ++i) {
        UNKNOWN(a);
        UNKNOWN(b);
#pragma GCC unroll 32
        for (int j = 0; j < SUMS; ++j) {
            sum[j] += a * b;
        }
    }
    for (const vec & s : sum) {
        result = result + s[0];
    }
}

#ifdef __AVX512BF16__
void bf16() {
    __m512 sum[SUMS];
    for (int j = 0; j < SUMS; ++j) {
        sum[j] = _mm512_set1_ps((float) j);
    }
    __m512bh a = (__m512bh) _mm512_set1_epi32(0), b = a;
    for (long i = 0; i < STEPS; ++i) {
        UNKNOWN(a);
        UNKNOWN(b);
#pragma GCC unroll 32
        for (int j = 0; j < SUMS; ++j) {
            sum[j] = _mm512_dpbf16_ps(sum[j], a, b);
        }
    }
    for (const __m512 & s : sum) {
        result = result + _mm512_cvtss_f32(s);
    }
}
#endif

double gflops(void (*run)(), int n_threads, int flop_of_step) {
    double best = 0;
    for (int i = 0; i < 7; ++i) {
        const auto start = std::chrono::steady_clock::now();
        std::vector<std::thread> threads;
        for (int t = 0; t < n_threads; ++t) {
            threads.emplace_back(run);
        }
        for (std::thread & t : threads) {
            t.join();
        }
        const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        best = std::max(best, 1e-9 * n_threads * STEPS * SUMS * flop_of_step / s);
    }
    return best;
}

int main(int, char ** argv) {
    const int n_threads = atoi(argv[1]);
    const double single = gflops(f32, n_threads, 2 * LANES);
#ifdef __AVX512BF16__
    printf("{\"f32\": %.1f, \"bf16\": %.1f}\n", single, gflops(bf16, n_threads, 4 * LANES));
#else
    printf("{\"f32\": %.1f, \"bf16\": null}\n", single);
#endif
}
