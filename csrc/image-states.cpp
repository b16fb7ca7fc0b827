#include "image-states.h"

#include <atomic>

#include "errors.h"

namespace pyvllama {

image_states::image_states(const mllama_weights & weights, attention_form form, ggml_type type, int n_tokens)
    : weights_(&weights), n_tokens_(n_tokens) {
    static std::atomic<uint64_t> next_id{ 1 };
    id_ = next_id++;
    const mllama_text_hparams & h = weights.hparams().text;
    const int64_t d = h.n_embd_head(), n_kv = h.n_head_kv;
    ctx_.reset(ggml_init({ 2 * weights.cross.size() * ggml_tensor_overhead(), nullptr, true }));
    for (size_t j = 0; j < weights.cross.size(); ++j) {
        k.push_back(ggml_new_tensor_3d(ctx_.get(), type, d, n_tokens, n_kv));
        v.push_back(form == attention_form::softmax ? ggml_new_tensor_3d(ctx_.get(), type, n_tokens, d, n_kv)
                                                    : ggml_new_tensor_3d(ctx_.get(), type, d, n_tokens, n_kv));
    }
    buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx_.get(), weights.dev().default_buft()));
    if (!buffer_) {
        throw backend_error(std::string("no memory on ") + weights.dev().name() + " for an image's keys and values");
    }
}

}  // namespace pyvllama
