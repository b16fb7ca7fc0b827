// Gated cross-attention, mirroring MllamaCrossAttentionDecoderLayer (transformers, modeling_mllama.py) with Meta's
// masking: rows that see no image are never passed in here, rows that do see all real tiles of their images.
#pragma once

#include <vector>

#include "batch-plan.h"
#include "cross-attn-cpu.h"
#include "image-states-cpu.h"
#include "image-states.h"

namespace pyvllama {

// Adds to the graph: K and V of one layer from an image's cross_attention_states.
//   states  [n_embd, n_tokens] F32, on the layer's device
//   own     computes the products with matrices that are in bf16 there (mllama_weights::in_bf16), if given
void build_image_states(ggml_context * ctx, ggml_cgraph * graph, const mllama_weights & weights, size_t j_cross,
                        ggml_tensor * states, const image_states & image, image_states_cpu * own);

// The images that a segment's rows see together.
using image_group = std::vector<image_states_ptr>;

// The block of one cross layer, in place.
//   x         [n_embd, n_rows] F32: the hidden states after the preceding self-attention layer
//   segments  cover the rows
//   views     gets the tensors whose memory is x's (to be re-pointed with it)
//   own       computes attention of many rows, and of few where it can, if given
// Returns the last node.
ggml_tensor * build_cross_attn_block(ggml_context * ctx, const mllama_weights & weights, size_t j_cross,
                                     ggml_tensor * x, const std::vector<row_segment> & segments,
                                     const std::vector<image_group> & groups, std::vector<ggml_tensor *> & views,
                                     cross_attn_cpu * own);

// How many nodes the block needs at most.
size_t cross_attn_block_nodes(const mllama_text_hparams & hparams, int n_rows,
                              const std::vector<row_segment> & segments, const std::vector<image_group> & groups);

}  // namespace pyvllama
