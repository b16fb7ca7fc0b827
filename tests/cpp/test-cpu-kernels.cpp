// Every version of the tower's kernels that this CPU can run, against plain loops in double precision.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "check.h"
#include "cpu-kernels.h"
#include "errors.h"
#include "ggml.h"

using namespace pyvllama;

static std::mt19937 rng(7);

static std::vector<float> noise(size_t n, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> v(n);
    for (float & x : v) {
        x = normal(rng);
    }
    return v;
}

static uint16_t to_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return (uint16_t) ((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

static float value(float x) {
    return x;
}

static float value(uint16_t x) {
    const uint32_t u = (uint32_t) x << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

template <typename T>
static std::vector<T> as(const std::vector<float> & v) {
    std::vector<T> out(v.size());
    for (size_t i = 0; i < v.size(); ++i) {
        if constexpr (sizeof(T) == 2) {
            out[i] = to_bf16(v[i]);
        } else {
            out[i] = v[i];
        }
    }
    return out;
}

struct attention_case {
    int n_q, n_k, d;
    float size;      // of queries: scores are about that large
    int n_weighted;  // so many last keys have a weight
};

template <typename T>
static double attention_error(const attention_kernels<T> & kernels, const attention_case & c) {
    const int stride = 3 * c.d + 2, out_stride = c.d + 4;  // rows of a wider matrix
    const std::vector<T> rows = as<T>(noise((size_t) std::max(c.n_q, c.n_k) * stride, std::sqrt(c.size)));
    const int n_panels = kernels.padded_keys(c.n_k) / kernels.panel, padded = kernels.padded_embd(c.d);
    std::vector<T> k((size_t) n_panels * kernels.panel * c.d), v((size_t) n_panels * kernels.panel * padded);
    for (int i = 0; i < n_panels; ++i) {
        const int n = std::min(kernels.panel, c.n_k - i * kernels.panel);
        const T * first = rows.data() + (size_t) i * kernels.panel * stride;
        kernels.pack_keys(first + c.d, stride, n, c.d, k.data() + (size_t) i * kernels.panel * c.d);
        kernels.pack_values(first + 2 * c.d, stride, n, c.d, v.data() + (size_t) i * kernels.panel * padded);
    }
    std::vector<float> bias(kernels.padded_keys(c.n_k), PADDING_BIAS);
    const float scale = 1.0f / std::sqrt((float) c.d);
    for (int i = 0; i < c.n_k; ++i) {
        bias[i] = i < c.n_k - c.n_weighted ? 0.0f : std::log(3.0f) / scale;
    }
    const T untouched = as<T>({ 77.0f })[0];
    std::vector<T> out((size_t) c.n_q * out_stride, untouched);
    kernels.run({ rows.data(), (size_t) stride, c.n_q, k.data(), v.data(), bias.data(), c.n_k, c.d, scale, out.data(),
                  (size_t) out_stride });

    double error = 0, size = 0;
    for (int q = 0; q < c.n_q; ++q) {
        std::vector<double> score(c.n_k), want(c.d);
        double top = -INFINITY, sum = 0;
        for (int i = 0; i < c.n_k; ++i) {
            double dot = 0;
            for (int j = 0; j < c.d; ++j) {
                dot += (double) value(rows[(size_t) q * stride + j]) * value(rows[(size_t) i * stride + c.d + j]);
            }
            score[i] = dot * scale + (i < c.n_k - c.n_weighted ? 0.0 : std::log(3.0));
            top = std::max(top, score[i]);
        }
        for (int i = 0; i < c.n_k; ++i) {
            const double p = std::exp(score[i] - top);
            sum += p;
            for (int j = 0; j < c.d; ++j) {
                want[j] += p * value(rows[(size_t) i * stride + 2 * c.d + j]);
            }
        }
        for (int j = 0; j < c.d; ++j) {
            const double d = value(out[(size_t) q * out_stride + j]) - want[j] / sum;
            error += d * d;
            size += want[j] / sum * want[j] / sum;
        }
        for (int j = c.d; j < out_stride; ++j) {
            CHECK(out[(size_t) q * out_stride + j] == untouched);  // nothing beside its head
        }
    }
    return std::sqrt(error / size);
}

template <typename T>
static void test_attention(const attention_kernels<T> & kernels, double bound) {
    const int p = kernels.panel;
    const attention_case cases[] = {
        { 1, 1, 2, 1, 0 },           { 7, p - 1, 16, 1, 0 },   { 160, p, 80, 1, 0 },       { 5, p + 1, 80, 1, 3 },
        { 33, 6 * p + 5, 80, 1, 0 }, { 12, 1607, 80, 1, 800 }, { 160, 1609, 80, 30, 804 }, { 3, 700, 80, 300, 0 },
        { 11, 333, 34, 3, 50 },      { 9, 100, 128, 3, 0 },    { 6, 65, 96, 1, 65 },       { 4, 50, 10, 1, 0 },
        { 5, 40, 14, 1, 0 },
    };
    for (const attention_case & c : cases) {
        const double e = attention_error(kernels, c);
        printf("  attention %d x %d, %d: %.1e\n", c.n_q, c.n_k, c.d, e);
        CHECK(e < bound);
    }
}

static void test_rows(const f32_kernels & kernels) {
    for (int n : { 1, 3, 16, 37, 80, 1280 }) {
        const std::vector<float> x = noise(n, 3.0f), w = noise(n), b = noise(n);
        std::vector<float> y(n + 1, 77.0f);
        kernels.layer_norm(x.data(), w.data(), b.data(), n, 1e-5f, y.data());
        double mean = 0, var = 0;
        for (float v : x) {
            mean += (double) v / n;
        }
        for (float v : x) {
            var += (v - mean) * (v - mean) / n;
        }
        for (int i = 0; i < n; ++i) {
            CHECK(std::fabs((x[i] - mean) / std::sqrt(var + 1e-5) * w[i] + b[i] - y[i]) < 3e-6);
        }
        CHECK(y[n] == 77.0f);
    }
    std::vector<float> x, bias;
    for (double v = -40; v <= 40; v += 0.00173) {
        x.push_back((float) v);
        bias.push_back(0.0f);
    }
    for (float v : { 0.0f, 1e-30f, -1e-30f, 1e-6f, 3e38f, -3e38f }) {
        x.push_back(v);
        bias.push_back(0.0f);
    }
    x.push_back(1.5f);
    bias.push_back(-2.0f);
    std::vector<float> y(x.size() + 1, 77.0f);
    kernels.bias_gelu(x.data(), bias.data(), (int) x.size(), y.data());
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        const double v = (double) x[i] + bias[i], want = 0.5 * v * std::erfc(-v / std::sqrt(2.0));
        worst = std::max(worst, std::fabs(y[i] - want) / std::max(std::fabs(v), 1e-30));
    }
    printf("  gelu: %.1e of |x|\n", worst);
    CHECK(worst < 3e-7);
    CHECK(y[x.size()] == 77.0f);
}

// Bytes of numbers as a type stores them; values: what they then are.
static std::vector<char> stored_rows(stored type, int n_rows, int n, size_t stride, std::vector<float> & values) {
    const ggml_type types[] = { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0 };
    const ggml_type t = types[(int) type];
    const std::vector<float> numbers = noise((size_t) n_rows * n);
    values = numbers;
    std::vector<char> rows((n_rows - 1) * stride + ggml_row_size(t, n));  // nothing behind the last: sanitizers see
    for (int i = 0; i < n_rows; ++i) {
        const float * from = numbers.data() + (size_t) i * n;
        char * to = rows.data() + i * stride;
        if (t == GGML_TYPE_F32) {
            memcpy(to, from, n * sizeof(float));
        } else {
            ggml_quantize_chunk(t, from, to, 0, 1, n, nullptr);
            ggml_get_type_traits(t)->to_float(to, values.data() + (size_t) i * n, n);
        }
    }
    return rows;
}

static void test_few(const f32_kernels & kernels) {
    struct few_case {
        int n_keys, d, n_q;
        stored k, v;
        float scale;
    };
    double worst = 0;
    for (auto [n_keys, d, n_q, k_type, v_type, scale] : {
             few_case{ 1, 16, 1, stored::f16, stored::f16, 0.25f },
             { 3, 48, 3, stored::f16, stored::f16, 0.1f },
             { 16, 16, 2, stored::f32, stored::f32, 0.2f },
             { 33, 128, 4, stored::bf16, stored::bf16, 0.1f },
             { 1024, 128, 4, stored::f16, stored::f16, 1.0f },
             { 801, 128, 7, stored::q8_0, stored::f16, 0.09f },
             { 255, 32, 9, stored::q8_0, stored::f16, 3.0f },
             { 100, 80, 6, stored::f32, stored::f32, 0.1f },
         }) {
        // values: a row for each number of a head, part of a longer one
        const size_t k_stride =
            k_type == stored::q8_0 ? (size_t) d / 32 * 34 : d * (k_type == stored::f32 ? 4 : 2) + 6 * sizeof(float);
        const size_t v_stride = (size_t) n_keys * (v_type == stored::f32 ? 4 : 2) + 12;
        std::vector<float> k, v;
        const std::vector<char> keys = stored_rows(k_type, n_keys, d, k_stride, k),
                                rows = stored_rows(v_type, d, n_keys, v_stride, v);
        const std::vector<float> q = noise((size_t) n_q * d);
        std::vector<float> out((size_t) n_q * (d + 2) + 1, 77.0f);
        kernels.few({ keys.data(), k_stride, k_type, rows.data(), v_stride, v_type, n_keys, d, q.data(), n_q, scale,
                      out.data() });
        CHECK(out.back() == 77.0f);
        for (int j = 0; j < n_q; ++j) {
            std::vector<double> score(n_keys);
            for (int i = 0; i < n_keys; ++i) {
                for (int c = 0; c < d; ++c) {
                    score[i] += (double) k[(size_t) i * d + c] * q[(size_t) j * d + c] * scale * 1.4426950408889634;
                }
            }
            const float * got = out.data() + (size_t) j * (d + 2);
            const double top = *std::max_element(score.begin(), score.end());
            CHECK(std::fabs(got[d] - top) < 1e-5 * (1.0 + std::fabs(top)));
            double sum = 0;
            std::vector<double> want(d);
            for (int i = 0; i < n_keys; ++i) {
                const double p = std::exp2(score[i] - got[d]);
                sum += p;
                for (int c = 0; c < d; ++c) {
                    want[c] += p * v[(size_t) c * n_keys + i];
                }
            }
            worst = std::max(worst, std::fabs(got[d + 1] - sum) / sum);
            for (int c = 0; c < d; ++c) {
                worst = std::max(worst, std::fabs(got[c] - want[c]) / sum);
            }
        }
    }
    printf("  few queries: %.1e\n", worst);
    CHECK(worst < 2e-5);
}

static void test_gemm(const bf16_kernels & kernels) {
    for (auto [n_rows, n_in, n_out] : { std::array<int, 3>{ 1, 2, 1 },
                                        { 5, 34, 64 },
                                        { 96, 1280, 64 },
                                        { 7, 2600, 10 },
                                        { 13, 300, 63 },
                                        { 6, 550, 64 } }) {
        const std::vector<uint16_t> a = as<uint16_t>(noise((size_t) n_rows * (n_in + 6))),
                                    w = as<uint16_t>(noise((size_t) n_out * (n_in + 2)));
        std::vector<uint16_t> panel((size_t) n_in * GEMM_PANEL);
        std::vector<float> c((size_t) n_rows * GEMM_PANEL + 1, 77.0f);
        kernels.pack_weights(w.data(), n_in + 2, n_out, n_in, panel.data());
        std::vector<uint16_t> in_parts(panel.size());
        for (int i = 0; i < n_in; i += 256) {  // as the tower does
            kernels.pack_weights(w.data() + i, n_in + 2, n_out, std::min(256, n_in - i),
                                 in_parts.data() + (size_t) i * GEMM_PANEL);
        }
        CHECK(in_parts == panel);
        kernels.gemm(a.data(), n_in + 6, n_rows, n_in, panel.data(), c.data());
        CHECK(c.back() == 77.0f);
        for (int r = 0; r < n_rows; ++r) {
            for (int o = 0; o < GEMM_PANEL; ++o) {
                double want = 0;
                for (int i = 0; i < n_in && o < n_out; ++i) {
                    want += (double) value(a[(size_t) r * (n_in + 6) + i]) * value(w[(size_t) o * (n_in + 2) + i]);
                }
                CHECK(std::fabs(c[(size_t) r * GEMM_PANEL + o] - want) < 2e-6 * n_in);
            }
        }
    }
    std::vector<float> x = noise(1001, 100.0f);
    x[3] = 0.0f;
    x[4] = 1.00390625f;  // a tie: to even
    x[5] = 1.01171875f;
    std::vector<uint16_t> y(x.size() + 1, 77);
    kernels.from_f32(x.data(), (int) x.size(), y.data());
    for (size_t i = 0; i < x.size(); ++i) {
        CHECK(y[i] == to_bf16(x[i]));
    }
    CHECK(y[x.size()] == 77);
}

int main() {
    const std::vector<cpu_kernels> all = all_cpu_kernels();
    CHECK(all.back().name() == "ggml");
    for (const cpu_kernels & kernels : all) {
        printf("%s\n", kernels.name().c_str());
        if (kernels.bf16) {
            test_attention(kernels.bf16->attention, 6e-3);
            test_gemm(*kernels.bf16);
        } else if (kernels.f32) {
            test_attention(kernels.f32->attention, 2e-5);
            test_rows(*kernels.f32);
            CHECK((kernels.f32->few == nullptr) == (kernels.name() == "baseline"));
            if (kernels.f32->few) {
                test_few(*kernels.f32);
            }
        }
    }
    setenv("PYVLLAMA_CPU_KERNELS", "ggml", 1);
    CHECK(!choose_cpu_kernels().f32);
    setenv("PYVLLAMA_CPU_KERNELS", "abacus", 1);
    THROWS(choose_cpu_kernels(), config_error, "abacus");
    setenv("PYVLLAMA_CPU_KERNELS", "", 1);
    CHECK(choose_cpu_kernels().name() == all.front().name());
    return summary("cpu-kernels");
}
