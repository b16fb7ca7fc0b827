// What the vision graph is fed with: rows of pixels and embeddings, and which rows are real. Host only.
//
// Meta's vision encoder always works on max_num_tiles tiles, each of n_positions rows (class token and patches) padded
// to a multiple of 8. Two facts make that cheap without changing a number:
//   - Its mask is an outer product: only pairs of two padding rows are masked, real rows do attend to padding. With the
//     real rows first, two unmasked attention calls do the same: real rows over all keys, padding rows over real keys.
//   - Padding tiles are black, have no tile embedding and see the same keys: all of them hold the same states in every
//     layer. One of them stands for n when log(n) is added to the scores of its keys: softmax then counts them n times.
#pragma once

#include <vector>

#include "mllama-weights.h"

namespace pyvllama {

// Rows: [n_positions of each tile computed][n_pad_rows of each tile computed]. Real rows come first.
struct vision_rows {
    int n_tiles;           // real tiles
    int n_tiles_computed;  // real and padding tiles that the graph computes
    int n_stand_for;       // how many padding tiles the last computed one stands for (1: itself)
    int n_positions, n_pad_rows;

    int n_real() const { return n_tiles * n_positions; }
    int n_patch_rows() const { return n_tiles_computed * n_positions; }
    int n_rows() const { return n_tiles_computed * (n_positions + n_pad_rows); }
    int tile_of(int row) const;
};

struct vision_input {
    vision_rows rows;
    std::vector<float> patches;    // [patch*patch*3, n_patch_rows]; zero for class tokens and padding tiles
    std::vector<float> embd;       // [n_embd, n_patch_rows]: class token, position and tile embeddings
    std::vector<float> post_tile;  // [n_embd, n_tiles_computed]
    std::vector<float> key_bias;   // [n_rows]: log of how many rows a row stands for
};

// pixels: [image_size, image_size, 3, n_tiles] (NumPy: [n_tiles, 3, image_size, image_size]), normalised.
// merge_padding: let one padding tile stand for all where that is exact.
// Throws std::invalid_argument if n_tiles and aspect_ratio_id do not belong together.
vision_input make_vision_input(const mllama_weights & weights, const float * pixels, int n_tiles, int aspect_ratio_id,
                               bool merge_padding);

}  // namespace pyvllama
