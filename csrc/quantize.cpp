#include "quantize.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <functional>
#include <iterator>
#include <mutex>
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

// Elements that a thread takes at a time: small enough for its cache, as F32 and as what it becomes.
constexpr int64_t CHUNK_ELEMENTS = 1 << 16;
constexpr float F16_MAX = 65504.0f;

// work(first, count) over n_rows, chunk by chunk, whichever thread is free. Where no more threads are to be had, with
// fewer. The first exception of a worker is rethrown here.
void for_rows(int64_t n_rows, int64_t n_per_row, int n_threads, const std::function<void(int64_t, int64_t)> & work) {
    const int64_t chunk = std::max<int64_t>(1, CHUNK_ELEMENTS / n_per_row);
    const int64_t n = std::max<int64_t>(1, std::min<int64_t>(n_threads, (n_rows + chunk - 1) / chunk));
    std::atomic<int64_t> next{ 0 };
    std::mutex mutex;
    std::exception_ptr failure;
    auto worker = [&] {
        try {
            for (int64_t first; (first = next.fetch_add(chunk)) < n_rows;) {
                work(first, std::min(chunk, n_rows - first));
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            failure = std::current_exception();
            next = n_rows;
        }
    };
    std::vector<std::thread> threads;
    threads.reserve((size_t) n);
    for (int64_t i = 1; i < n; ++i) {
        try {
            threads.emplace_back(worker);
        } catch (const std::system_error &) {
            break;
        }
    }
    worker();
    for (auto & t : threads) {
        t.join();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
}

// Infinite and not-a-number have all exponent bits set; in integers the loop is vectorized.
bool all_finite(const float * x, int64_t n) {
    uint32_t found = 0;
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits;
        memcpy(&bits, x + i, sizeof(bits));
        found |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return !found;
}

float max_abs(const float * x, int64_t n) {
    float m = 0;
    for (int64_t i = 0; i < n; ++i) {
        m = std::max(m, std::fabs(x[i]));
    }
    return m;
}

void check_values(const float * x, int64_t n, ggml_type type) {
    if (!all_finite(x, n)) {
        throw std::invalid_argument(std::string("numbers that are infinite or none cannot be converted to ") +
                                    ggml_type_name(type));
    }
    if (type == GGML_TYPE_F16 && max_abs(x, n) > F16_MAX) {
        throw std::invalid_argument("numbers beyond 65504, the largest of f16");
    }
}

// The function that widens a type to F32; null for F32 itself.
ggml_to_float_t widening(ggml_type type) {
    if (type == GGML_TYPE_F32) {
        return nullptr;
    }
    const ggml_to_float_t to_float = ggml_get_type_traits(type)->to_float;
    if (!to_float) {
        throw std::invalid_argument(std::string("ggml cannot dequantize ") + ggml_type_name(type));
    }
    return to_float;
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

void convert_rows(ggml_type src_type, const void * src, ggml_type type, void * dst, int64_t n_rows, int64_t n_per_row,
                  const float * imatrix, int n_threads) {
    if (std::find(std::begin(QUANTIZABLE), std::end(QUANTIZABLE), type) == std::end(QUANTIZABLE)) {
        throw std::invalid_argument(std::string("ggml does not quantize to ") + ggml_type_name(type));
    }
    const size_t src_bytes = row_bytes(src_type, n_per_row), bytes = row_bytes(type, n_per_row);
    if (ggml_quantize_requires_imatrix(type) && !imatrix) {
        throw std::invalid_argument(std::string(ggml_type_name(type)) + " cannot be made without an importance matrix");
    }
    const ggml_to_float_t to_float = widening(src_type);
    ggml_quantize_init(type);  // the lookup tables of the IQ types, once, before the threads start
    for_rows(n_rows, n_per_row, n_threads, [=](int64_t first, int64_t count) {
        const void * in = (const char *) src + first * src_bytes;
        std::vector<float> widened;
        if (to_float) {
            widened.resize((size_t) (count * n_per_row));
            to_float(in, widened.data(), count * n_per_row);
        }
        const float * values = to_float ? widened.data() : (const float *) in;
        check_values(values, count * n_per_row, type);
        void * out = (char *) dst + first * bytes;
        if (type == GGML_TYPE_F32) {
            memcpy(out, values, bytes * count);
        } else {
            ggml_quantize_chunk(type, values, out, 0, count, n_per_row, imatrix);
        }
    });
}

void quantize_rows(ggml_type type, const float * src, void * dst, int64_t n_rows, int64_t n_per_row,
                   const float * imatrix, int n_threads) {
    convert_rows(GGML_TYPE_F32, src, type, dst, n_rows, n_per_row, imatrix, n_threads);
}

void dequantize_rows(ggml_type type, const void * src, float * dst, int64_t n_rows, int64_t n_per_row, int n_threads) {
    const size_t bytes = row_bytes(type, n_per_row);
    const ggml_to_float_t to_float = widening(type);
    if (!to_float) {
        memcpy(dst, src, bytes * n_rows);
        return;
    }
    for_rows(n_rows, n_per_row, n_threads, [=](int64_t first, int64_t count) {
        to_float((const char *) src + first * bytes, dst + first * n_per_row, count * n_per_row);
    });
}

}  // namespace pyvllama
