// The numbers of an mmproj file. The only place in C++ that knows the key strings.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "gguf-file.h"

namespace pyvllama {

struct mllama_vision_hparams {
    int n_embd;                                     // 1280 in the 11B model
    int n_head;                                     // 16
    int n_ff;                                       // 5120
    int n_layer_local;                              // 32
    int n_layer_global;                             // 8, gated
    int image_size;                                 // edge of a tile in pixels: 560
    int patch_size;                                 // 14
    int max_num_tiles;                              // 4
    float layer_norm_eps;                           // of the blocks
    std::vector<int> intermediate_layers;           // their inputs are handed to the projector
    std::vector<std::array<int, 2>> aspect_ratios;  // (rows, columns) in tiles; aspect_ratio_id - 1 indexes it

    int n_patches() const { return (image_size / patch_size) * (image_size / patch_size); }
    int n_positions() const { return n_patches() + 1; }             // class token first
    int n_pad_rows() const { return (8 - n_positions() % 8) % 8; }  // Meta pads a tile's rows to a multiple of 8
    int64_t n_embd_out() const { return (int64_t) n_embd * (1 + (int64_t) intermediate_layers.size()); }
};

struct mllama_text_hparams {
    int n_layer;    // of the HF model: self-attention and cross-attention layers together
    int n_embd;     // 4096
    int n_head;     // 32
    int n_head_kv;  // 8
    int n_ff;       // 14336
    int n_vocab;    // rows of lm_head
    float rms_norm_eps;
    std::vector<int> cross_attention_layers;  // HF indices, ascending

    int n_embd_head() const { return n_embd / n_head; }
    int n_layer_self() const { return n_layer - (int) cross_attention_layers.size(); }
};

struct mllama_hparams {
    mllama_vision_hparams vision;
    mllama_text_hparams text;
    int image_token_id;
    std::string pairing_hash;

    // Reads and checks all of them; throws format_error.
    static mllama_hparams load(const gguf_file & file);
};

// layernorm_pre and layernorm_post are plain torch.nn.LayerNorm: their epsilon is torch's default, in no config file.
constexpr float LAYER_NORM_EPS_OUTER = 1e-5f;

}  // namespace pyvllama
