// The collector of column importances: what it counts, and that collecting changes no number.
#include <cmath>
#include <cstring>
#include <random>

#include "check.h"
#include "decode-hook.h"
#include "errors.h"
#include "importance.h"
#include "mmproj.h"
#include "tiny-mmproj.h"

using namespace pyvllama;

static std::vector<float> noise(size_t n, unsigned seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> normal;
    std::vector<float> v(n);
    for (float & x : v) {
        x = normal(rng);
    }
    return v;
}

// weight [n_in, 3] times input [n_in, n_rows, n_batch], as a scheduler shows it
struct product {
    ggml_context_ptr ctx{ ggml_init({ 16 * ggml_tensor_overhead(), nullptr, true }) };
    ggml_tensor *weight, *input, *node;
    ggml_backend_buffer_ptr buffer;

    product(const char * name, int64_t n_in, int64_t n_rows, int64_t n_batch = 1, float scale = 1.0f,
            ggml_type type = GGML_TYPE_F32) {
        weight = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_in, 3);
        ggml_set_name(weight, name);
        input = ggml_new_tensor_3d(ctx.get(), type, n_in, n_rows, n_batch);
        node = ggml_mul_mat(ctx.get(), weight, scale == 1.0f ? input : ggml_scale(ctx.get(), input, scale));
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_cpu_buffer_type()));
    }
    void fill(const std::vector<float> & values) { memcpy(node->src[1]->data, values.data(), values.size() * 4); }
};

static bool near(double a, double b) {
    return std::fabs(a - b) <= 1e-12 * std::fabs(b);
}

static void test_what_counts() {
    importance_collector c(false), with_output(true);
    CHECK(c.wants(product("blk.0.attn_q.weight", 4, 2).node));
    CHECK(c.wants(product("v.blk.3.ffn_up.weight", 4, 1).node));
    CHECK(c.wants(product("CUDA0#blk.0.attn_q.weight#0", 4, 2).node));
    CHECK(!c.wants(product("cache_k_l0 (view)", 4, 2).node));
    CHECK(!c.wants(product("", 4, 2).node));
    CHECK(!c.wants(product("blk.0.attn_q.weight.lora_a", 4, 2).node));
    CHECK(!c.wants(product("output.weight", 4, 2).node));
    CHECK(with_output.wants(product("output.weight", 4, 2).node));
    CHECK(!with_output.wants(product("token_embd.weight", 4, 2).node));
    CHECK(!c.wants(product("blk.0.attn_q.weight", 4, 2, 1, 1.0f, GGML_TYPE_F16).node));
    const product p("blk.0.attn_q.weight", 4, 2);
    CHECK(!c.wants(p.weight) && !c.wants(ggml_add(p.ctx.get(), p.node, p.node)));
    CHECK(c.entries().empty());
}

static void test_sums() {
    importance_collector c(false);
    product p("blk.0.attn_q.weight", 2, 2, 2);  // two batches of two rows
    p.fill({ 1, 2, 3, 4, 5, 6, 7, 8 });
    c.add(p.node);
    const auto & e = c.entries().at("blk.0.attn_q.weight");
    CHECK(e.n_rows == 4 && e.sums == (std::vector<double>{ 1 + 9 + 25 + 49, 4 + 16 + 36 + 64 }));
    c.add(p.node, 3);  // the first three rows only
    CHECK(e.n_rows == 7 && e.sums[0] == 84 + 35 && e.sums[1] == 120 + 56);
    c.add(p.node, 0);
    CHECK(e.n_rows == 7 && e.sums[0] == 84 + 35);

    product copy("CUDA0#blk.0.attn_q.weight#0", 2, 1);  // a device's copy is the same weight
    copy.fill({ 1, 0 });
    c.add(copy.node);
    CHECK(c.entries().size() == 1 && e.n_rows == 8 && e.sums[0] == 84 + 36);

    product gated("xattn.blk.3.ffn_down.weight", 2, 1, 1, 0.25f);  // filled with what the scale gave
    gated.fill({ 0.5f, -1.0f });
    c.add(gated.node);
    const auto & g = c.entries().at("xattn.blk.3.ffn_down.weight");
    CHECK(g.n_rows == 1 && near(g.sums[0], 4) && near(g.sums[1], 16));
    product other("blk.3.ffn_down.weight", 2, 1, 1, 0.25f);  // llama.cpp's own scales are part of the input
    other.fill({ 0.5f, -1.0f });
    c.add(other.node);
    CHECK(c.entries().at("blk.3.ffn_down.weight").sums[1] == 1);
    product closed("xattn.blk.4.ffn_down.weight", 2, 1, 1, 0.0f);
    closed.fill({ 0, 0 });
    c.add(closed.node);
    CHECK(c.entries().at("xattn.blk.4.ffn_down.weight").n_rows == 0);

    product longer("blk.0.attn_q.weight", 3, 1);
    longer.fill({ 1, 1, 1 });
    THROWS(c.add(longer.node), backend_error, "different lengths");
    product broken("blk.1.attn_q.weight", 2, 1);
    broken.fill({ 1, NAN });
    THROWS(c.add(broken.node), backend_error, "blk.1.attn_q.weight holds numbers that are infinite or not a number");
}

// A view that begins in the middle of other rows is read by its strides.
static void test_strides() {
    importance_collector c(false);
    product p("blk.0.attn_q.weight", 6, 2);
    p.fill({ 0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15 });
    ggml_tensor * view = ggml_view_2d(p.ctx.get(), p.input, 2, 2, p.input->nb[1], 2 * sizeof(float));
    ggml_tensor * weight = ggml_new_tensor_2d(p.ctx.get(), GGML_TYPE_F32, 2, 3);
    ggml_set_name(weight, "v.blk.0.attn_q.weight");
    c.add(ggml_mul_mat(p.ctx.get(), weight, view));
    const auto & e = c.entries().at("v.blk.0.attn_q.weight");
    CHECK(e.n_rows == 2 && e.sums[0] == 4 + 144 && e.sums[1] == 9 + 169);
    ggml_tensor * turned = ggml_transpose(p.ctx.get(), p.input);  // [2, 6], columns far apart
    ggml_tensor * narrow = ggml_new_tensor_2d(p.ctx.get(), GGML_TYPE_F32, 2, 6);
    ggml_tensor * node = ggml_mul_mat(p.ctx.get(), weight, narrow);
    node->src[1] = turned;
    THROWS(c.add(node), backend_error, "not laid out in rows");
}

// An image and a block, with and without a collector: the same bits, and every matrix is counted.
static void test_collecting() {
    const temp_file file("test-importance.gguf");
    const tiny_sizes s;
    const tiny_mmproj written(file.path, s);
    mmproj model(file.path, mmproj_options{}, nullptr);
    auto c = std::make_shared<importance_collector>(false);
    const std::vector<float> pixels = noise((size_t) 2 * 3 * s.image * s.image, 1);
    std::vector<float> plain, collected, after;
    model.encode(pixels.data(), 2, 2, &plain, nullptr, nullptr);
    model.set_collector(c);
    image_states_ptr image = model.encode(pixels.data(), 2, 2, &collected, nullptr, nullptr);
    auto again = [&](float) { model.set_collector(nullptr); };
    THROWS(model.encode(pixels.data(), 2, 2, nullptr, nullptr, again), backend_error, "progress callback");
    const size_t n_vision = 6 * (size_t) (s.n_local + s.n_global) + 1;
    CHECK(plain == collected);
    auto one = std::make_shared<importance_collector>(false);
    model.set_collector(one);
    model.encode(pixels.data(), 2, 2, nullptr, nullptr, nullptr);
    model.set_collector(nullptr);
    model.encode(pixels.data(), 2, 2, &after, nullptr, nullptr);
    CHECK(after == plain);
    CHECK(one->entries().size() == n_vision + 2 * s.cross.size());
    for (const auto & [name, e] : one->entries()) {  // the real rows of two tiles: no padding
        CHECK(e.n_rows == 2 * 5);
        CHECK(e.sums[0] > 0);
    }

    auto run = [&](std::shared_ptr<importance_collector> collector) {
        decode_hook hook(model.weights(), 1, nullptr);
        hook.set_collector(collector);
        const std::vector<float> rows = noise((size_t) 3 * s.t_embd, 2);
        ggml_context_ptr ctx(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
        ggml_tensor * t = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, s.t_embd, 3);
        ggml_set_name(t, "l_out-0");
        ggml_backend_buffer_ptr buffer(
            ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_cpu_buffer_type()));
        memcpy(t->data, rows.data(), ggml_nbytes(t));
        hook.begin({ -1, 0, 0 }, { { image } });
        CHECK(decode_hook::cb_eval(t, true, &hook) && decode_hook::cb_eval(t, false, &hook));
        product self_layer("blk.1.attn_q.weight", 2, 3);
        self_layer.fill({ 1, 2, 3, 4, 5, 6 });
        CHECK(decode_hook::cb_eval(self_layer.node, true, &hook) == !!collector);
        if (collector) {
            CHECK(decode_hook::cb_eval(self_layer.node, false, &hook));
        }
        hook.end(false);
        std::vector<float> out(ggml_nelements(t));
        memcpy(out.data(), t->data, ggml_nbytes(t));
        return out;
    };
    auto text = std::make_shared<importance_collector>(false);
    CHECK(run(nullptr) == run(text));
    CHECK(text->entries().at("blk.1.attn_q.weight").n_rows == 3);
    for (const char * part : { "attn_q", "attn_output", "ffn_gate", "ffn_up", "ffn_down" }) {
        for (int il : { 1, 2 }) {  // both cross layers that follow layer 0; of the three rows two see the image
            CHECK(text->entries().at("xattn.blk." + std::to_string(il) + "." + part + ".weight").n_rows == 2);
        }
    }
    CHECK(text->entries().size() == 11);

    decode_hook hook(model.weights(), 1, nullptr);  // what goes wrong comes out of end()
    hook.set_collector(text);
    hook.begin({ -1 }, {});
    product broken("blk.1.attn_q.weight", 2, 1);
    broken.fill({ INFINITY, 0 });
    CHECK(!decode_hook::cb_eval(broken.node, false, &hook));
    THROWS(hook.end(true), backend_error, "infinite");
}

int main() {
    test_what_counts();
    test_sums();
    test_strides();
    test_collecting();
    return summary("importance");
}
