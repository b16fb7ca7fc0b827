// Keys and values of an image with every version of our own kernels against plain loops over the image's states.
#include <cmath>

#include "check.h"
#include "mmproj.h"
#include "tiny-mmproj.h"

using namespace pyvllama;

static double relative_error(const std::vector<float> & a, const std::vector<double> & b) {
    double d = 0, n = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        d += (a[i] - b[i]) * (a[i] - b[i]);
        n += b[i] * b[i];
    }
    return a.size() == b.size() ? std::sqrt(d / n) : INFINITY;
}

// [d, n_tokens, n_kv]: the rows of a product with states, each head divided by its RMS and times norm if there is one
static std::vector<double> heads(gguf_file & file, const tiny_sizes & s, const std::string & name, bool normed,
                                 const std::vector<float> & states) {
    const int64_t e = s.t_embd, d = e / s.t_head, n_tokens = (int64_t) states.size() / e;
    const ggml_tensor * w = file.tensor(name + ".weight", { e, d * s.t_kv });
    const std::vector<float> weight = file.values(w, 0, ggml_nelements(w));
    std::vector<float> norm;
    if (normed) {
        norm = file.values(file.tensor(name + "_norm.weight", { d }), 0, d);
    }
    std::vector<double> out((size_t) (d * n_tokens * s.t_kv));
    for (int64_t h = 0; h < s.t_kv; ++h) {
        for (int64_t i = 0; i < n_tokens; ++i) {
            double * y = out.data() + (h * n_tokens + i) * d;
            double squares = 0;
            for (int64_t c = 0; c < d; ++c) {
                for (int64_t j = 0; j < e; ++j) {
                    y[c] += (double) weight[(h * d + c) * e + j] * states[i * e + j];
                }
                squares += y[c] * y[c];
            }
            for (int64_t c = 0; normed && c < d; ++c) {
                y[c] *= norm[c] / std::sqrt(squares / (double) d + 1e-5);
            }
        }
    }
    return out;
}

struct states_case {
    const char * name;
    int n_embd_head, n_head, n_head_kv;
    ggml_type weights, kept;
    double bound_bf16;  // where there are kernels for bf16
    double bound;       // of ggml's products
};

int main() {
    // Half a unit in the last place of bf16 is 2e-3 of a number on average: of weights, of states, of what is kept.
    // ggml rounds states to Q8_0.
    const states_case cases[] = {
        { "f32", 16, 4, 2, GGML_TYPE_F32, GGML_TYPE_F32, 1e-5, 1e-5 },
        { "f16", 16, 4, 2, GGML_TYPE_F16, GGML_TYPE_F32, 1e-3, 1e-3 },
        { "bf16", 16, 4, 2, GGML_TYPE_BF16, GGML_TYPE_F32, 3e-3, 3e-3 },
        { "bf16, odd heads", 15, 2, 2, GGML_TYPE_BF16, GGML_TYPE_F16, 3e-3, 3e-3 },
        { "q8_0 in f16", 128, 2, 2, GGML_TYPE_Q8_0, GGML_TYPE_F16, 4e-3, 8e-3 },
        { "q8_0 in q8_0", 128, 4, 1, GGML_TYPE_Q8_0, GGML_TYPE_Q8_0, 1e-2, 1e-2 },
        { "q4_0, panels of several heads", 80, 6, 6, GGML_TYPE_Q4_0, GGML_TYPE_BF16, 5e-3, 8e-3 },
    };
    const std::vector<cpu_kernels> all = all_cpu_kernels();
    for (const states_case & c : cases) {
        tiny_sizes s;
        s.image = 7 * s.patch;  // 200 image tokens: three cuts of a product, the last one smaller
        s.t_head = c.n_head;
        s.t_kv = c.n_head_kv;
        s.t_embd = c.n_head * c.n_embd_head;
        s.cross_type = c.weights;
        const temp_file file("test-image-states.gguf");
        const tiny_mmproj written(file.path, s);
        gguf_file read(file.path);
        size_t without_ours = 0;
        for (auto kernels = all.rbegin(); kernels != all.rend(); ++kernels) {  // ggml alone first
            setenv("PYVLLAMA_CPU_KERNELS", kernels->name().c_str(), 1);
            mmproj_options options;
            options.cross_kv_type = c.kept;
            mmproj model(file.path, options, nullptr);
            const std::vector<float> pixels((size_t) 4 * 3 * s.image * s.image, 0.5f);
            std::vector<float> states;
            const image_states_ptr image = model.encode(pixels.data(), 4, 3, &states, nullptr, nullptr);
            const double bound = kernels->bf16 ? c.bound_bf16 : c.bound;
            for (size_t j = 0; j < s.cross.size(); ++j) {
                const std::string p = "xattn.blk." + std::to_string(s.cross[j]) + ".";
                const double k = relative_error(image->keys(j), heads(read, s, p + "attn_k", true, states));
                const double v = relative_error(image->values(j), heads(read, s, p + "attn_v", false, states));
                if (j == 0) {
                    printf("%s, %s: keys %.1e, values %.1e\n", c.name, kernels->name().c_str(), k, v);
                }
                CHECK(k < bound);
                CHECK(v < bound);
            }
            model.set_n_threads(2);  // whichever thread takes which unit
            CHECK(model.encode(pixels.data(), 4, 3, nullptr, nullptr, nullptr)->keys(1) == image->keys(1));
            // The matrices that we unpack are not copied for ggml.
            if (!kernels->f32) {
                without_ours = model.weights()->device_bytes();
            } else if (kernels->bf16 && device("cpu").repacks(model.weights()->cross[0].k)) {
                CHECK(model.weights()->device_bytes() < without_ours);
            } else {
                CHECK(model.weights()->device_bytes() == without_ours);
            }
        }
    }
    return summary("image-states");
}
