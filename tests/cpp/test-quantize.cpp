// Quantization does not depend on the thread count, and refuses what ggml would abort on.
#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "quantize.h"

using namespace pyvllama;

int main() {
    const int64_t n_rows = 300, n_per_row = 512;
    std::vector<float> rows(n_rows * n_per_row);
    std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    for (float & x : rows) {
        x = normal(rng);
    }
    struct {
        const char * name;
        double max_error;  // relative L2 error of the round trip
    } cases[] = {
        { "f32", 0 }, { "f16", 5e-4 }, { "bf16", 4e-3 }, { "q8_0", 1e-2 }, { "Q6_K", 3e-2 }, { "q4_K", 1e-1 }
    };
    for (const auto & c : cases) {
        const ggml_type type = ggml_type_by_name(c.name);
        std::vector<uint8_t> one(row_bytes(type, n_per_row) * n_rows), two(one.size());
        quantize_rows(type, rows.data(), one.data(), n_rows, n_per_row, nullptr, 1);
        quantize_rows(type, rows.data(), two.data(), n_rows, n_per_row, nullptr, 3);
        CHECK(one == two);
        std::vector<float> back(rows.size());
        dequantize_rows(type, one.data(), back.data(), n_rows, n_per_row, 2);
        double error = 0, norm = 0;
        for (size_t i = 0; i < rows.size(); ++i) {
            error += (double) (rows[i] - back[i]) * (rows[i] - back[i]);
            norm += (double) rows[i] * rows[i];
        }
        CHECK(std::sqrt(error / norm) <= c.max_error);
    }
    THROWS(ggml_type_by_name("q9_9"), std::invalid_argument, "q9_9");
    THROWS(row_bytes(GGML_TYPE_Q4_K, 257), std::invalid_argument, "blocks of 256");
    std::vector<uint8_t> out(1 << 20);
    THROWS(quantize_rows(GGML_TYPE_IQ2_XXS, rows.data(), out.data(), 1, 256, nullptr, 1), std::invalid_argument,
           "importance");
    for (const char * name : { "q8_1", "q8_K", "i8", "f64" }) {
        const ggml_type type = ggml_type_by_name(name);
        THROWS(quantize_rows(type, rows.data(), out.data(), 1, 256, nullptr, 1), std::invalid_argument,
               "does not quantize");
    }
    rows[300] = NAN;
    THROWS(quantize_rows(GGML_TYPE_Q4_K, rows.data(), out.data(), 2, 256, nullptr, 1), std::invalid_argument,
           "infinite or none");
    THROWS(quantize_rows(GGML_TYPE_Q4_K, rows.data(), out.data(), 200, 512, nullptr, 3), std::invalid_argument,
           "infinite or none");
    rows[300] = 65536;
    THROWS(quantize_rows(GGML_TYPE_F16, rows.data(), out.data(), 2, 256, nullptr, 1), std::invalid_argument, "65504");
    rows[300] = 65504;
    quantize_rows(GGML_TYPE_F16, rows.data(), out.data(), 2, 256, nullptr, 1);

    // any type as a source: as widened first and quantized then
    std::vector<uint8_t> half(row_bytes(GGML_TYPE_BF16, 512) * n_rows), direct(row_bytes(GGML_TYPE_Q4_K, 512) * n_rows),
        twice(direct.size());
    std::vector<float> wide(rows.size());
    convert_rows(GGML_TYPE_F32, rows.data(), GGML_TYPE_BF16, half.data(), n_rows, 512, nullptr, 2);
    convert_rows(GGML_TYPE_BF16, half.data(), GGML_TYPE_Q4_K, direct.data(), n_rows, 512, nullptr, 3);
    dequantize_rows(GGML_TYPE_BF16, half.data(), wide.data(), n_rows, 512, 1);
    quantize_rows(GGML_TYPE_Q4_K, wide.data(), twice.data(), n_rows, 512, nullptr, 1);
    CHECK(direct == twice);
    return summary("quantize");
}
