// The vision tower and the projector as one ggml graph: pixels -> cross_attention_states of the real tiles.
// Mirrors MllamaVisionModel and multi_modal_projector (transformers, modeling_mllama.py) with the semantics of Meta's
// VisionEncoder (llama-models, llama3/multimodal/model.py): the intermediate outputs are the states ENTERING a layer.
#pragma once

#include "graph-compute.h"
#include "importance.h"
#include "tower-ops.h"
#include "vision-input.h"

namespace pyvllama {

class vision_graph {
  public:
    // states: [text n_embd, n_real rows] F32, allocated; the graph writes its result there.
    // collector, if given, counts the inputs of all matrices; ggml then computes all products.
    vision_graph(const mllama_weights & weights, const vision_rows & rows, ggml_tensor * states,
                 importance_collector * collector);

    // Allocates on the backend's device, uploads, computes. Throws backend_error. on_node, if given, is called between
    // graph nodes with the fraction done (on the CPU) and may throw to stop.
    // parts: see compute_graph.
    void compute(ggml_backend_t backend, vision_input input, const progress_fn & on_node, part_times * parts = nullptr);

    // Of the scratch buffer that compute() would allocate on that device.
    size_t planned_bytes(const device & dev) const;
    size_t compute_bytes() const;  // of the scratch buffer, after compute()

  private:
    ggml_tensor * norm(ggml_tensor * x, const layer_norm & ln, float eps);
    ggml_tensor * attention(ggml_tensor * q, ggml_tensor * k, ggml_tensor * v, bool weighted);
    // last: of the last layer, where only the real rows are wanted. The three forms differ in who computes what:
    ggml_tensor * layer(ggml_tensor * x, const vision_layer & l, bool last);
    ggml_tensor * layer_ggml(ggml_tensor * x, const vision_layer & l);             // ggml everything
    ggml_tensor * layer_f32(ggml_tensor * x, const vision_layer & l, bool last);   // ggml products with weights only
    ggml_tensor * layer_bf16(ggml_tensor * x, const vision_layer & l, bool last);  // we everything
    ggml_tensor * real_rows(ggml_tensor * x);
    ggml_tensor * own_key_bias(ggml_type type);
    void set_own_key_bias(const std::vector<float> & log_weights);
    bool in_bf16(const ggml_tensor * weight) const { return !collector_ && weights_.in_bf16(weight, weights_.dev()); }
    bool in_bf16(const vision_layer & l) const;
    void build(ggml_tensor * states);
    void project(ggml_tensor * last, const std::vector<ggml_tensor *> & intermediate, ggml_tensor * states);
    void project_bf16(ggml_tensor * last, const std::vector<ggml_tensor *> & intermediate, ggml_tensor * states);

    const mllama_weights & weights_;
    const vision_rows rows_;
    const int n_embd_, n_head_, n_embd_head_;
    const float eps_;
    const bool mask_form_;  // how key weights enter the scores, see attention()
    importance_collector * const collector_;
    const bool own_;  // our own kernels

    ggml_context_ptr ctx_owner_;
    ggml_context * ctx_;
    ggml_cgraph * graph_;
    ggml_gallocr_ptr scratch_;
    std::unique_ptr<tower_ops> ops_;
    // inputs
    ggml_tensor *patches_, *embd_, *post_tile_, *tile_of_row_;
    ggml_tensor *ones_ = nullptr, *key_bias_ = nullptr, *mask_ = nullptr;     // of layer_ggml
    ggml_tensor *own_key_bias_f32_ = nullptr, *own_key_bias_bf16_ = nullptr;  // of the others, where there are any
};

}  // namespace pyvllama
