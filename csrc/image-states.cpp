#include "image-states.h"

#include <atomic>
#include <cstring>
#include <map>
#include <stdexcept>

#include "errors.h"

namespace pyvllama {

namespace {

std::vector<float> to_host(const ggml_tensor * t) {
    std::vector<uint8_t> bytes(ggml_nbytes(t));
    ggml_backend_tensor_get(t, bytes.data(), 0, bytes.size());
    std::vector<float> out(ggml_nelements(t));
    if (t->type == GGML_TYPE_F32) {
        memcpy(out.data(), bytes.data(), bytes.size());
    } else {
        ggml_get_type_traits(t->type)->to_float(bytes.data(), out.data(), (int64_t) out.size());
    }
    return out;
}

}  // namespace

std::pair<ggml_type, ggml_type> image_states_types(ggml_type type, attention_form form) {
    const bool is_split = form == attention_form::softmax && ggml_is_quantized(type);
    return { type, is_split ? GGML_TYPE_F16 : type };
}

image_states::image_states(const mllama_weights & weights, ggml_type type, int n_tokens)
    : weights_id_(weights.id()), n_tokens_(n_tokens) {
    static std::atomic<uint64_t> next_id{ 1 };
    id_ = next_id++;
    const mllama_text_hparams & h = weights.hparams().text;
    const int64_t d = h.n_embd_head(), n_kv = h.n_head_kv;
    std::map<ggml_backend_dev_t, ggml_context *> contexts;
    for (size_t j = 0; j < weights.cross.size(); ++j) {
        const device & dev = weights.cross_dev(j);
        ggml_context *& ctx = contexts[dev.get()];
        if (!ctx) {
            contexts_.emplace_back(ggml_init({ 2 * weights.cross.size() * ggml_tensor_overhead(), nullptr, true }));
            ctx = contexts_.back().get();
        }
        forms_.push_back(attention_form_on(dev));
        const auto [k_type, v_type] = image_states_types(type, forms_[j]);
        k.push_back(ggml_new_tensor_3d(ctx, k_type, d, n_tokens, n_kv));
        v.push_back(forms_[j] == attention_form::softmax ? ggml_new_tensor_3d(ctx, v_type, n_tokens, d, n_kv)
                                                         : ggml_new_tensor_3d(ctx, v_type, d, n_tokens, n_kv));
    }
    for (const auto & [dev, ctx] : contexts) {
        buffers_.emplace_back(ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_dev_buffer_type(dev)));
        if (!buffers_.back()) {
            throw backend_error(std::string("no memory on ") + ggml_backend_dev_name(dev) +
                                " for an image's keys and values");
        }
    }
}

size_t image_states::n_bytes() const {
    size_t n = 0;
    for (const ggml_backend_buffer_ptr & buffer : buffers_) {
        n += ggml_backend_buffer_get_size(buffer.get());
    }
    return n;
}

std::vector<float> image_states::keys(size_t j_cross) const {
    return to_host(k.at(j_cross));
}

std::vector<float> image_states::values(size_t j_cross) const {
    const std::vector<float> stored = to_host(v.at(j_cross));
    if (forms_[j_cross] == attention_form::flash) {
        return stored;
    }
    const size_t n = v[j_cross]->ne[0], d = v[j_cross]->ne[1], n_kv = v[j_cross]->ne[2];
    std::vector<float> out(stored.size());
    for (size_t h = 0; h < n_kv; ++h) {
        for (size_t c = 0; c < d; ++c) {
            for (size_t i = 0; i < n; ++i) {
                out[(h * n + i) * d + c] = stored[(h * d + c) * n + i];
            }
        }
    }
    return out;
}

ggml_tensor * image_states::part(size_t i) const {
    if (i >= n_parts()) {
        throw std::invalid_argument("an image has " + std::to_string(n_parts()) + " parts, there is no part " +
                                    std::to_string(i));
    }
    return i % 2 == 0 ? k[i / 2] : v[i / 2];
}

size_t image_states::part_bytes(size_t i) const {
    return ggml_nbytes(part(i));
}

void image_states::get_part(size_t i, uint8_t * dst) const {
    ggml_backend_tensor_get(part(i), dst, 0, part_bytes(i));
}

void image_states::set_part(size_t i, const uint8_t * src, size_t n_bytes) {
    if (n_bytes != part_bytes(i)) {
        throw std::invalid_argument("part " + std::to_string(i) + " of an image has " + std::to_string(part_bytes(i)) +
                                    " bytes, not " + std::to_string(n_bytes));
    }
    ggml_backend_tensor_set(part(i), src, 0, n_bytes);
}

}  // namespace pyvllama
