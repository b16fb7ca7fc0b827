#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <iterator>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace pyvllama {

namespace {

bool same_name(const char * a, const char * b) {
    for (; *a && *b; ++a, ++b) {
        if (std::tolower((unsigned char) *a) != std::tolower((unsigned char) *b)) {
            return false;
        }
    }
    return *a == *b;
}

// What ggml_quantize_chunk takes; it aborts on anything else.
constexpr ggml_type QUANTIZABLE[] = {
    GGML_TYPE_F32,    GGML_TYPE_F16,   GGML_TYPE_BF16,  GGML_TYPE_Q4_0,   GGML_TYPE_Q4_1,    GGML_TYPE_Q5_0,
    GGML_TYPE_Q5_1,   GGML_TYPE_Q8_0,  GGML_TYPE_Q2_K,  GGML_TYPE_Q3_K,   GGML_TYPE_Q4_K,    GGML_TYPE_Q5_K,
    GGML_TYPE_Q6_K,   GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0, GGML_TYPE_IQ1_S,  GGML_TYPE_IQ1_M,   GGML_TYPE_IQ2_XXS,
    GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ3_S, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ4_XS,
};

// work(first, count) over n_rows, in slices of at least 64 rows. Where no more threads are to be had, with fewer.
void for_rows(int64_t n_rows, int n_threads, const std::function<void(int64_t, int64_t)> & work) {
    const int64_t n = std::max<int64_t>(1, std::min<int64_t>(n_threads, n_rows / 64));
    auto slice = [&](int64_t i) { work(n_rows * i / n, n_rows * (i + 1) / n - n_rows * i / n); };
    std::vector<std::thread> threads;
    threads.reserve((size_t) n);
    for (int64_t i = 1; i < n; ++i) {
        try {
            threads.emplace_back(slice, i);
        } catch (const std::system_error &) {
            slice(i);
        }
    }
    slice(0);
    for (auto & t : threads) {
        t.join();
    }
}

}  // namespace

ggml_type ggml_type_by_name(const char * name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        // removed types have no name
        const char * known = ggml_type_name((ggml_type) i);
        if (known && ggml_blck_size((ggml_type) i) > 0 && same_name(known, name)) {
            return (ggml_type) i;
        }
    }
    throw std::invalid_argument(std::string("ggml has no type '") + name + "'");
}

size_t row_bytes(ggml_type type, int64_t n_per_row) {
    if (n_per_row <= 0 || n_per_row % ggml_blck_size(type) != 0) {
        throw std::invalid_argument("rows of " + std::to_string(n_per_row) + " elements are no whole number of " +
                                    ggml_type_name(type) + " blocks of " + std::to_string(ggml_blck_size(type)));
    }
    return ggml_row_size(type, n_per_row);
}

void quantize_rows(ggml_type type, const float * src, void * dst, int64_t n_rows, int64_t n_per_row,
                   const float * imatrix, int n_threads) {
    if (std::find(std::begin(QUANTIZABLE), std::end(QUANTIZABLE), type) == std::end(QUANTIZABLE)) {
        throw std::invalid_argument(std::string("ggml does not quantize to ") + ggml_type_name(type));
    }
    const size_t bytes = row_bytes(type, n_per_row);
    if (ggml_is_quantized(type) &&
        !std::all_of(src, src + n_rows * n_per_row, [](float x) { return std::isfinite(x); })) {
        throw std::invalid_argument(std::string("values that are no finite numbers cannot be quantized to ") +
                                    ggml_type_name(type));
    }
    if (ggml_quantize_requires_imatrix(type) && !imatrix) {
        throw std::invalid_argument(std::string(ggml_type_name(type)) + " cannot be made without an importance matrix");
    }
    if (type == GGML_TYPE_F32) {
        memcpy(dst, src, bytes * n_rows);
        return;
    }
    ggml_quantize_init(type);  // the lookup tables of the IQ types, once, before the threads start
    for_rows(n_rows, n_threads, [=](int64_t first, int64_t count) {
        char * out = (char *) dst + first * bytes;
        const float * in = src + first * n_per_row;
        ggml_quantize_chunk(type, in, out, 0, count, n_per_row, imatrix);
    });
}

void dequantize_rows(ggml_type type, const void * src, float * dst, int64_t n_rows, int64_t n_per_row, int n_threads) {
    const size_t bytes = row_bytes(type, n_per_row);
    if (type == GGML_TYPE_F32) {
        memcpy(dst, src, bytes * n_rows);
        return;
    }
    const ggml_to_float_t to_float = ggml_get_type_traits(type)->to_float;
    if (!to_float) {
        throw std::invalid_argument(std::string("ggml cannot dequantize ") + ggml_type_name(type));
    }
    for_rows(n_rows, n_threads, [=](int64_t first, int64_t count) {
        to_float((const char *) src + first * bytes, dst + first * n_per_row, count * n_per_row);
    });
}

}  // namespace pyvllama
