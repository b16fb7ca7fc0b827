#include "importance.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "errors.h"

namespace pyvllama {

namespace {

// llama.cpp's scheduler calls the copy of a weight on another device "CUDA0#blk.0.attn_k.weight#0".
std::string weight_name(const ggml_tensor * weight) {
    std::string name = weight->name;
    const size_t first = name.find('#');
    if (first != std::string::npos) {
        const size_t last = name.find('#', first + 1);
        name = name.substr(first + 1, last == std::string::npos ? last : last - first - 1);
    }
    return name;
}

bool ends_with(const std::string & s, const char * end) {
    const size_t n = strlen(end);
    return s.size() >= n && s.compare(s.size() - n, n, end) == 0;
}

// Our cross-attention blocks scale the input of two matrices by the layer's gate. That is taken out again: the input as
// the model defines it is what counts, whatever the gate.
float gate_before(const std::string & weight, const ggml_tensor * input) {
    float scale = 1.0f;
    if (input->op == GGML_OP_SCALE && weight.compare(0, 6, "xattn.") == 0) {
        memcpy(&scale, input->op_params, sizeof(scale));
    }
    return scale;
}

}  // namespace

bool importance_collector::wants(const ggml_tensor * node) const {
    if (node->op != GGML_OP_MUL_MAT) {
        return false;
    }
    const ggml_tensor *weight = node->src[0], *input = node->src[1];
    if (weight->ne[2] * weight->ne[3] != 1 || input->type != GGML_TYPE_F32) {
        return false;
    }
    // No K or V of a cache, no adapter ("....weight.lora_a"). Tied embeddings are multiplied under their own name.
    const std::string name = weight_name(weight);
    return ends_with(name, ".weight") && name != "token_embd.weight" && (process_output_ || name != "output.weight");
}

void importance_collector::add(const ggml_tensor * node, int64_t max_rows) {
    const ggml_tensor * input = node->src[1];
    const std::string name = weight_name(node->src[0]);
    if (input->nb[0] != sizeof(float)) {
        throw backend_error("the input of " + name + " is not laid out in rows");
    }
    const char * data = (const char *) input->data;
    if (!ggml_backend_buffer_is_host(input->view_src ? input->view_src->buffer : input->buffer)) {
        host_.resize(ggml_nbytes(input));
        ggml_backend_tensor_get(input, host_.data(), 0, host_.size());
        data = (const char *) host_.data();
    }
    const int64_t n = input->ne[0];
    entry & e = entries_[name];
    if (e.sums.empty()) {
        e.sums.resize((size_t) n, 0.0);
    }
    if ((int64_t) e.sums.size() != n) {
        throw backend_error(name + " is multiplied with rows of different lengths");
    }
    const double gate = gate_before(name, input);
    if (gate == 0.0) {  // a closed one: the input cannot be known, and does not matter
        return;
    }
    const double factor = 1.0 / (gate * gate);
    double * sums = e.sums.data();
    int64_t n_rows = 0;
    for (int64_t i3 = 0; i3 < input->ne[3]; ++i3) {
        for (int64_t i2 = 0; i2 < input->ne[2]; ++i2) {
            for (int64_t i1 = 0; i1 < input->ne[1] && n_rows != max_rows; ++i1, ++n_rows) {
                const float * x = (const float *) (data + i1 * input->nb[1] + i2 * input->nb[2] + i3 * input->nb[3]);
                for (int64_t i = 0; i < n; ++i) {
                    sums[i] += factor * (double) x[i] * (double) x[i];
                }
            }
        }
    }
    if (!std::all_of(e.sums.begin(), e.sums.end(), [](double s) { return std::isfinite(s); })) {
        throw backend_error("the input of " + name + " holds numbers that are infinite or not a number");
    }
    e.n_rows += n_rows;
}

}  // namespace pyvllama
