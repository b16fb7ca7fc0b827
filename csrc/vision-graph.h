// The vision tower and the projector as one ggml graph: pixels -> cross_attention_states of the real tiles.
// Mirrors MllamaVisionModel and multi_modal_projector (transformers, modeling_mllama.py) with the semantics of Meta's
// VisionEncoder (llama-models, llama3/multimodal/model.py): the intermediate outputs are the states ENTERING a layer.
#pragma once

#include "importance.h"
#include "vision-input.h"

namespace pyvllama {

class vision_graph {
  public:
    // states: [text n_embd, n_real rows] F32, allocated; the graph writes its result there.
    vision_graph(const mllama_weights & weights, const vision_rows & rows, ggml_tensor * states);

    // Allocates on the backend's device, uploads, computes. Throws backend_error. on_node, if given, is called between
    // graph nodes with the fraction done (on the CPU) and may throw to stop. collector, if given, counts the inputs of
    // all matrices.
    void compute(ggml_backend_t backend, const vision_input & input, const progress_fn & on_node,
                 importance_collector * collector = nullptr);

    size_t compute_bytes() const;  // of the scratch buffer, after compute()

  private:
    ggml_tensor * norm(ggml_tensor * x, const layer_norm & ln, float eps);
    ggml_tensor * attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, bool weighted);
    ggml_tensor * layer(ggml_tensor * x, const vision_layer & l);
    void build(ggml_tensor * states);
    void project(ggml_tensor * last, const std::vector<ggml_tensor *> & intermediate, ggml_tensor * states);

    const mllama_weights & weights_;
    const vision_rows rows_;
    const int n_embd_, n_head_, n_embd_head_;
    const float eps_;
    const bool mask_form_;  // how key weights enter the scores, see attention()

    ggml_context_ptr ctx_owner_;
    ggml_context * ctx_;
    ggml_cgraph * graph_;
    ggml_gallocr_ptr scratch_;
    // inputs
    ggml_tensor *patches_, *embd_, *post_tile_, *tile_of_row_;
    ggml_tensor *ones_ = nullptr, *key_bias_ = nullptr, *mask_ = nullptr;
};

}  // namespace pyvllama
