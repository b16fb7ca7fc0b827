// The vision tower with every version of our own kernels against ggml's operations on the same file.
#include <cmath>

#include "check.h"
#include "errors.h"
#include "mmproj.h"
#include "tiny-mmproj.h"

using namespace pyvllama;

static std::vector<float> states(const std::string & path, const tiny_sizes & s, const std::string & kernels,
                                 int aspect_ratio_id, bool merge_padding, part_times * parts = nullptr) {
    setenv("PYVLLAMA_CPU_KERNELS", kernels.c_str(), 1);
    mmproj_options options;
    options.merge_padding = merge_padding;
    options.n_threads = 2;
    mmproj model(path, options, nullptr);
    const int n_tiles = s.aspects[2 * aspect_ratio_id - 2] * s.aspects[2 * aspect_ratio_id - 1];
    std::mt19937 rng(3);
    std::normal_distribution<float> normal;
    std::vector<float> pixels((size_t) n_tiles * 3 * s.image * s.image), out, again;
    for (float & x : pixels) {
        x = normal(rng);
    }
    encode_stats stats;
    auto stop = [](float f) {
        if (f > 0.5f) {
            throw cancelled("half of it is enough");
        }
    };
    THROWS(model.encode(pixels.data(), n_tiles, aspect_ratio_id, &out, nullptr, stop), cancelled, "half");
    model.encode(pixels.data(), n_tiles, aspect_ratio_id, &out, &stats, nullptr);
    model.encode(pixels.data(), n_tiles, aspect_ratio_id, &again, nullptr, nullptr);
    CHECK(out == again);  // whichever thread took which unit
    if (parts) {
        *parts = stats.parts;
    }
    return out;
}

static double relative_error(const std::vector<float> & a, const std::vector<float> & b) {
    double d = 0, n = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        d += (double) (a[i] - b[i]) * (a[i] - b[i]);
        n += (double) b[i] * b[i];
    }
    return a.size() == b.size() ? std::sqrt(d / n) : INFINITY;
}

struct tower_case {
    const char * name;
    int n_embd, n_head, n_ff, image;
    std::function<ggml_type(const std::string &)> type;
    double bound;         // in F32
    double bound_bf16;    // where there are kernels for bf16
    bool products_by_us;  // there
};

int main() {
    const std::vector<cpu_kernels> all = all_cpu_kernels();
    auto of = [](ggml_type type) { return [type](const std::string &) { return type; }; };
    auto mixed = [](const std::string & name) {
        return name.find("blk.1.ffn_up") != std::string::npos ? GGML_TYPE_F16 : GGML_TYPE_BF16;
    };
    auto odd_projector = [](const std::string & name) { return name[0] == 'm' ? GGML_TYPE_F16 : GGML_TYPE_Q8_0; };
    const tower_case cases[] = {
        { "f32", 32, 2, 48, 28, of(GGML_TYPE_F32), 2e-6, 2e-6, false },
        { "f32, many rows", 32, 2, 48, 14 * 9, of(GGML_TYPE_F32), 5e-6, 5e-6, false },
        { "f16", 32, 2, 48, 28, of(GGML_TYPE_F16), 2e-3, 2e-3, false },
        { "bf16", 64, 4, 96, 56, of(GGML_TYPE_BF16), 1e-2, 2e-2, true },
        { "bf16, odd heads", 30, 2, 48, 28, of(GGML_TYPE_BF16), 1e-2, 2e-2, true },  // the projector is ours
        { "bf16, wide heads", 136, 1, 48, 28, of(GGML_TYPE_BF16), 2e-6, 2e-6, false },
        { "bf16 and f16", 64, 4, 96, 28, mixed, 1e-2, 2e-2, true },
        { "q8_0", 64, 4, 96, 56, of(GGML_TYPE_Q8_0), 2e-2, 2e-2, true },
        { "q8_0, projector f16", 64, 4, 96, 28, odd_projector, 2e-2, 2e-2, true },
        { "q4_0", 64, 4, 96, 28, of(GGML_TYPE_Q4_0), 2e-2, 2e-2, true },
    };
    for (const tower_case & c : cases) {
        tiny_sizes s;
        s.n_embd = c.n_embd;
        s.n_head = c.n_head;
        s.n_ff = c.n_ff;
        s.image = c.image;
        s.type = c.type;
        const temp_file file("test-tower.gguf");
        const tiny_mmproj written(file.path, s);
        for (int id : { 1, 3 }) {  // one tile, and all of them
            const std::vector<float> want = states(file.path, s, "ggml", id, true);
            for (const cpu_kernels & kernels : all) {
                part_times parts;
                const std::vector<float> got = states(file.path, s, kernels.name(), id, true, &parts);
                const double e = relative_error(got, want);
                printf("%s, canvas %d, %s: %.1e\n", c.name, id, kernels.name().c_str(), e);
                CHECK(e < (kernels.bf16 ? c.bound_bf16 : c.bound));
                CHECK((parts.count("pack") == 1) == (kernels.bf16 && c.products_by_us));
                CHECK(relative_error(states(file.path, s, kernels.name(), id, false), got) <
                      (kernels.bf16 ? c.bound_bf16 : c.bound));
            }
        }
    }
    return summary("tower");
}
