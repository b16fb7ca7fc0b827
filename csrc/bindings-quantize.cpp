// Types of tensors, and rows of one as rows of another: no logic. See bindings.cpp.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "bindings.h"
#include "quantize.h"

namespace pyvllama {

using namespace nb::literals;

namespace {

using array_f32_2d = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using array_f32_1d = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using array_u8_2d = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

nb::ndarray<nb::numpy, uint8_t, nb::c_contig> quantize(array_f32_2d rows, const std::string & type,
                                                       std::optional<array_f32_1d> imatrix, int n_threads) {
    const ggml_type t = ggml_type_by_name(type.c_str());
    const int64_t n_rows = rows.shape(0), n_per_row = rows.shape(1);
    if (imatrix && (int64_t) imatrix->shape(0) != n_per_row) {
        throw std::invalid_argument("the importance matrix must have one value a column");
    }
    auto out = new_array<uint8_t>({ (size_t) n_rows, row_bytes(t, n_per_row) });
    const float * im = imatrix ? imatrix->data() : nullptr;
    {
        nb::gil_scoped_release release;
        quantize_rows(t, rows.data(), out.data(), n_rows, n_per_row, im, n_threads);
    }
    return out;
}

// rows of any type, as bytes
nb::ndarray<nb::numpy, uint8_t, nb::c_contig> convert(array_u8_2d rows, const std::string & src_type,
                                                      const std::string & type, std::optional<array_f32_1d> imatrix,
                                                      int n_threads) {
    const ggml_type from = ggml_type_by_name(src_type.c_str()), to = ggml_type_by_name(type.c_str());
    const int64_t n_rows = rows.shape(0), n_per_row = rows.shape(1) / ggml_type_size(from) * ggml_blck_size(from);
    if (rows.shape(1) % ggml_type_size(from) != 0) {
        throw std::invalid_argument("rows are no whole number of " + src_type + " blocks");
    }
    if (imatrix && (int64_t) imatrix->shape(0) != n_per_row) {
        throw std::invalid_argument("the importance matrix must have one value a column");
    }
    auto out = new_array<uint8_t>({ (size_t) n_rows, row_bytes(to, n_per_row) });
    const float * im = imatrix ? imatrix->data() : nullptr;
    {
        nb::gil_scoped_release release;
        convert_rows(from, rows.data(), to, out.data(), n_rows, n_per_row, im, n_threads);
    }
    return out;
}

nb::ndarray<nb::numpy, float, nb::c_contig> dequantize(array_u8_2d rows, const std::string & type, int n_threads) {
    const ggml_type t = ggml_type_by_name(type.c_str());
    const int64_t n_rows = rows.shape(0), n_per_row = rows.shape(1) / ggml_type_size(t) * ggml_blck_size(t);
    if (rows.shape(1) % ggml_type_size(t) != 0) {
        throw std::invalid_argument("rows are no whole number of " + type + " blocks");
    }
    auto out = new_array<float>({ (size_t) n_rows, (size_t) n_per_row });
    {
        nb::gil_scoped_release release;
        dequantize_rows(t, rows.data(), out.data(), n_rows, n_per_row, n_threads);
    }
    return out;
}

}  // namespace

void bind_quantize(nb::module_ & m) {
    m.def("quantize", &quantize, "rows"_a, "type"_a, nb::kw_only(), "imatrix"_a = nb::none(), "n_threads"_a = 1,
          "Quantize rows with ggml's kernels.\n\n"
          "Args:\n"
          "    rows: float32 [n_rows, n_per_row].\n"
          "    type: ggml's name of the type, e.g. 'q4_K'.\n"
          "    imatrix: float32 [n_per_row], importance of each column, or None.\n"
          "    n_threads: the result does not depend on it.\n"
          "Returns:\n"
          "    uint8 [n_rows, bytes of a row].\n"
          "Raises:\n"
          "    ValueError: unknown type, rows of no whole number of blocks, or a type that needs an imatrix.");
    m.def("convert", &convert, "rows"_a.noconvert(), "source_type"_a, "type"_a, nb::kw_only(), "imatrix"_a = nb::none(),
          "n_threads"_a = 1,
          "Rows of one type as rows of another.\n\n"
          "Args:\n"
          "    rows: uint8 [n_rows, bytes of a row] of the source's type.\n"
          "    source_type, type: ggml's names, e.g. 'bf16' and 'q4_K'.\n"
          "    imatrix: float32 [n_per_row], importance of each column, or None.\n"
          "    n_threads: the result does not depend on it.\n"
          "Returns:\n"
          "    uint8 [n_rows, bytes of a row].\n"
          "Raises:\n"
          "    ValueError: as quantize; numbers that are infinite or none, or too large for f16.");
    m.def("dequantize", &dequantize, "rows"_a.noconvert(), "type"_a, nb::kw_only(), "n_threads"_a = 1,
          "uint8 [n_rows, bytes of a row] of that type -> float32 [n_rows, n_per_row].");
    m.def(
        "type_size",
        [](const std::string & type) {
            const ggml_type t = ggml_type_by_name(type.c_str());
            return nb::make_tuple(ggml_blck_size(t), ggml_type_size(t));
        },
        "type"_a, "(elements, bytes) of a block of that type.");
}

}  // namespace pyvllama
