#include "vision-graph.h"

#include <algorithm>
#include <cmath>
#include <exception>

#include "errors.h"
#include "graph-compute.h"

namespace pyvllama {

vision_graph::vision_graph(const mllama_weights & weights, const vision_rows & rows, ggml_tensor * states,
                           importance_collector * collector)
    : weights_(weights),
      rows_(rows),
      n_embd_(weights.hparams().vision.n_embd),
      n_head_(weights.hparams().vision.n_head),
      n_embd_head_(n_embd_ / n_head_),
      eps_(weights.hparams().vision.layer_norm_eps),
      mask_form_(!weights.dev().is_cpu()),
      collector_(collector),
      own_(weights.kernels_on(weights.dev()).f32 && n_embd_head_ <= MAX_EMBD_HEAD) {
    const size_t n_layers = weights.local.size() + weights.global.size();
    const size_t n_intermediate = weights.hparams().vision.intermediate_layers.size();
    const size_t n_nodes = 96 * n_layers + (3 * n_intermediate + 16) * rows.n_tiles + 256;
    ctx_owner_.reset(
        ggml_init({ n_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false), nullptr, true }));
    ctx_ = ctx_owner_.get();
    graph_ = ggml_new_graph_custom(ctx_, n_nodes, false);
    ops_ = std::make_unique<tower_ops>(ctx_, weights.kernels_on(weights.dev()));
    build(states);
}

ggml_tensor * vision_graph::norm(ggml_tensor * x, const layer_norm & ln, float eps) {
    if (own_) {
        return ops_->norm(x, ln, eps, GGML_TYPE_F32);
    }
    return ggml_add(ctx_, ggml_mul(ctx_, ggml_norm(ctx_, x, eps), ln.weight), ln.bias);
}

// softmax(q k^T / sqrt(d) + key_bias) v; q [n_embd, n_q], k and v [n_embd, n_k]; weighted: with the key bias.
//
// K and V stay F32: with F16 ones ggml's CPU kernel accumulates in F16 where there are few rows. It takes masks in F16
// only, which would round log(n), so on the CPU the bias comes as one more dimension: q' = [q, 1], k' = [k,
// bias/scale]. GPU kernels know fixed head sizes only and round K to F16 anyway: there it is a mask.
ggml_tensor * vision_graph::attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, bool weighted) {
    const int64_t n_q = q->ne[1], n_k = k->ne[1];
    auto heads = [&](ggml_tensor * x, int64_t n) {  // [n_embd, n] -> [n_embd_head, n, n_head]
        return ggml_view_3d(ctx_, x, n_embd_head_, n, n_head_, x->nb[1], n_embd_head_ * ggml_element_size(x), 0);
    };
    ggml_tensor * qh = heads(q, n_q);
    ggml_tensor * kh = heads(k, n_k);
    if (weighted && !mask_form_) {
        qh = ggml_concat(ctx_, qh, ones_, 0);
        kh = ggml_concat(ctx_, kh, key_bias_, 0);
    }
    const float scale = 1.0f / std::sqrt((float) n_embd_head_);
    ggml_tensor * mask = weighted && mask_form_ ? mask_ : nullptr;
    ggml_tensor * out = ggml_flash_attn_ext(ctx_, qh, kh, heads(v, n_k), mask, scale, 0.0f, 0.0f);
    ggml_prec_set_acc(out, GGML_PREC_F32);
    return ggml_reshape_2d(ctx_, out, n_embd_, n_q);  // [n_embd_head, n_head, n_q]
}

ggml_tensor * vision_graph::layer(ggml_tensor * x, const vision_layer & l, bool last) {
    return !own_ ? layer_ggml(x, l) : in_bf16(l) ? layer_bf16(x, l, last) : layer_f32(x, l, last);
}

ggml_tensor * vision_graph::layer_ggml(ggml_tensor * x, const vision_layer & l) {
    const int64_t n_rows = rows_.n_rows(), n_real = rows_.n_real();
    auto part = [&](ggml_tensor * t, int64_t first, int64_t n) {
        return ggml_view_2d(ctx_, t, t->ne[0], n, t->nb[1], first * t->nb[1]);
    };
    ggml_tensor * h = norm(x, l.ln1, eps_);
    ggml_tensor * q = ggml_mul_mat(ctx_, l.q, h);
    ggml_tensor * k = ggml_mul_mat(ctx_, l.k, h);
    ggml_tensor * v = ggml_mul_mat(ctx_, l.v, h);
    // real rows see every row, padding rows see real rows only
    ggml_tensor * attn = attention(part(q, 0, n_real), k, v, rows_.n_stand_for > 1);
    if (n_rows > n_real) {
        ggml_tensor * pad = attention(part(q, n_real, n_rows - n_real), part(k, 0, n_real), part(v, 0, n_real), false);
        attn = ggml_concat(ctx_, attn, pad, 1);
    }
    attn = ggml_mul_mat(ctx_, l.o, attn);
    if (l.gate_attn != 1.0f) {
        attn = ggml_scale(ctx_, attn, l.gate_attn);
    }
    x = ggml_add(ctx_, x, attn);

    h = ggml_add(ctx_, ggml_mul_mat(ctx_, l.ffn_up, norm(x, l.ln2, eps_)), l.ffn_up_b);
    h = ggml_gelu_erf(ctx_, h);  // HF's "gelu" is the exact one
    h = ggml_add(ctx_, ggml_mul_mat(ctx_, l.ffn_down, h), l.ffn_down_b);
    if (l.gate_ffn != 1.0f) {
        h = ggml_scale(ctx_, h, l.gate_ffn);
    }
    return ggml_add(ctx_, x, h);
}

void vision_graph::build(ggml_tensor * states) {
    auto input = [&](ggml_type type, std::vector<int64_t> ne) {
        ggml_tensor * t = ggml_new_tensor(ctx_, type, (int) ne.size(), ne.data());
        ggml_set_input(t);
        return t;
    };
    const int64_t n_rows = rows_.n_rows(), n_real = rows_.n_real();
    patches_ = input(GGML_TYPE_F32, { weights_.patch_embd->ne[0], rows_.n_patch_rows() });
    embd_ = input(GGML_TYPE_F32, { n_embd_, rows_.n_patch_rows() });
    post_tile_ = input(GGML_TYPE_F32, { n_embd_, rows_.n_tiles_computed });
    tile_of_row_ = input(GGML_TYPE_I32, { n_rows });
    if (rows_.n_stand_for > 1 && !own_ && mask_form_) {
        mask_ = input(GGML_TYPE_F16, { n_rows, n_real });
    } else if (rows_.n_stand_for > 1 && !own_) {
        ones_ = input(GGML_TYPE_F32, { 1, n_real, n_head_ });
        key_bias_ = input(GGML_TYPE_F32, { 1, n_rows, n_head_ });
    }

    ggml_tensor * x = ggml_add(ctx_, ggml_mul_mat(ctx_, weights_.patch_embd, patches_), embd_);
    x = norm(x, weights_.pre_ln, LAYER_NORM_EPS_OUTER);
    if (n_rows > rows_.n_patch_rows()) {
        x = ggml_pad(ctx_, x, 0, (int) (n_rows - rows_.n_patch_rows()), 0, 0);  // zero rows
    }
    const std::vector<int> & wanted = weights_.hparams().vision.intermediate_layers;
    const bool project_in_bf16 = own_ && in_bf16(weights_.mm) && wanted.size() <= MAX_STACKED;
    std::vector<ggml_tensor *> intermediate(wanted.size());
    for (size_t i = 0; i < weights_.local.size(); ++i) {
        for (size_t j = 0; j < wanted.size(); ++j) {
            if (wanted[j] == (int) i) {
                intermediate[j] = project_in_bf16 ? ops_->to_bf16(x) : x;
                ggml_build_forward_expand(graph_, intermediate[j]);
            }
        }
        x = layer(x, weights_.local[i], false);
    }
    x = norm(x, weights_.post_ln, LAYER_NORM_EPS_OUTER);
    x = ggml_add(ctx_, x, ggml_get_rows(ctx_, post_tile_, tile_of_row_));
    for (const vision_layer & l : weights_.global) {
        x = layer(x, l, &l == &weights_.global.back());
    }
    project_in_bf16 ? project_bf16(x, intermediate, states) : project(x, intermediate, states);
}

// HF stacks the intermediate states behind the last state, interleaved: feature i*n + j is feature i of state j. One
// tile at a time, so that the stacked rows never exist for the whole image.
void vision_graph::project(ggml_tensor * last, const std::vector<ggml_tensor *> & intermediate, ggml_tensor * states) {
    const int64_t n_pos = rows_.n_positions, n = (int64_t) intermediate.size();
    for (int t = 0; t < rows_.n_tiles; ++t) {
        auto tile = [&](ggml_tensor * x) {
            return ggml_view_2d(ctx_, x, x->ne[0], n_pos, x->nb[1], t * n_pos * x->nb[1]);
        };
        ggml_tensor * stacked = nullptr;  // [n_embd, n_pos, n]
        for (ggml_tensor * s : intermediate) {
            ggml_tensor * one = ggml_reshape_3d(ctx_, tile(s), n_embd_, n_pos, 1);
            stacked = stacked ? ggml_concat(ctx_, stacked, one, 2) : one;
        }
        ggml_tensor * all = tile(last);
        if (stacked) {
            stacked = ggml_cont(ctx_, ggml_permute(ctx_, stacked, 1, 2, 0, 3));  // [n, n_embd, n_pos]
            all = ggml_concat(ctx_, all, ggml_reshape_2d(ctx_, stacked, n * n_embd_, n_pos), 0);
        }
        ggml_tensor * out = ggml_add(ctx_, ggml_mul_mat(ctx_, weights_.mm, all), weights_.mm_b);
        ggml_tensor * dst = ggml_view_2d(ctx_, states, states->ne[0], n_pos, states->nb[1], t * n_pos * states->nb[1]);
        ggml_build_forward_expand(graph_, ggml_cpy(ctx_, out, dst));
    }
}

void vision_graph::compute(ggml_backend_t backend, vision_input input, const progress_fn & on_node,
                           part_times * parts) {
    require_support(backend, graph_);
    scratch_.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend)));
    if (!ggml_gallocr_alloc_graph(scratch_.get(), graph_)) {
        throw backend_error(std::string("no memory on ") + ggml_backend_name(backend) + " for the vision graph");
    }
    auto set = [](ggml_tensor * t, const void * data) { ggml_backend_tensor_set(t, data, 0, ggml_nbytes(t)); };
    set(patches_, input.patches.data());
    set(embd_, input.embd.data());
    set(post_tile_, input.post_tile.data());
    const int n_rows = rows_.n_rows(), n_real = rows_.n_real();
    std::vector<int32_t> tile_of_row(n_rows);
    for (int r = 0; r < n_rows; ++r) {
        tile_of_row[r] = rows_.tile_of(r);
    }
    set(tile_of_row_, tile_of_row.data());
    set_own_key_bias(input.key_bias);
    if (mask_) {
        std::vector<ggml_fp16_t> mask((size_t) n_real * n_rows);
        ggml_fp32_to_fp16_row(input.key_bias.data(), mask.data(), n_rows);
        for (int r = 1; r < n_real; ++r) {
            std::copy_n(mask.begin(), n_rows, mask.begin() + (size_t) r * n_rows);
        }
        set(mask_, mask.data());
    } else if (key_bias_) {
        const std::vector<float> ones((size_t) n_real * n_head_, 1.0f);
        std::vector<float> bias;
        for (int h = 0; h < n_head_; ++h) {
            bias.insert(bias.end(), input.key_bias.begin(), input.key_bias.end());
        }
        for (float & b : bias) {
            b *= std::sqrt((float) n_embd_head_);  // the kernel multiplies by the scale
        }
        set(ones_, ones.data());
        set(key_bias_, bias.data());
    }
    // Real rows come first in every matrix, and only they are counted: they alone reach the text model. Padding rows
    // hold the same few states in every picture; a picture of one tile has three times as many of them, which would
    // drown what the picture shows.
    input = {};  // the graph has it: 48 MB of a large picture
    compute_graph(backend, graph_, on_node, { collector_, rows_.n_real() }, parts,
                  [this](const ggml_tensor * node) { weights_.drop_pages_read_by(node); });
}

size_t vision_graph::planned_bytes(const device & dev) const {
    const ggml_gallocr_ptr plan(ggml_gallocr_new(dev.default_buft()));
    size_t n_bytes = 0;
    ggml_gallocr_reserve_n_size(plan.get(), graph_, nullptr, nullptr, &n_bytes);
    return n_bytes;
}

size_t vision_graph::compute_bytes() const {
    return scratch_ ? ggml_gallocr_get_buffer_size(scratch_.get(), 0) : 0;
}

}  // namespace pyvllama
