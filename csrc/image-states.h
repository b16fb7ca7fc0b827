// Keys and values of one image, for every cross-attention layer: what text rows attend to. Computed once an image.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "mllama-weights.h"

namespace pyvllama {

// How cross attention is computed, which decides how V is laid out.
enum class attention_form {
    softmax,  // mul_mat / soft_max / mul_mat: exact on the CPU, for every type of K and V
    flash,    // ggml_flash_attn_ext. Not on the CPU, whose kernel accumulates in F16 when K and V are F16: measured
              // errors of up to 13 % over 6404 keys
};

inline attention_form attention_form_on(const device & dev) {
    return dev.is_cpu() ? attention_form::softmax : attention_form::flash;
}

class image_states {
  public:
    // Empty ones for n_tokens image tokens, each layer's on its device. Throws backend_error if there is no memory.
    image_states(const mllama_weights & weights, ggml_type type, int n_tokens);
    image_states(const image_states &) = delete;
    image_states & operator=(const image_states &) = delete;

    uint64_t id() const { return id_; }  // unique in this process
    int n_tokens() const { return n_tokens_; }
    size_t n_bytes() const;
    uint64_t made_for() const { return weights_id_; }  // mllama_weights::id

    // For tests: keys or values of one layer as F32 on the host, [n_embd_head, n_tokens, n_head_kv] in both forms.
    std::vector<float> keys(size_t j_cross) const;
    std::vector<float> values(size_t j_cross) const;

    // What the tensors hold, byte for byte, so that it can be kept elsewhere: k of layer 0, v of layer 0, k of
    // layer 1... Throw std::invalid_argument on a part that there is not, or of another size.
    size_t n_parts() const { return 2 * k.size(); }
    size_t part_bytes(size_t i) const;
    void get_part(size_t i, uint8_t * dst) const;
    void set_part(size_t i, const uint8_t * src, size_t n_bytes);  // only while nobody reads them yet

    std::vector<ggml_tensor *> k;  // per cross layer [n_embd_head, n_tokens, n_head_kv]
    std::vector<ggml_tensor *> v;  // softmax: [n_tokens, n_embd_head, n_head_kv]; flash: as k

  private:
    ggml_tensor * part(size_t i) const;

    uint64_t weights_id_;
    std::vector<attention_form> forms_;  // per cross layer
    uint64_t id_;
    int n_tokens_;
    std::vector<ggml_context_ptr> contexts_;  // one a device
    std::vector<ggml_backend_buffer_ptr> buffers_;
};

// What keys and what values are kept as, where cross_kv_type asks for type. In the softmax form a row of values has as
// many elements as there are image tokens, which is no whole number of quantized blocks: F16 then.
std::pair<ggml_type, ggml_type> image_states_types(ggml_type type, attention_form form);

using image_states_ptr = std::shared_ptr<image_states>;

}  // namespace pyvllama
