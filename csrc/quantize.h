// Row-wise quantization with ggml's own kernels, on several threads. Rows are independent, so the result does not
// depend on the number of threads.
#pragma once

#include <cstdint>

#include "ggml.h"

namespace pyvllama {

// The type of that name ("f32", "f16", "bf16", "q8_0", "q4_K", ...; case does not matter).
// Throws std::invalid_argument that lists nothing but the name: the caller knows what it offered.
ggml_type ggml_type_by_name(const char * name);

// Bytes of a row of n_per_row elements. Throws std::invalid_argument if that is no whole number of blocks.
size_t row_bytes(ggml_type type, int64_t n_per_row);

// src, n_rows * row_bytes(src_type, n_per_row) bytes -> dst, n_rows * row_bytes(type, n_per_row) bytes. Rows of any
// type that ggml can widen to F32. Throws std::invalid_argument on types that cannot be had, on numbers that are
// infinite or none, and on numbers that F16 cannot hold. imatrix: [n_per_row] importances shared by all rows, or null.
void convert_rows(ggml_type src_type, const void * src, ggml_type type, void * dst, int64_t n_rows, int64_t n_per_row,
                  const float * imatrix, int n_threads);

// The same from F32.
void quantize_rows(ggml_type type, const float * src, void * dst, int64_t n_rows, int64_t n_per_row,
                   const float * imatrix, int n_threads);

// To F32, whatever the numbers are.
void dequantize_rows(ggml_type type, const void * src, float * dst, int64_t n_rows, int64_t n_per_row, int n_threads);

}  // namespace pyvllama
