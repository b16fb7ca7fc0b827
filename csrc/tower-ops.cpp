#include "tower-ops.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace pyvllama {

namespace {

constexpr int ROWS_AT_ONCE = 16;     // of functions of single rows
constexpr int PANELS_AT_ONCE = 10;   // of a product
constexpr int INPUTS_AT_ONCE = 256;  // of weights that are unpacked: a multiple of every type's block

template <typename T>
T * row(const ggml_tensor * t, int64_t i) {
    return (T *) ((char *) t->data + i * t->nb[1]);
}

std::vector<ggml_tensor *> given(std::initializer_list<ggml_tensor *> tensors) {
    std::vector<ggml_tensor *> some;
    for (ggml_tensor * t : tensors) {
        if (t) {
            some.push_back(t);
        }
    }
    return some;
}

template <typename F>
void each_row(const ggml_tensor * t, int unit, F && f) {
    const int64_t first = (int64_t) unit * ROWS_AT_ONCE;
    for (int64_t i = first; i < std::min(first + ROWS_AT_ONCE, t->ne[1]); ++i) {
        f(i);
    }
}

}  // namespace

ggml_tensor * tower_ops::norm(ggml_tensor * x, const layer_norm & ln, float eps, ggml_type type) {
    const cpu_kernels k = kernels_;
    auto run = [k, x, ln, eps](const ggml_tensor * dst, int unit) {
        std::vector<float> scratch(dst->type == GGML_TYPE_BF16 ? dst->ne[0] : 0);
        const float *weight = (const float *) ln.weight->data, *bias = (const float *) ln.bias->data;
        const int n = (int) dst->ne[0];
        each_row(dst, unit, [&](int64_t i) {
            if (dst->type == GGML_TYPE_BF16) {
                k.f32->layer_norm(row<float>(x, i), weight, bias, n, eps, scratch.data());
                k.bf16->from_f32(scratch.data(), n, row<uint16_t>(dst, i));
            } else {
                k.f32->layer_norm(row<float>(x, i), weight, bias, n, eps, row<float>(dst, i));
            }
        });
    };
    return node("norm", type, { x->ne[0], x->ne[1] }, { x, ln.weight, ln.bias },
                add_op(n_cuts(x->ne[1], ROWS_AT_ONCE), run));
}

ggml_tensor * tower_ops::to_bf16(ggml_tensor * x) {
    const bf16_kernels * k = kernels_.bf16;
    auto run = [k, x](const ggml_tensor * dst, int unit) {
        each_row(dst, unit, [&](int64_t i) { k->from_f32(row<float>(x, i), (int) dst->ne[0], row<uint16_t>(dst, i)); });
    };
    return node("round", GGML_TYPE_BF16, { x->ne[0], x->ne[1] }, { x }, add_op(n_cuts(x->ne[1], ROWS_AT_ONCE), run));
}

ggml_tensor * tower_ops::gelu(ggml_tensor * x, ggml_tensor * bias) {
    const f32_kernels * k = kernels_.f32;
    auto run = [k, bias](const ggml_tensor * dst, int unit) {
        each_row(dst, unit, [&](int64_t i) {
            float * y = row<float>(dst, i);
            k->bias_gelu(y, (const float *) bias->data, (int) dst->ne[0], y);
        });
    };
    return node_inplace("gelu", x, { bias }, add_op(n_cuts(x->ne[1], ROWS_AT_ONCE), run));
}

void * tower_ops::add_sum(ggml_tensor * x, ggml_tensor * y, ggml_tensor * bias, float gate) {
    auto run = [x, y, bias, gate](const ggml_tensor * dst, int unit) {
        each_row(dst, unit, [&](int64_t i) {
            const float *a = row<float>(x, i), *b = row<float>(y, i);
            float * out = row<float>(dst, i);
            for (int64_t c = 0; c < dst->ne[0]; ++c) {
                out[c] = a[c] + gate * (bias ? b[c] + ((const float *) bias->data)[c] : b[c]);
            }
        });
    };
    return add_op(n_cuts(x->ne[1], ROWS_AT_ONCE), run);
}

ggml_tensor * tower_ops::add(ggml_tensor * x, ggml_tensor * y, ggml_tensor * bias, float gate) {
    return node("add", GGML_TYPE_F32, { x->ne[0], x->ne[1] }, given({ x, y, bias }), add_sum(x, y, bias, gate));
}

ggml_tensor * tower_ops::add_in_place(ggml_tensor * x, ggml_tensor * y, ggml_tensor * bias, float gate,
                                      ggml_tensor * after) {
    return node_inplace("add", x, given({ y, bias, after }), add_sum(x, y, bias, gate));
}

ggml_tensor * tower_ops::pack(ggml_tensor * weight) {
    const bf16_kernels * k = kernels_.bf16;
    auto run = [k, weight](const ggml_tensor * dst, int unit) {
        const int64_t n_in = weight->ne[0], first = (int64_t) unit * GEMM_PANEL;
        const int n_out = (int) std::min<int64_t>(GEMM_PANEL, weight->ne[1] - first);
        uint16_t * panel = (uint16_t *) dst->data + first * n_in;
        if (weight->type == GGML_TYPE_BF16) {
            k->pack_weights(row<uint16_t>(weight, first), weight->nb[1] / 2, n_out, (int) n_in, panel);
            return;
        }
        const ggml_to_float_t unpack = ggml_get_type_traits(weight->type)->to_float;
        float values[INPUTS_AT_ONCE];
        alignas(64) uint16_t rounded[GEMM_PANEL * INPUTS_AT_ONCE];
        for (int64_t i = 0; i < n_in; i += INPUTS_AT_ONCE) {
            const int n = (int) std::min<int64_t>(INPUTS_AT_ONCE, n_in - i);
            for (int c = 0; c < n_out; ++c) {
                unpack(row<char>(weight, first + c) + ggml_row_size(weight->type, i), values, n);
                k->from_f32(values, n, rounded + (size_t) c * INPUTS_AT_ONCE);
            }
            k->pack_weights(rounded, INPUTS_AT_ONCE, n_out, n, panel + i * GEMM_PANEL);
        }
    };
    const int n_panels = n_cuts(weight->ne[1], GEMM_PANEL);
    return node("pack", GGML_TYPE_BF16, { weight->ne[0], (int64_t) n_panels * GEMM_PANEL }, { weight },
                add_op(n_panels, run));
}

ggml_tensor * tower_ops::product(ggml_tensor * x, ggml_tensor * panels, int64_t n_out, const linear_form & form) {
    const cpu_kernels k = kernels_;
    const int64_t n_rows = x->ne[1], n_in = x->ne[0];
    const int n_panels = n_cuts(n_out, GEMM_PANEL), n_groups = n_cuts(n_panels, PANELS_AT_ONCE);
    auto run = [=](const ggml_tensor * dst, int unit) {
        const int64_t first = (int64_t) (unit / n_groups) * GEMM_ROWS;
        const int n = (int) std::min<int64_t>(GEMM_ROWS, n_rows - first), group = unit % n_groups * PANELS_AT_ONCE;
        alignas(64) float product[GEMM_ROWS * GEMM_PANEL], activated[GEMM_PANEL];
        for (int p = group; p < std::min(group + PANELS_AT_ONCE, n_panels); ++p) {
            k.bf16->gemm(row<uint16_t>(x, first), x->nb[1] / 2, n, (int) n_in,
                         (const uint16_t *) panels->data + (size_t) p * GEMM_PANEL * n_in, product);
            const int64_t col = (int64_t) p * GEMM_PANEL;
            const int n_cols = (int) std::min<int64_t>(GEMM_PANEL, n_out - col);
            const float * bias = form.bias ? (const float *) form.bias->data + col : nullptr;
            for (int r = 0; r < n; ++r) {
                const float * c = product + r * GEMM_PANEL;
                if (dst->type == GGML_TYPE_BF16) {
                    if (form.gelu) {
                        k.f32->bias_gelu(c, bias, n_cols, activated);
                        c = activated;
                    }
                    k.bf16->from_f32(c, n_cols, row<uint16_t>(dst, first + r) + col);
                    continue;
                }
                float * out = row<float>(dst, first + r) + col;
                const float * before = form.add_to ? row<float>(form.add_to, first + r) + col : nullptr;
                for (int i = 0; i < n_cols; ++i) {
                    const float y = bias ? c[i] + bias[i] : c[i];
                    out[i] = before ? before[i] + form.gate * y : y;
                }
            }
        }
    };
    void * op = add_op((int64_t) n_cuts(n_rows, GEMM_ROWS) * n_groups, run);
    const std::vector<ggml_tensor *> args = given({ x, panels, form.bias, form.add_to });
    if (form.into) {
        return node_inplace("projector", form.into, args, op);
    }
    return node("product", form.add_to ? GGML_TYPE_F32 : GGML_TYPE_BF16, { n_out, n_rows }, args, op);
}

template <typename T>
ggml_tensor * tower_ops::attention_of(const attention_kernels<T> & kernels, ggml_tensor * q, ggml_tensor * k,
                                      ggml_tensor * v, int n_head, ggml_tensor * key_bias,
                                      const attention_rows & rows) {
    const attention_kernels<T> * a = &kernels;
    const int n_q = (int) q->ne[1], d = (int) q->ne[0] / n_head, n_panels = a->padded_keys(rows.n_rows) / a->panel;
    const size_t key_panel = (size_t) a->panel * d, value_panel = (size_t) a->panel * a->padded_embd(d);
    // Two nodes, so that k and v need not be there at once; and q, which ggml takes last, with neither.
    auto pack_keys = [=](const ggml_tensor * dst, int unit) {
        const int head = unit / n_panels, first = unit % n_panels * a->panel;
        a->pack_keys(row<T>(k, first) + head * d, k->nb[1] / sizeof(T), std::min(a->panel, rows.n_rows - first), d,
                     (T *) dst->data + unit * key_panel);
    };
    auto pack_values = [=](const ggml_tensor * dst, int unit) {
        const int head = unit / n_panels, first = unit % n_panels * a->panel;
        a->pack_values(row<T>(v, first) + head * d, v->nb[1] / sizeof(T), std::min(a->panel, rows.n_rows - first), d,
                       (T *) dst->data + unit * value_panel);
    };
    const int64_t n_units = (int64_t) n_head * n_panels;
    ggml_tensor * keys =
        node("pack heads", q->type, { (int64_t) key_panel, n_units }, { k }, add_op(n_units, pack_keys));
    ggml_tensor * values =
        node("pack heads", q->type, { (int64_t) value_panel, n_units }, { v }, add_op(n_units, pack_values));
    const int n_real_parts = n_cuts(rows.n_real, MAX_QUERIES);
    const int n_parts = n_real_parts + n_cuts(n_q - rows.n_real, MAX_QUERIES);
    auto run = [=](const ggml_tensor * dst, int unit) {
        const int head = unit / n_parts, i = unit % n_parts;
        const bool real = i < n_real_parts;
        const int first = real ? i * MAX_QUERIES : rows.n_real + (i - n_real_parts) * MAX_QUERIES;
        attention_part<T> part;
        part.q = row<T>(q, first) + head * d;
        part.q_stride = q->nb[1] / sizeof(T);
        part.n_q = std::min(MAX_QUERIES, (real ? rows.n_real : n_q) - first);
        part.k = (const T *) keys->data + (size_t) head * n_panels * key_panel;
        part.v = (const T *) values->data + (size_t) head * n_panels * value_panel;
        part.key_bias = (const float *) key_bias->data + (real ? 0 : a->padded_keys(rows.n_rows));
        part.n_k = real ? rows.n_rows : rows.n_real;
        part.n_embd_head = d;
        part.scale = 1.0f / std::sqrt((float) d);
        part.out = row<T>(dst, first) + head * d;
        part.out_stride = dst->nb[1] / sizeof(T);
        a->run(part);
    };
    return node("attention", q->type, { q->ne[0], n_q }, { keys, values, q, key_bias },
                add_op((int64_t) n_head * n_parts, run));
}

ggml_tensor * tower_ops::attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, int n_head,
                                   ggml_tensor * key_bias, const attention_rows & rows) {
    return q->type == GGML_TYPE_BF16 ? attention_of(kernels_.bf16->attention, q, k, v, n_head, key_bias, rows)
                                     : attention_of(kernels_.f32->attention, q, k, v, n_head, key_bias, rows);
}

std::vector<float> tower_ops::key_bias(const std::vector<float> & log_weights, int n_embd_head,
                                       const attention_rows & rows, ggml_type type) const {
    auto padded = [&](int n) {
        return type == GGML_TYPE_BF16 ? kernels_.bf16->attention.padded_keys(n)
                                      : kernels_.f32->attention.padded_keys(n);
    };
    const int n_all = padded(rows.n_rows);
    std::vector<float> bias(n_all + padded(rows.n_real), PADDING_BIAS);
    for (int i = 0; i < rows.n_rows; ++i) {
        const float b = log_weights[i] * std::sqrt((float) n_embd_head);  // the kernel multiplies by the scale
        bias[i] = b;
        if (i < rows.n_real) {
            bias[n_all + i] = b;
        }
    }
    return bias;
}

ggml_tensor * tower_ops::stack(ggml_tensor * last, const std::vector<ggml_tensor *> & others) {
    const bf16_kernels * k = kernels_.bf16;
    const int64_t n = last->ne[0], n_others = (int64_t) others.size();
    auto run = [=](const ggml_tensor * dst, int unit) {
        each_row(dst, unit, [&](int64_t i) {
            uint16_t * out = row<uint16_t>(dst, i);
            k->from_f32(row<float>(last, i), (int) n, out);
            for (int64_t j = 0; j < n_others; ++j) {
                const uint16_t * other = row<uint16_t>(others[j], i);
                for (int64_t c = 0; c < n; ++c) {
                    out[n + c * n_others + j] = other[c];
                }
            }
        });
    };
    std::vector<ggml_tensor *> args = { last };
    args.insert(args.end(), others.begin(), others.end());
    return node("stack", GGML_TYPE_BF16, { n * (1 + n_others), last->ne[1] }, args,
                add_op(n_cuts(last->ne[1], ROWS_AT_ONCE), run));
}

}  // namespace pyvllama
