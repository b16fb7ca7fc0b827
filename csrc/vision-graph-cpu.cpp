// The parts of the vision graph that our own kernels compute, on the CPU.
#include <algorithm>

#include "vision-graph.h"

namespace pyvllama {

namespace {

constexpr int64_t FFN_ROWS = 1608;  // at once: those of a tile of the real model

}

ggml_tensor * vision_graph::layer_f32(ggml_tensor * x, const vision_layer & l, bool last) {
    ggml_tensor * h = ops_->norm(x, l.ln1, eps_, GGML_TYPE_F32);
    ggml_tensor * k = ggml_mul_mat(ctx_, l.k, h);
    ggml_tensor * v = ggml_mul_mat(ctx_, l.v, h);
    if (last) {
        x = real_rows(x);
        h = real_rows(h);
    }
    ggml_tensor * attn = ops_->attention(ggml_mul_mat(ctx_, l.q, h), k, v, n_head_, own_key_bias(GGML_TYPE_F32),
                                         { rows_.n_real(), rows_.n_rows() });
    x = ops_->add(x, ggml_mul_mat(ctx_, l.o, attn), nullptr, l.gate_attn);
    // In parts and in place, as what is between the two matrices is four times as wide as x. From the last rows to the
    // first, so that the result can be a view of the last node: whoever reads it then waits for all.
    const int64_t n_part = collector_ ? x->ne[1] : FFN_ROWS;
    ggml_tensor * done = nullptr;
    for (int64_t first = (x->ne[1] - 1) / n_part * n_part; first >= 0; first -= n_part) {
        ggml_tensor * part =
            ggml_view_2d(ctx_, x, x->ne[0], std::min(n_part, x->ne[1] - first), x->nb[1], first * x->nb[1]);
        h = ggml_mul_mat(ctx_, l.ffn_up, ops_->norm(part, l.ln2, eps_, GGML_TYPE_F32));
        h = ggml_mul_mat(ctx_, l.ffn_down, ops_->gelu(h, l.ffn_up_b));
        done = ops_->add_in_place(part, h, l.ffn_down_b, l.gate_ffn, done);
        ggml_build_forward_expand(graph_, done);
    }
    return ggml_view_2d(ctx_, done, x->ne[0], x->ne[1], x->nb[1], 0);
}

ggml_tensor * vision_graph::layer_bf16(ggml_tensor * x, const vision_layer & l, bool last) {
    ggml_tensor * h = ops_->norm(x, l.ln1, eps_, GGML_TYPE_BF16);
    ggml_tensor * k = ops_->linear(h, l.k, {});
    ggml_tensor * v = ops_->linear(h, l.v, {});
    if (last) {
        x = real_rows(x);
        h = real_rows(h);
    }
    ggml_tensor * attn = ops_->attention(ops_->linear(h, l.q, {}), k, v, n_head_, own_key_bias(GGML_TYPE_BF16),
                                         { rows_.n_real(), rows_.n_rows() });
    linear_form add, activate;
    add.add_to = x;
    add.gate = l.gate_attn;
    x = ops_->linear(attn, l.o, add);
    activate.bias = l.ffn_up_b;
    activate.gelu = true;
    h = ops_->linear(ops_->norm(x, l.ln2, eps_, GGML_TYPE_BF16), l.ffn_up, activate);
    add.add_to = x;
    add.bias = l.ffn_down_b;
    add.gate = l.gate_ffn;
    return ops_->linear(h, l.ffn_down, add);
}

// As project(), with the intermediate states in bf16.
void vision_graph::project_bf16(ggml_tensor * last, const std::vector<ggml_tensor *> & intermediate,
                                ggml_tensor * states) {
    const int64_t n_pos = rows_.n_positions;
    ggml_tensor * panels = ops_->pack(weights_.mm);
    for (int t = 0; t < rows_.n_tiles; ++t) {
        auto tile = [&](ggml_tensor * x) {
            return ggml_view_2d(ctx_, x, x->ne[0], n_pos, x->nb[1], t * n_pos * x->nb[1]);
        };
        std::vector<ggml_tensor *> parts;
        for (ggml_tensor * s : intermediate) {
            parts.push_back(tile(s));
        }
        linear_form form;
        form.bias = weights_.mm_b;
        form.into = tile(states);
        ggml_build_forward_expand(graph_,
                                  ops_->product(ops_->stack(tile(last), parts), panels, weights_.mm->ne[1], form));
    }
}

bool vision_graph::in_bf16(const vision_layer & l) const {
    bool all = n_embd_head_ % 2 == 0;
    for (const ggml_tensor * weight : { l.q, l.k, l.v, l.o, l.ffn_up, l.ffn_down }) {
        all = all && in_bf16(weight);
    }
    return all;
}

ggml_tensor * vision_graph::real_rows(ggml_tensor * x) {
    return ggml_view_2d(ctx_, x, x->ne[0], rows_.n_real(), x->nb[1], 0);
}

// An input of the graph from its first use on.
ggml_tensor * vision_graph::own_key_bias(ggml_type type) {
    ggml_tensor *& t = type == GGML_TYPE_BF16 ? own_key_bias_bf16_ : own_key_bias_f32_;
    if (!t) {
        const std::vector<float> none((size_t) rows_.n_rows());
        const size_t n = ops_->key_bias(none, n_embd_head_, { rows_.n_real(), rows_.n_rows() }, type).size();
        t = ggml_new_tensor_1d(ctx_, GGML_TYPE_F32, (int64_t) n);
        ggml_set_input(t);
    }
    return t;
}

void vision_graph::set_own_key_bias(const std::vector<float> & log_weights) {
    for (ggml_type type : { GGML_TYPE_F32, GGML_TYPE_BF16 }) {
        if (ggml_tensor * t = type == GGML_TYPE_BF16 ? own_key_bias_bf16_ : own_key_bias_f32_) {
            const auto bias = ops_->key_bias(log_weights, n_embd_head_, { rows_.n_real(), rows_.n_rows() }, type);
            ggml_backend_tensor_set(t, bias.data(), 0, ggml_nbytes(t));
        }
    }
}

}  // namespace pyvllama
