#include "cross-attn-graph.h"

#include <algorithm>
#include <cmath>

namespace pyvllama {

namespace {

// Rows whose scores exist at the same time: 32 rows x 32 heads x 6404 keys are 26 MB.
constexpr int ROWS_PER_CHUNK = 32;

// Joins along a dimension, pairwise, so that each value is copied log(n) times.
ggml_tensor * concat_all(ggml_context * ctx, std::vector<ggml_tensor *> parts, int dim) {
    while (parts.size() > 1) {
        std::vector<ggml_tensor *> joined;
        for (size_t i = 0; i + 1 < parts.size(); i += 2) {
            joined.push_back(ggml_concat(ctx, parts[i], parts[i + 1], dim));
        }
        if (parts.size() % 2) {
            joined.push_back(parts.back());
        }
        parts = std::move(joined);
    }
    return parts[0];
}

struct attention_builder {
    ggml_context * ctx;
    const mllama_text_hparams & h;
    size_t j_cross;
    attention_form form;

    // q [n_embd_head, n_head, n_rows], normed -> [n_embd, n_rows]. No mask: all rows see all tokens of the images. So
    // the query heads that share a KV head are just more rows of that head.
    ggml_tensor * operator()(ggml_tensor * q, const image_group & images) const {
        const int64_t d = h.n_embd_head(), n_kv = h.n_head_kv, n_rows = q->ne[2], g = h.n_head / n_kv;
        // [d, g, n_kv, n_rows] -> [d, g*n_rows, n_kv]
        ggml_tensor * qf =
            n_rows == 1 ? ggml_reshape_3d(ctx, q, d, g, n_kv)
                        : ggml_cont_3d(ctx, ggml_permute(ctx, ggml_reshape_4d(ctx, q, d, g, n_kv, n_rows), 0, 1, 3, 2),
                                       d, g * n_rows, n_kv);
        const float scale = 1.0f / std::sqrt((float) d);
        if (form == attention_form::flash) {
            ggml_tensor * o =
                ggml_flash_attn_ext(ctx, qf, join(images, true), join(images, false), nullptr, scale, 0.0f, 0.0f);
            ggml_prec_set_acc(o, GGML_PREC_F32);  // [d, n_kv, g*n_rows]
            o = ggml_reshape_4d(ctx, o, d, n_kv, g, n_rows);
            return ggml_cont_2d(ctx, ggml_permute(ctx, o, 0, 2, 1, 3), h.n_embd, n_rows);
        }
        ggml_tensor * o = softmax(qf, images, scale);  // [d, g*n_rows, n_kv]
        if (n_rows == 1) {
            return ggml_reshape_2d(ctx, o, h.n_embd, 1);
        }
        o = ggml_reshape_4d(ctx, o, d, g, n_rows, n_kv);
        return ggml_cont_2d(ctx, ggml_permute(ctx, o, 0, 1, 3, 2), h.n_embd, n_rows);
    }

    // Several images: their scores are joined, not their keys and values, which are a hundred times larger.
    ggml_tensor * softmax(ggml_tensor * q, const image_group & images, float scale) const {
        std::vector<ggml_tensor *> scores;
        for (const image_states_ptr & image : images) {
            ggml_tensor * k = image->k[j_cross];
            scores.push_back(ggml_mul_mat(ctx, k, q));  // [n_tokens, g*n_rows, n_kv]
        }
        ggml_tensor * p = ggml_soft_max_ext(ctx, concat_all(ctx, scores, 0), nullptr, scale, 0.0f);
        ggml_tensor * out = nullptr;
        int64_t first = 0;
        for (const image_states_ptr & image : images) {
            ggml_tensor * part = p;
            if (images.size() > 1) {
                part =
                    ggml_view_3d(ctx, p, image->n_tokens(), p->ne[1], p->ne[2], p->nb[1], p->nb[2], first * p->nb[0]);
                part = ggml_cont(ctx, part);
                first += image->n_tokens();
            }
            ggml_tensor * o = ggml_mul_mat(ctx, image->v[j_cross], part);
            out = out ? ggml_add(ctx, out, o) : o;
        }
        return out;
    }

    ggml_tensor * join(const image_group & images, bool keys) const {
        std::vector<ggml_tensor *> parts;
        for (const image_states_ptr & image : images) {
            parts.push_back(keys ? image->k[j_cross] : image->v[j_cross]);
        }
        return concat_all(ctx, parts, 1);
    }
};

ggml_tensor * rms_norm(ggml_context * ctx, ggml_tensor * x, ggml_tensor * weight, float eps) {
    return ggml_mul(ctx, ggml_rms_norm(ctx, x, eps), weight);
}

}  // namespace

void build_image_states(ggml_context * ctx, ggml_cgraph * graph, const mllama_weights & weights, size_t j_cross,
                        ggml_tensor * states, const image_states & image, image_states_cpu * own) {
    const mllama_text_hparams & h = weights.hparams().text;
    const int64_t d = h.n_embd_head(), n_kv = h.n_head_kv, n_tokens = states->ne[1];
    const cross_layer & l = weights.cross[j_cross];
    const bool is_transposed = attention_form_on(weights.cross_dev(j_cross)) == attention_form::softmax;
    auto is_ours = [&](const ggml_tensor * weight) {
        return own && weights.in_bf16(weight, weights.cross_dev(j_cross));
    };
    if (is_ours(l.k)) {
        ggml_build_forward_expand(graph, own->keys(l.k, l.k_norm, h.rms_norm_eps, image.k[j_cross]));
    } else {
        ggml_tensor * k = ggml_reshape_3d(ctx, ggml_mul_mat(ctx, l.k, states), d, n_kv, n_tokens);
        k = ggml_permute(ctx, rms_norm(ctx, k, l.k_norm, h.rms_norm_eps), 0, 2, 1, 3);
        ggml_build_forward_expand(graph, ggml_cpy(ctx, k, image.k[j_cross]));
    }
    if (is_ours(l.v)) {
        ggml_build_forward_expand(graph, own->values(l.v, image.v[j_cross]));
    } else {
        ggml_tensor * v = ggml_reshape_3d(ctx, ggml_mul_mat(ctx, l.v, states), d, n_kv, n_tokens);
        v = is_transposed ? ggml_permute(ctx, v, 1, 2, 0, 3) : ggml_permute(ctx, v, 0, 2, 1, 3);
        ggml_build_forward_expand(graph, ggml_cpy(ctx, v, image.v[j_cross]));
    }
}

ggml_tensor * build_cross_attn_block(ggml_context * ctx, const mllama_weights & weights, size_t j_cross,
                                     ggml_tensor * x, const std::vector<row_segment> & segments,
                                     const std::vector<image_group> & groups, std::vector<ggml_tensor *> & views,
                                     cross_attn_cpu * own) {
    const cross_layer & l = weights.cross[j_cross];
    const mllama_text_hparams & h = weights.hparams().text;
    const int64_t n_rows = x->ne[1];
    const attention_form form = attention_form_on(weights.cross_dev(j_cross));
    const attention_builder attention{ ctx, h, j_cross, form };

    ggml_tensor * q = ggml_mul_mat(ctx, l.q, rms_norm(ctx, x, l.attn_norm, h.rms_norm_eps));
    q = rms_norm(ctx, ggml_reshape_3d(ctx, q, h.n_embd_head(), h.n_head, n_rows), l.q_norm, h.rms_norm_eps);
    const bool few_are_ours = own && own->takes_few(h.n_embd_head());
    const int min_rows = own ? own->min_rows(h.n_embd_head()) : 0;  // of attend()
    auto is_ours = [&](const row_segment & s) { return own && (few_are_ours || s.n_rows >= min_rows); };
    ggml_tensor * attn = nullptr;
    for (const row_segment & s : segments) {
        if (few_are_ours && s.n_rows < min_rows) {
            attn = own->attend_few(q, s.first, s.n_rows, groups[s.group], j_cross, attn);
        } else if (is_ours(s)) {
            attn = own->attend(q, s.first, s.n_rows, groups[s.group], j_cross, attn);
        }
    }
    std::vector<ggml_tensor *> parts;
    for (const row_segment & s : segments) {
        if (is_ours(s)) {
            continue;
        }
        const int chunk = form == attention_form::softmax ? ROWS_PER_CHUNK : s.n_rows;
        for (int i = 0; i < s.n_rows; i += chunk) {
            const int64_t n = std::min(chunk, s.n_rows - i);
            ggml_tensor * qs =
                n == n_rows ? q
                            : ggml_view_3d(ctx, q, q->ne[0], q->ne[1], n, q->nb[1], q->nb[2], (s.first + i) * q->nb[2]);
            ggml_tensor * part = attention(qs, groups[s.group]);
            if (attn) {
                attn = ggml_set_2d_inplace(ctx, attn, part, attn->nb[1], (s.first + i) * attn->nb[1]);
            } else {
                parts.push_back(part);
            }
        }
    }
    attn = attn ? attn : concat_all(ctx, parts, 1);
    // The gates scale the small operand in front of the matrix and the sums are made in place: no copy back is needed,
    // and CUDA computes matrix and sum as one kernel for a single row.
    x = ggml_add_inplace(ctx, x, ggml_mul_mat(ctx, l.o, ggml_scale(ctx, attn, l.gate_attn)));
    views.push_back(x);
    ggml_tensor * f = rms_norm(ctx, x, l.ffn_norm, h.rms_norm_eps);
    f = ggml_swiglu_split(ctx, ggml_mul_mat(ctx, l.ffn_gate, f), ggml_mul_mat(ctx, l.ffn_up, f));
    x = ggml_add_inplace(ctx, x, ggml_mul_mat(ctx, l.ffn_down, ggml_scale(ctx, f, l.gate_ffn)));
    views.push_back(x);
    return x;
}

size_t cross_attn_block_nodes(const mllama_text_hparams & hparams, int n_rows,
                              const std::vector<row_segment> & segments, const std::vector<image_group> & groups) {
    size_t n = 64 + (2 + 3 * (size_t) hparams.n_head_kv) * segments.size();
    for (const row_segment & s : segments) {
        n += (size_t) (std::min(n_rows, s.n_rows) / ROWS_PER_CHUNK + 1) * (16 + 6 * groups[s.group].size());
    }
    return n;
}

}  // namespace pyvllama
