// The vision graph, the cross-attention block and the hook on a tiny random model, against plain loops and against
// themselves cut differently. (Against the oracle: tests/parity.)
#include <cmath>
#include <cstring>

#include "check.h"
#include "decode-hook.h"
#include "errors.h"
#include "mmproj.h"
#include "tiny-mmproj.h"

using namespace pyvllama;

static double relative_error(const std::vector<float> & a, const std::vector<float> & b) {
    double d = 0, n = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        d += (double) (a[i] - b[i]) * (a[i] - b[i]);
        n += (double) b[i] * b[i];
    }
    return a.size() == b.size() ? std::sqrt(d / n) : INFINITY;
}

static std::vector<float> noise(size_t n, unsigned seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    std::vector<float> v(n);
    for (float & x : v) {
        x = normal(rng);
    }
    return v;
}

struct fixture {
    temp_file file;
    tiny_sizes sizes;
    std::unique_ptr<mmproj> model;

    fixture(const std::string & name, bool zero_padding, bool merge_padding, ggml_type kv = GGML_TYPE_F32,
            ggml_type cross = GGML_TYPE_F32)
        : file(name) {
        sizes.zero_padding = zero_padding;
        sizes.cross_type = cross;
        const tiny_mmproj written(file.path, sizes);
        mmproj_options options;
        options.cross_kv_type = kv;
        options.merge_padding = merge_padding;
        model = std::make_unique<mmproj>(file.path, options, nullptr);
    }

    std::vector<float> states(int aspect_ratio_id, image_states_ptr * image = nullptr) const {
        const int n_tiles = sizes.aspects[2 * aspect_ratio_id - 2] * sizes.aspects[2 * aspect_ratio_id - 1];
        const auto pixels = noise((size_t) n_tiles * 3 * sizes.image * sizes.image, (unsigned) aspect_ratio_id);
        std::vector<float> out;
        encode_stats stats;
        image_states_ptr made = model->encode(pixels.data(), n_tiles, aspect_ratio_id, &out, &stats, nullptr);
        if (image) {
            *image = made;
        }
        return out;
    }
};

// A layer output as llama.cpp's scheduler shows it.
struct fake_layer {
    ggml_context_ptr ctx;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor * t;

    fake_layer(int il, int64_t n_embd, int64_t n_rows, const float * data)
        : ctx(ggml_init({ ggml_tensor_overhead(), nullptr, true })) {
        t = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd, n_rows);
        ggml_format_name(t, "l_out-%d", il);
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_cpu_buffer_type()));
        memcpy(t->data, data, ggml_nbytes(t));
    }
};

// Passes rows through every cross-attention layer, ubatch by ubatch, as llama_decode would with empty self layers.
static std::vector<float> pass(decode_hook & hook, const tiny_sizes & s, std::vector<float> rows,
                               const std::vector<int32_t> & group, const std::vector<image_group> & groups,
                               const std::vector<int> & split) {
    hook.begin(group, groups);
    int base = 0;
    for (int n : split) {
        float * part = rows.data() + (size_t) base * s.t_embd;
        for (int il = 0; il < s.t_layers - (int) s.cross.size(); ++il) {
            fake_layer layer(il, s.t_embd, n, part);
            if (decode_hook::cb_eval(layer.t, true, &hook)) {
                CHECK(decode_hook::cb_eval(layer.t, false, &hook));
            }
            memcpy(part, layer.t->data, ggml_nbytes(layer.t));
        }
        base += n;
    }
    hook.end(true);
    return rows;
}

static void test_padding() {
    const fixture merged("test-mmproj-a.gguf", true, true), full("test-mmproj-b.gguf", true, false);
    const fixture unequal("test-mmproj-c.gguf", false, true), unequal_full("test-mmproj-d.gguf", false, false);
    for (int id = 1; id <= 4; ++id) {
        CHECK(relative_error(merged.states(id), full.states(id)) < 2e-6);
        CHECK(unequal.states(id) == unequal_full.states(id));  // unequal padding tiles are not merged
    }
    CHECK(relative_error(unequal.states(1), merged.states(1)) > 1e-3);  // padding is seen: the test can fail
    const std::vector<float> pixels(3 * 28 * 28);
    THROWS(full.model->encode(pixels.data(), 1, 0, nullptr, nullptr, nullptr), std::invalid_argument,
           "aspect_ratio_id 0");
    THROWS(full.model->encode(pixels.data(), 1, 2, nullptr, nullptr, nullptr), std::invalid_argument, "1 x 2 tiles");
    auto stop = [](float) { throw cancelled("enough"); };
    THROWS(full.model->encode(pixels.data(), 1, 1, nullptr, nullptr, stop), cancelled, "enough");
    auto again = [&](float) { full.states(1); };
    THROWS(full.model->encode(pixels.data(), 1, 1, nullptr, nullptr, again), backend_error, "cannot encode another");
    full.states(1);  // and goes on afterwards
}

// The block as plain loops in double precision, from the file's own tensors.
struct naive_block {
    gguf_file file;
    const tiny_sizes s;

    std::vector<float> values(const std::string & name, std::vector<int64_t> ne) {
        ggml_tensor * t = file.tensor(name, ne);
        return file.values(t, 0, ggml_nelements(t));
    }
    static std::vector<double> matmul(const std::vector<float> & w,
                                      const std::vector<double> & x) {  // w [x.size(), n_out]
        std::vector<double> y(w.size() / x.size());
        for (size_t i = 0; i < y.size(); ++i) {
            for (size_t j = 0; j < x.size(); ++j) {
                y[i] += (double) w[i * x.size() + j] * x[j];
            }
        }
        return y;
    }
    static void rms_norm(double * x, const std::vector<float> & w) {
        double ss = 0;
        for (size_t i = 0; i < w.size(); ++i) {
            ss += x[i] * x[i];
        }
        const double r = 1 / std::sqrt(ss / (double) w.size() + 1e-5);
        for (size_t i = 0; i < w.size(); ++i) {
            x[i] *= r * w[i];
        }
    }
    void operator()(float * row, const std::vector<float> & states, int il) {
        const std::string p = "xattn.blk." + std::to_string(il) + ".";
        const int64_t e = s.t_embd, d = e / s.t_head, kv = d * s.t_kv, n = (int64_t) states.size() / e,
                      g = s.t_head / s.t_kv;
        std::vector<double> x(row, row + e), h = x, out(e);
        rms_norm(h.data(), values(p + "attn_norm.weight", { e }));
        std::vector<double> q = matmul(values(p + "attn_q.weight", { e, e }), h);
        const auto q_norm = values(p + "attn_q_norm.weight", { d }), k_norm = values(p + "attn_k_norm.weight", { d });
        std::vector<std::vector<double>> k, v;
        for (int64_t i = 0; i < n; ++i) {
            const std::vector<double> state(states.begin() + i * e, states.begin() + (i + 1) * e);
            k.push_back(matmul(values(p + "attn_k.weight", { e, kv }), state));
            v.push_back(matmul(values(p + "attn_v.weight", { e, kv }), state));
            for (int j = 0; j < s.t_kv; ++j) {
                rms_norm(k.back().data() + j * d, k_norm);
            }
        }
        for (int head = 0; head < s.t_head; ++head) {
            rms_norm(q.data() + head * d, q_norm);
            std::vector<double> score(n);
            double sum = 0;
            for (int64_t i = 0; i < n; ++i) {
                for (int64_t c = 0; c < d; ++c) {
                    score[i] += q[head * d + c] * k[i][head / g * d + c];
                }
                sum += score[i] = std::exp(score[i] / std::sqrt((double) d));
            }
            for (int64_t i = 0; i < n; ++i) {
                for (int64_t c = 0; c < d; ++c) {
                    out[head * d + c] += score[i] / sum * v[i][head / g * d + c];
                }
            }
        }
        add_gated(x, matmul(values(p + "attn_output.weight", { e, e }), out), p + "gate_attn");
        h = x;
        rms_norm(h.data(), values(p + "ffn_norm.weight", { e }));
        std::vector<double> a = matmul(values(p + "ffn_gate.weight", { e, s.t_ff }), h),
                            b = matmul(values(p + "ffn_up.weight", { e, s.t_ff }), h);
        for (size_t i = 0; i < a.size(); ++i) {
            a[i] = a[i] / (1 + std::exp(-a[i])) * b[i];
        }
        add_gated(x, matmul(values(p + "ffn_down.weight", { s.t_ff, e }), a), p + "gate_ffn");
        std::copy(x.begin(), x.end(), row);
    }
    void add_gated(std::vector<double> & x, const std::vector<double> & y, const std::string & gate) {
        const double factor = std::tanh((double) values(gate, { 1 })[0]);
        for (size_t i = 0; i < x.size(); ++i) {
            x[i] += factor * y[i];
        }
    }
};

static void test_hook() {
    const fixture f("test-mmproj-e.gguf", true, true);
    const tiny_sizes & s = f.sizes;
    image_states_ptr one, four;
    const std::vector<float> states_one = f.states(1, &one), states_four = f.states(3, &four);
    decode_hook hook(f.model->weights(), 2, nullptr);
    const std::vector<image_group> groups = { { one }, { four }, { one, four } };
    std::vector<int32_t> group;
    for (int g : { -1, 0, 2, -1, 1 }) {
        group.insert(group.end(), 9, g);
    }
    const int n = (int) group.size();
    const std::vector<float> rows = noise((size_t) n * s.t_embd, 5);

    const std::vector<float> whole = pass(hook, s, rows, group, groups, { n });
    std::vector<float> expected = rows;
    naive_block naive{ gguf_file(f.file.path), s };
    for (int r : { 10, 20, 40 }) {  // one row of each group
        std::vector<float> states = group[r] == 1 ? states_four : states_one;
        if (group[r] == 2) {
            states.insert(states.end(), states_four.begin(), states_four.end());
        }
        for (int il : s.cross) {
            naive(expected.data() + (size_t) r * s.t_embd, states, il);
        }
        const size_t at = (size_t) r * s.t_embd;
        CHECK(relative_error({ whole.begin() + at, whole.begin() + at + s.t_embd },
                             { expected.begin() + at, expected.begin() + at + s.t_embd }) < 1e-5);
    }
    for (int r = 0; r < n; ++r) {  // rows without image are not touched, the others are
        const bool same =
            memcmp(&whole[(size_t) r * s.t_embd], &rows[(size_t) r * s.t_embd], s.t_embd * sizeof(float)) == 0;
        CHECK(same == (group[r] == NO_IMAGE));
    }
    for (int size : { 1, 2, 7, 32, 44 }) {
        std::vector<int> split(n / size, size);
        if (n % size) {
            split.push_back(n % size);
        }
        CHECK(relative_error(pass(hook, s, rows, group, groups, split), whole) < 2e-6);
    }
    // a graph built for one image must not serve another of the same size
    image_states_ptr other;
    const auto pixels = noise(3 * 28 * 28, 99);
    other = f.model->encode(pixels.data(), 1, 1, nullptr, nullptr, nullptr);
    const std::vector<float> row(rows.begin(), rows.begin() + s.t_embd);
    CHECK(relative_error(pass(hook, s, row, { 0 }, { { other } }, { 1 }),
                         pass(hook, s, row, { 0 }, { { one } }, { 1 })) > 1e-4);

    // many rows of a group: attention in chunks, or by our own kernels for them; in F32 these are for 128 and more
    const int n_many = 150;
    const std::vector<int32_t> many(n_many, 0);
    const std::vector<float> more = noise((size_t) n_many * s.t_embd, 6);
    CHECK(relative_error(pass(hook, s, more, many, { { one } }, { n_many }),
                         pass(hook, s, more, many, { { one } }, std::vector<int>(n_many, 1))) < 2e-6);

    const fixture b("test-mmproj-k.gguf", true, true, GGML_TYPE_F16, GGML_TYPE_BF16);  // these kernels in bf16
    b.states(3, &four);
    decode_hook hook_b(b.model->weights(), 2, nullptr);
    CHECK(relative_error(pass(hook_b, s, more, many, { { four } }, { n_many }),
                         pass(hook_b, s, more, many, { { four } }, std::vector<int>(n_many / 10, 10))) < 5e-3);
}

static void test_failures() {
    const fixture f("test-mmproj-f.gguf", true, true), g("test-mmproj-g.gguf", true, true);
    const tiny_sizes & s = f.sizes;
    image_states_ptr image, foreign;
    f.states(1, &image);
    g.states(1, &foreign);
    decode_hook hook(f.model->weights(), 1, nullptr);
    THROWS(hook.begin({ 0 }, { { foreign } }), std::invalid_argument, "not encoded by this model");
    THROWS(hook.begin({ 0 }, { { nullptr } }), std::invalid_argument, "not encoded");
    THROWS(hook.begin({ 0 }, { {} }), std::invalid_argument, "empty");
    THROWS(hook.begin({ 1 }, { { image } }), std::invalid_argument, "group 1 of 1");

    {  // nor is one of a model that is gone, even where the next model has its address
        fixture h("test-mmproj-h.gguf", true, true);
        image_states_ptr orphan;
        h.states(1, &orphan);
        for (int i = 0; i < 5; ++i) {
            h.model.reset();
            h.model = std::make_unique<mmproj>(h.file.path, mmproj_options{}, nullptr);
            decode_hook next(h.model->weights(), 1, nullptr);
            THROWS(next.begin({ 0 }, { { orphan } }), std::invalid_argument, "not encoded by this model");
        }
    }
    const std::vector<float> rows = noise((size_t) 4 * s.t_embd, 1);
    hook.begin({ 0, 0 }, { { image } });  // llama.cpp computes fewer rows than the batch has
    fake_layer one_row(0, s.t_embd, 1, rows.data());
    CHECK(decode_hook::cb_eval(one_row.t, true, &hook) && decode_hook::cb_eval(one_row.t, false, &hook));
    THROWS(hook.end(true), backend_error, "saw 1 of 2 rows");

    hook.begin({ 0, 0 }, { { image } });  // ... or more
    fake_layer three_rows(0, s.t_embd, 3, rows.data());
    CHECK(!decode_hook::cb_eval(three_rows.t, false, &hook));
    CHECK(!decode_hook::cb_eval(three_rows.t, true, &hook));  // after a failure the hook stays out of the way
    THROWS(hook.end(true), backend_error, "more rows than the batch");

    hook.begin({ 0 }, { { image } });  // ... or something else
    fake_layer narrow(0, s.t_embd / 2, 1, rows.data());
    CHECK(!decode_hook::cb_eval(narrow.t, false, &hook));
    THROWS(hook.end(true), backend_error, "no F32 matrix");

    pass(hook, s, rows, { -1, 0, 0, -1 }, { { image } }, { 2, 2 });  // and goes on afterwards
    hook.begin({ -1 }, {});
    CHECK(!decode_hook::cb_eval(one_row.t, true, &hook));  // text alone: never asked for a stop
    hook.end(true);
    fake_layer other(1, s.t_embd, 1, rows.data());
    ggml_set_name(other.t, "l_out-0x");
    hook.begin({ 0 }, { { image } });
    CHECK(!decode_hook::cb_eval(other.t, true, &hook));
    THROWS(hook.end(true), backend_error, "saw 0 of 1");

    int polls = 0;
    decode_hook polled(f.model->weights(), 1, [&] {
        if (++polls > 0) {
            throw cancelled("Ctrl-C");
        }
    });
    polled.begin({ 0 }, { { image } });
    CHECK(decode_hook::cb_abort(&polled));
    THROWS(polled.end(false), cancelled, "Ctrl-C");
}

// An image taken apart and put together again is the same to the last bit; no other sizes get in.
static void test_restore() {
    for (ggml_type type : { GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16 }) {
        const fixture f("test-mmproj-i.gguf", true, true, type);
        const tiny_sizes & s = f.sizes;
        image_states_ptr image;
        f.states(2, &image);  // two tiles
        const int n_tokens = image->n_tokens();
        std::vector<std::vector<uint8_t>> bytes;
        std::vector<bytes_view> parts;
        CHECK(image->n_parts() == 2 * s.cross.size());
        for (size_t i = 0; i < image->n_parts(); ++i) {
            bytes.emplace_back(image->part_bytes(i));
            CHECK(bytes.back().size() == ggml_type_size(type) * n_tokens * s.t_embd / s.t_head * s.t_kv);
            image->get_part(i, bytes.back().data());
        }
        for (const auto & b : bytes) {
            parts.push_back({ b.data(), b.size() });
        }
        const image_states_ptr again = f.model->restore(n_tokens, parts);
        CHECK(again->n_tokens() == n_tokens && again->made_for() == image->made_for() && again->id() != image->id());
        for (size_t j = 0; j < s.cross.size(); ++j) {
            CHECK(again->keys(j) == image->keys(j));
            CHECK(again->values(j) == image->values(j));
        }
        decode_hook hook(f.model->weights(), 1, nullptr);
        const std::vector<float> rows = noise((size_t) 3 * s.t_embd, 7);
        CHECK(pass(hook, s, rows, { 0, 0, 0 }, { { again } }, { 3 }) ==
              pass(hook, s, rows, { 0, 0, 0 }, { { image } }, { 3 }));

        for (int n : { 0, -1, 1, n_tokens - 1, n_tokens + 1, 5 * n_tokens, 1 << 30, -(1 << 30) }) {
            THROWS(f.model->restore(n, parts), std::invalid_argument, "tokens, not");
        }
        THROWS(f.model->restore(n_tokens / 2, parts), std::invalid_argument, "part 0 of an image has");
        THROWS(f.model->restore(n_tokens, { parts.begin(), parts.end() - 1 }), std::invalid_argument, "parts, not");
        THROWS(f.model->restore(n_tokens, {}), std::invalid_argument, "parts, not 0");
        parts.back().size -= 1;
        THROWS(f.model->restore(n_tokens, parts), std::invalid_argument, "part 5 of an image has");
        THROWS(image->get_part(6, nullptr), std::invalid_argument, "no part 6");
    }
}

// What is told of memory without computing anything is what computing takes.
static void test_plan() {
    const fixture f("plan", true, true);
    const int n_tiles = f.sizes.max_tiles;
    const auto pixels = noise((size_t) n_tiles * 3 * f.sizes.image * f.sizes.image, 1);
    encode_stats stats;
    f.model->encode(pixels.data(), n_tiles, 3, nullptr, &stats, nullptr);  // 2 x 2 tiles
    const memory_plan plan = f.model->plan(true);
    CHECK(plan.compute_bytes == stats.compute_bytes);
    const weight_bytes & w = plan.weights;
    CHECK(w.mapped_cross + w.mapped_tower == f.model->weights()->mapped_bytes());
    CHECK(w.copied_cross + w.copied_tower <= f.model->weights()->device_bytes());
    CHECK(w.mapped_cross > 0 && w.mapped_tower > 0 && w.copied_tower > 0);
    const weight_bytes in_file = f.model->plan(false).weights;
    CHECK(in_file.copied_cross == 0);
    CHECK(in_file.mapped_cross == w.mapped_cross + w.copied_cross);
}

int main() {
    test_plan();
    test_padding();
    test_restore();
    test_hook();
    test_failures();
    return summary("mmproj");
}
