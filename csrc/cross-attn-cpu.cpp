#include "cross-attn-cpu.h"

#include <algorithm>
#include <cmath>

namespace pyvllama {

namespace {

// KV heads whose keys and values are unpacked at the same time: of 6404 image tokens 13 MB.
constexpr int HEADS_AT_ONCE = 2;

// n elements from a row of any type.
void unpack(const ggml_tensor * t, const char * row, int64_t first, int n, float * out) {
    row += ggml_row_size(t->type, first);
    if (t->type == GGML_TYPE_F32) {
        std::copy_n((const float *) row, n, out);
    } else {
        ggml_get_type_traits(t->type)->to_float(row, out, n);
    }
}

constexpr int KEYS_AT_ONCE = 256;  // of scores(): 64 KiB of keys

}  // namespace

bool cross_attn_cpu::takes_keys(const ggml_tensor * k) const {
    return kernels_.f16_scores && k->type == GGML_TYPE_F16 && k->ne[0] % 16 == 0;
}

ggml_tensor * cross_attn_cpu::scores(ggml_tensor * k, ggml_tensor * q) {
    const int d = (int) k->ne[0], n_keys = (int) k->ne[1], n_q = (int) q->ne[1], n_parts = n_cuts(n_keys, KEYS_AT_ONCE);
    const auto f16_scores = kernels_.f16_scores;
    auto run = [=](const ggml_tensor * dst, int unit) {
        const int head = unit / n_parts, first = unit % n_parts * KEYS_AT_ONCE;
        f16_scores((const uint16_t *) ((const char *) k->data + head * k->nb[2] + first * k->nb[1]),
                   k->nb[1] / sizeof(uint16_t), std::min(KEYS_AT_ONCE, n_keys - first), d,
                   (const float *) ((const char *) q->data + head * q->nb[2]), n_q,
                   (float *) ((char *) dst->data + head * dst->nb[2]) + first, dst->nb[1] / sizeof(float));
    };
    const int n_kv = (int) k->ne[2];
    return node("scores", GGML_TYPE_F32, { n_keys, n_q, n_kv }, { k, q }, add_op(n_kv * n_parts, run));
}

// Keys [d, n_tokens, n_kv] or values [n_tokens, d, n_kv] of some heads -> panels of one head after another, those of
// the first image first.
ggml_tensor * cross_attn_cpu::pack(const std::vector<ggml_tensor *> & parts, bool keys, int first_head, int n_heads) {
    const attention_kernels<float> & a = kernels_.attention;
    const int d = (int) parts[0]->ne[keys ? 0 : 1];
    struct panel {
        const ggml_tensor * t;
        int first, n;
    };
    std::vector<panel> panels;
    for (const ggml_tensor * t : parts) {
        const int n_tokens = (int) t->ne[keys ? 1 : 0];
        for (int i = 0; i < n_tokens; i += a.panel) {
            panels.push_back({ t, i, std::min(a.panel, n_tokens - i) });
        }
    }
    const int n_panels = (int) panels.size();
    const size_t size = (size_t) a.panel * (keys ? d : a.padded_embd(d));
    auto run = [=](const ggml_tensor * dst, int unit) {
        const panel & p = panels[unit % n_panels];
        const char * head = (const char *) p.t->data + (size_t) (first_head + unit / n_panels) * p.t->nb[2];
        std::vector<float> rows((size_t) a.panel * d), column(a.panel);
        float * out = (float *) dst->data + (size_t) unit * size;
        if (keys) {
            for (int i = 0; i < p.n; ++i) {
                unpack(p.t, head + (size_t) (p.first + i) * p.t->nb[1], 0, d, rows.data() + (size_t) i * d);
            }
            a.pack_keys(rows.data(), d, p.n, d, out);
            return;
        }
        for (int c = 0; c < d; ++c) {
            unpack(p.t, head + (size_t) c * p.t->nb[1], p.first, p.n, column.data());
            for (int i = 0; i < p.n; ++i) {
                rows[(size_t) i * d + c] = column[i];
            }
        }
        a.pack_values(rows.data(), d, p.n, d, out);
    };
    std::vector<ggml_tensor *> args = parts;
    args.resize(std::min<size_t>(args.size(), GGML_MAX_SRC - 2));  // leaves: the graph need not know all of them
    const int64_t n_units = (int64_t) n_heads * n_panels;
    return node("pack heads", GGML_TYPE_F32, { (int64_t) size, n_units }, args, add_op(n_units, run));
}

ggml_tensor * cross_attn_cpu::attend(ggml_tensor * q, int first, int n_rows,
                                     const std::vector<image_states_ptr> & images, size_t j_cross, ggml_tensor * out) {
    const attention_kernels<float> a = kernels_.attention;
    std::vector<ggml_tensor *> k, v;
    std::vector<float> & bias = key_bias_.emplace_back();
    for (const image_states_ptr & image : images) {
        k.push_back(image->k[j_cross]);
        v.push_back(image->v[j_cross]);
        const size_t begin = bias.size();
        bias.resize(begin + a.padded_keys(image->n_tokens()), PADDING_BIAS);
        std::fill_n(bias.begin() + (ptrdiff_t) begin, image->n_tokens(), 0.0f);
    }
    const int d = (int) q->ne[0], n_head = (int) q->ne[1], n_kv = (int) k[0]->ne[2], g = n_head / n_kv;
    const int n_parts = n_cuts(n_rows, MAX_QUERIES), n_keys = (int) bias.size(), n_panels = n_keys / a.panel;
    const size_t key_head = (size_t) n_panels * a.panel * d, value_head = (size_t) n_keys * a.padded_embd(d);
    const float * key_bias = bias.data();
    for (int kv = 0; kv < n_kv; kv += HEADS_AT_ONCE) {
        const int n_heads = std::min(HEADS_AT_ONCE, n_kv - kv);
        ggml_tensor *keys = pack(k, true, kv, n_heads), *values = pack(v, false, kv, n_heads);
        auto run = [=](const ggml_tensor * dst, int unit) {
            const int head = unit / n_parts, row = first + unit % n_parts * MAX_QUERIES;  // head: of queries, from kv*g
            attention_part<float> part;
            part.q_stride = q->nb[2] / sizeof(float);
            part.q = (const float *) q->data + row * part.q_stride + (size_t) (kv * g + head) * d;
            part.n_q = std::min(MAX_QUERIES, first + n_rows - row);
            part.k = (const float *) keys->data + head / g * key_head;
            part.v = (const float *) values->data + head / g * value_head;
            part.key_bias = key_bias;
            part.n_k = n_keys;
            part.n_embd_head = d;
            part.scale = 1.0f / std::sqrt((float) d);
            part.out_stride = dst->nb[1] / sizeof(float);
            part.out = (float *) dst->data + row * part.out_stride + (size_t) (kv * g + head) * d;
            a.run(part);
        };
        void * op = add_op(n_heads * g * n_parts, run);
        out = out ? node_inplace("attention", out, { keys, values, q }, op)
                  : node("attention", GGML_TYPE_F32, { (int64_t) d * n_head, q->ne[2] }, { keys, values, q }, op);
    }
    return out;
}

}  // namespace pyvllama
