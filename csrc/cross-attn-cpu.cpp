#include "cross-attn-cpu.h"

#include <algorithm>
#include <cmath>

namespace pyvllama {

namespace {

// KV heads whose keys and values are unpacked at the same time: of 6404 image tokens 13 MB.
constexpr int HEADS_AT_ONCE = 2;

// Unpacking keys and values costs what a number of rows save. Measured on a Zen 4, 2 threads, 32 heads of 128, 6404
// keys; milliseconds of attend_few() / of attend():
//   rows                16         32         40         64         128
//   keys in f16, bf16   10 / 25    25 / 28    29 / 28    45 / 36    88 / 57
//   keys in bf16, bf16  12 / 19    22 / 18    27 / 23    45 / 28    99 / 61
//   keys in q8_0, bf16  12 / 19    24 / 30    31 / 30    52 / 37    101 / 59
//   keys in f16, F32    12 / 37    24 / 45               47 / 66    90 / 107 (192 rows: 135 / 144)
//   same, AVX2 only     13 / 36    27 / 47               55 / 71    103 / 108 (192 rows: 154 / 153)
constexpr int MIN_ROWS_BF16 = 32, MIN_ROWS_F32 = 128;
constexpr int MIN_ROWS_GGML = 16;  // against ggml's products

// n elements from a row of any type.
void unpack(const ggml_tensor * t, const char * row, int64_t first, int n, float * out) {
    row += ggml_row_size(t->type, first);
    if (t->type == GGML_TYPE_F32) {
        std::copy_n((const float *) row, n, out);
    } else {
        ggml_get_type_traits(t->type)->to_float(row, out, n);
    }
}

// What the kernels of a type need around F32 numbers.
template <typename T>
struct converter;

template <>
struct converter<float> {
    static constexpr ggml_type type = GGML_TYPE_F32;
    static constexpr bool needs_memory = false;
    const bf16_kernels * unused;

    const float * operator()(const std::vector<float> & x, std::vector<float> &) const { return x.data(); }

    void run(const attention_kernels<float> & a, attention_part<float> part, const float * q, size_t q_stride,
             float * out, size_t out_stride) const {
        part.q = q;
        part.q_stride = q_stride;
        part.out = out;
        part.out_stride = out_stride;
        a.run(part);
    }
};

template <>
struct converter<uint16_t> {
    static constexpr ggml_type type = GGML_TYPE_BF16;
    static constexpr bool needs_memory = true;
    const bf16_kernels * kernels;

    const uint16_t * operator()(const std::vector<float> & x, std::vector<uint16_t> & y) const {
        kernels->from_f32(x.data(), (int) x.size(), y.data());
        return y.data();
    }

    void run(const attention_kernels<uint16_t> & a, attention_part<uint16_t> part, const float * q, size_t q_stride,
             float * out, size_t out_stride) const {
        const int d = part.n_embd_head;
        std::vector<uint16_t> rows((size_t) 2 * part.n_q * d);
        for (int r = 0; r < part.n_q; ++r) {
            kernels->from_f32(q + r * q_stride, d, rows.data() + (size_t) r * d);
        }
        part.q = rows.data();
        part.out = rows.data() + (size_t) part.n_q * d;
        part.q_stride = part.out_stride = (size_t) d;
        a.run(part);
        for (int r = 0; r < part.n_q; ++r) {
            ggml_bf16_to_fp32_row((const ggml_bf16_t *) part.out + (size_t) r * d, out + r * out_stride, d);
        }
    }
};

stored stored_as(ggml_type type) {
    return type == GGML_TYPE_F32    ? stored::f32
           : type == GGML_TYPE_BF16 ? stored::bf16
           : type == GGML_TYPE_Q8_0 ? stored::q8_0
                                    : stored::f16;
}

}  // namespace

// Keys [d, n_tokens, n_kv] or values [n_tokens, d, n_kv] of some heads -> panels of one head after another, those of
// the first image first.
template <typename T>
ggml_tensor * cross_attn_cpu::pack(const attention_kernels<T> & a, const std::vector<ggml_tensor *> & parts, bool keys,
                                   int first_head, int n_heads) {
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
    const converter<T> as_elements{ bf16_ };
    auto run = [=](const ggml_tensor * dst, int unit) {
        const panel & p = panels[unit % n_panels];
        const char * head = (const char *) p.t->data + (size_t) (first_head + unit / n_panels) * p.t->nb[2];
        std::vector<float> rows((size_t) a.panel * d), column(a.panel);
        std::vector<T> elements(as_elements.needs_memory ? rows.size() : 0);
        T * out = (T *) dst->data + (size_t) unit * size;
        if (keys) {
            for (int i = 0; i < p.n; ++i) {
                unpack(p.t, head + (size_t) (p.first + i) * p.t->nb[1], 0, d, rows.data() + (size_t) i * d);
            }
            a.pack_keys(as_elements(rows, elements), d, p.n, d, out);
            return;
        }
        for (int c = 0; c < d; ++c) {
            unpack(p.t, head + (size_t) c * p.t->nb[1], p.first, p.n, column.data());
            for (int i = 0; i < p.n; ++i) {
                rows[(size_t) i * d + c] = column[i];
            }
        }
        a.pack_values(as_elements(rows, elements), d, p.n, d, out);
    };
    std::vector<ggml_tensor *> args = parts;
    args.resize(std::min<size_t>(args.size(), GGML_MAX_SRC - 2));  // leaves: the graph need not know all of them
    const int64_t n_units = (int64_t) n_heads * n_panels;
    return node("pack heads", converter<T>::type, { (int64_t) size, n_units }, args, add_op(n_units, run));
}

int cross_attn_cpu::min_rows(int64_t n_embd_head) const {
    return !takes_few(n_embd_head) ? MIN_ROWS_GGML : in_bf16(n_embd_head) ? MIN_ROWS_BF16 : MIN_ROWS_F32;
}

ggml_tensor * cross_attn_cpu::attend(ggml_tensor * q, int first, int n_rows,
                                     const std::vector<image_states_ptr> & images, size_t j_cross, ggml_tensor * out) {
    return in_bf16(q->ne[0]) ? attend_in(bf16_->attention, q, first, n_rows, images, j_cross, out)
                             : attend_in(kernels_.attention, q, first, n_rows, images, j_cross, out);
}

template <typename T>
ggml_tensor * cross_attn_cpu::attend_in(const attention_kernels<T> & a, ggml_tensor * q, int first, int n_rows,
                                        const std::vector<image_states_ptr> & images, size_t j_cross,
                                        ggml_tensor * out) {
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
    const converter<T> as_elements{ bf16_ };
    for (int kv = 0; kv < n_kv; kv += HEADS_AT_ONCE) {
        const int n_heads = std::min(HEADS_AT_ONCE, n_kv - kv);
        ggml_tensor *keys = pack(a, k, true, kv, n_heads), *values = pack(a, v, false, kv, n_heads);
        auto run = [=](const ggml_tensor * dst, int unit) {
            const int head = unit / n_parts, row = first + unit % n_parts * MAX_QUERIES;  // head: of queries, from kv*g
            const size_t column = (size_t) (kv * g + head) * d;
            attention_part<T> part;
            part.n_q = std::min(MAX_QUERIES, first + n_rows - row);
            part.k = (const T *) keys->data + head / g * key_head;
            part.v = (const T *) values->data + head / g * value_head;
            part.key_bias = key_bias;
            part.n_k = n_keys;
            part.n_embd_head = d;
            part.scale = 1.0f / std::sqrt((float) d);
            as_elements.run(a, part, (const float *) ((const char *) q->data + row * q->nb[2]) + column,
                            q->nb[2] / sizeof(float), (float *) ((char *) dst->data + row * dst->nb[1]) + column,
                            dst->nb[1] / sizeof(float));
        };
        void * op = add_op(n_heads * g * n_parts, run);
        out = out ? node_inplace("attention", out, { keys, values, q }, op)
                  : node("attention", GGML_TYPE_F32, { (int64_t) d * n_head, q->ne[2] }, { keys, values, q }, op);
    }
    return out;
}

ggml_tensor * cross_attn_cpu::attend_few(ggml_tensor * q, int first, int n_rows,
                                         const std::vector<image_states_ptr> & images, size_t j_cross,
                                         ggml_tensor * out) {
    struct piece {
        const ggml_tensor *k, *v;
        int first, n;
    };
    std::vector<piece> pieces;
    for (const image_states_ptr & image : images) {
        const int n_tokens = image->n_tokens();
        const int n = n_cuts(n_cuts(n_tokens, n_cuts(n_tokens, FEW_KEYS)), 32) * 32;  // of one size, nearly
        for (int i = 0; i < n_tokens; i += n) {
            pieces.push_back({ image->k[j_cross], image->v[j_cross], i, std::min(n, n_tokens - i) });
        }
    }
    const auto few = kernels_.few;
    const int d = (int) q->ne[0], n_kv = (int) images[0]->k[j_cross]->ne[2], g = (int) q->ne[1] / n_kv;
    const int n_pieces = (int) pieces.size();
    auto run = [=](const ggml_tensor * dst, int unit) {
        const int head = unit % n_kv;
        const piece & p = pieces[unit / n_kv];
        few_part part;
        part.k = (const char *) p.k->data + head * p.k->nb[2] + p.first * p.k->nb[1];
        part.k_stride = p.k->nb[1];
        part.k_type = stored_as(p.k->type);
        part.v = (const char *) p.v->data + head * p.v->nb[2] + p.first * p.v->nb[0];
        part.v_stride = p.v->nb[1];
        part.v_type = stored_as(p.v->type);
        part.n_keys = p.n;
        part.n_embd_head = d;
        part.n_q = g;
        part.scale = 1.0f / std::sqrt((float) d);
        for (int row = 0; row < n_rows; ++row) {
            part.q = (const float *) ((const char *) q->data + (first + row) * q->nb[2] + head * g * q->nb[1]);
            part.out = (float *) ((char *) dst->data + unit * dst->nb[1]) + (size_t) row * g * (d + 2);
            few(part);
        }
    };
    const int64_t n_units = (int64_t) n_kv * n_pieces;
    ggml_tensor * sums = node("attention", GGML_TYPE_F32, { (int64_t) n_rows * g * (d + 2), n_units },
                              { q, images[0]->k[j_cross], images[0]->v[j_cross] }, add_op(n_units, run));
    return merge(sums, q, first, n_rows, n_pieces, out);
}

ggml_tensor * cross_attn_cpu::merge(ggml_tensor * sums, ggml_tensor * q, int first, int n_rows, int n_parts,
                                    ggml_tensor * out) {
    const int d = (int) q->ne[0], n_head = (int) q->ne[1], n_kv = (int) sums->ne[1] / n_parts, g = n_head / n_kv;
    auto run = [=](const ggml_tensor * dst, int unit) {
        const int head = unit % n_head, row = unit / n_head;
        const size_t step = (size_t) n_kv * (sums->nb[1] / sizeof(float));  // from part to part
        const float * part = (const float *) ((const char *) sums->data + head / g * sums->nb[1]) +
                             (size_t) (row * g + head % g) * (d + 2);
        float * y = (float *) ((char *) dst->data + (first + row) * dst->nb[1]) + (size_t) head * d;
        float top = part[d], weight = 0;
        for (int p = 1; p < n_parts; ++p) {
            top = std::max(top, part[p * step + d]);
        }
        std::fill_n(y, d, 0.0f);
        for (int p = 0; p < n_parts; ++p, part += step) {
            const float share = std::exp2(part[d] - top);
            weight += share * part[d + 1];
            for (int c = 0; c < d; ++c) {
                y[c] += share * part[c];
            }
        }
        for (int c = 0; c < d; ++c) {
            y[c] /= weight;
        }
    };
    void * op = add_op((int64_t) n_head * n_rows, run);
    return out ? node_inplace("attention", out, { sums }, op)
               : node("attention", GGML_TYPE_F32, { (int64_t) d * n_head, q->ne[2] }, { sums }, op);
}

}  // namespace pyvllama
