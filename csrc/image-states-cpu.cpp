#include "image-states-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

namespace pyvllama {

namespace {

constexpr int PARTS = 16;  // sums of a dot product that are added up at the end, so that the compiler takes vectors

// y = x / rms(x) * weight
void rms_norm(const float * x, const float * weight, int n, float eps, float * y) {
    float sums[PARTS] = {}, sum = 0;
    int i = 0;
    for (; i + PARTS <= n; i += PARTS) {
        for (int j = 0; j < PARTS; ++j) {
            sums[j] += x[i + j] * x[i + j];
        }
    }
    for (; i < n; ++i) {
        sum += x[i] * x[i];
    }
    for (float s : sums) {
        sum += s;
    }
    const float scale = 1.0f / std::sqrt(sum / (float) n + eps);
    for (i = 0; i < n; ++i) {
        y[i] = x[i] * scale * weight[i];
    }
}

}  // namespace

void image_states_cpu::round(ggml_type type, const float * x, int n, void * y) const {
    switch (type) {
        case GGML_TYPE_F32:
            memcpy(y, x, (size_t) n * sizeof(float));
            break;
        case GGML_TYPE_F16:
            kernels_.to_f16(x, n, (uint16_t *) y);
            break;
        case GGML_TYPE_BF16:
            kernels_.from_f32(x, n, (uint16_t *) y);
            break;
        default:
            ggml_get_type_traits(type)->from_float_ref(x, y, n);
    }
}

ggml_tensor * image_states_cpu::product(ggml_tensor * weight, int n_embd_head, ggml_tensor * into,
                                        std::vector<ggml_tensor *> args, const write_fn & write) {
    const bf16_kernels * k = &kernels_;
    const ggml_tensor *x = states_, *panels = ops_.pack(weight);
    const int d = n_embd_head, n_in = (int) x->ne[0], n_rows = (int) x->ne[1], n_head = (int) weight->ne[1] / d;
    const int n_heads = std::min(n_head, std::lcm(d, GEMM_PANEL) / d);  // of a unit: their panels are theirs alone
    const int n_groups = n_cuts(n_head, n_heads), n_panels = n_cuts((int64_t) n_heads * d, GEMM_PANEL);
    const int n_panels_all = n_cuts(weight->ne[1], GEMM_PANEL);
    auto run = [=](const ggml_tensor *, int unit) {
        const int first = unit / n_groups * GEMM_ROWS, n = std::min(GEMM_ROWS, n_rows - first);
        const int group = unit % n_groups, first_panel = group * n_panels;
        std::vector<float> sums((size_t) n_panels * GEMM_PANEL * GEMM_ROWS), head((size_t) GEMM_ROWS * d);
        for (int p = 0; p < std::min(n_panels, n_panels_all - first_panel); ++p) {
            k->gemm((const uint16_t *) ((const char *) x->data + first * x->nb[1]), x->nb[1] / 2, n, n_in,
                    (const uint16_t *) panels->data + (size_t) (first_panel + p) * GEMM_PANEL * n_in,
                    sums.data() + (size_t) p * GEMM_PANEL * GEMM_ROWS);
        }
        for (int h = 0; h < std::min(n_heads, n_head - group * n_heads); ++h) {
            for (int c = 0, n_cols; c < d; c += n_cols) {  // panel by panel
                const int at = h * d + c, in_panel = at % GEMM_PANEL;
                n_cols = std::min(GEMM_PANEL - in_panel, d - c);
                const float * from = sums.data() + (size_t) (at / GEMM_PANEL) * GEMM_PANEL * GEMM_ROWS + in_panel;
                for (int r = 0; r < n; ++r) {
                    std::copy_n(from + (size_t) r * GEMM_PANEL, n_cols, head.data() + (size_t) r * d + c);
                }
            }
            write(first, n, group * n_heads + h, head.data());
        }
    };
    args.insert(args.begin(), { states_, (ggml_tensor *) panels });
    return node_inplace("keys and values", into, args, add_op((int64_t) n_cuts(n_rows, GEMM_ROWS) * n_groups, run));
}

ggml_tensor * image_states_cpu::keys(ggml_tensor * weight, ggml_tensor * norm, float eps, ggml_tensor * k) {
    const int d = (int) k->ne[0];
    return product(weight, d, k, { norm }, [=](int first, int n, int head, const float * sums) {
        std::vector<float> normed(d);
        for (int r = 0; r < n; ++r) {
            rms_norm(sums + (size_t) r * d, (const float *) norm->data, d, eps, normed.data());
            round(k->type, normed.data(), d, (char *) k->data + head * k->nb[2] + (first + r) * k->nb[1]);
        }
    });
}

ggml_tensor * image_states_cpu::values(ggml_tensor * weight, ggml_tensor * v) {
    const int d = (int) v->ne[1];
    return product(weight, d, v, {}, [=](int first, int n, int head, const float * sums) {
        float column[GEMM_ROWS];
        for (int c = 0; c < d; ++c) {
            for (int r = 0; r < n; ++r) {
                column[r] = sums[(size_t) r * d + c];
            }
            round(v->type, column, n, (char *) v->data + head * v->nb[2] + c * v->nb[1] + first * v->nb[0]);
        }
    });
}

}  // namespace pyvllama
