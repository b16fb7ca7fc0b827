#include "vision-input.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace pyvllama {

namespace {

bool all_zero(const std::vector<float> & v, size_t first, size_t n) {
    return std::all_of(v.begin() + first, v.begin() + first + n, [](float x) { return x == 0.0f; });
}

// The patch rows of one tile: row 0 is the class token's, row 1 + i holds patch i as [patch, patch, 3].
void cut_patches(const mllama_vision_hparams & h, const float * tile, float * rows) {
    const int size = h.image_size, patch = h.patch_size, n_side = size / patch, n_values = 3 * patch * patch;
    for (int i = 0; i < n_side * n_side; ++i) {
        float * row = rows + (size_t) (i + 1) * n_values;
        const float * corner = tile + (size_t) (i / n_side) * patch * size + (size_t) (i % n_side) * patch;
        for (int c = 0; c < 3; ++c) {
            for (int y = 0; y < patch; ++y) {
                memcpy(row + (c * patch + y) * patch, corner + ((size_t) c * size + y) * size, patch * sizeof(float));
            }
        }
    }
}

}  // namespace

int vision_rows::tile_of(int row) const {
    return row < n_patch_rows() ? row / n_positions : (row - n_patch_rows()) / n_pad_rows;
}

vision_input make_vision_input(const mllama_weights & weights, const float * pixels, int n_tiles, int aspect_ratio_id,
                               bool merge_padding) {
    const mllama_vision_hparams & h = weights.hparams().vision;
    if (aspect_ratio_id < 1 || aspect_ratio_id > (int) h.aspect_ratios.size()) {
        throw std::invalid_argument("aspect_ratio_id " + std::to_string(aspect_ratio_id) + " is not in 1.." +
                                    std::to_string(h.aspect_ratios.size()));
    }
    const auto & ratio = h.aspect_ratios[aspect_ratio_id - 1];
    if (n_tiles != ratio[0] * ratio[1]) {
        throw std::invalid_argument("aspect_ratio_id " + std::to_string(aspect_ratio_id) + " is " +
                                    std::to_string(ratio[0]) + " x " + std::to_string(ratio[1]) +
                                    " tiles, but there are " + std::to_string(n_tiles));
    }
    const size_t n_embd = h.n_embd, n_pos = h.n_positions(), n_values = 3 * (size_t) h.patch_size * h.patch_size;
    const std::vector<float> class_embd = weights.class_embd(), position = weights.position_embd();
    const std::vector<float> tile_position = weights.tile_position_embd(aspect_ratio_id);
    const std::vector<float> pre_tile = weights.pre_tile_embd(aspect_ratio_id);
    std::vector<float> post_tile = weights.post_tile_embd(aspect_ratio_id);

    const int n_padding = h.max_num_tiles - n_tiles;
    for (int t = n_tiles; t < h.max_num_tiles && merge_padding; ++t) {
        merge_padding = all_zero(tile_position, t * n_pos * n_embd, n_pos * n_embd) &&
                        all_zero(pre_tile, t * n_embd, n_embd) && all_zero(post_tile, t * n_embd, n_embd);
    }
    vision_input in;
    vision_rows & rows = in.rows;
    rows.n_tiles = n_tiles;
    rows.n_stand_for = merge_padding && n_padding > 1 ? n_padding : 1;
    rows.n_tiles_computed = rows.n_stand_for > 1 ? n_tiles + 1 : h.max_num_tiles;
    rows.n_positions = (int) n_pos;
    rows.n_pad_rows = h.n_pad_rows();

    in.patches.assign(rows.n_patch_rows() * n_values, 0.0f);
    in.embd.resize(rows.n_patch_rows() * n_embd);
    for (int t = 0; t < rows.n_tiles_computed; ++t) {
        if (t < n_tiles) {
            const size_t tile_values = 3 * (size_t) h.image_size * h.image_size;
            cut_patches(h, pixels + t * tile_values, in.patches.data() + t * n_pos * n_values);
        }
        for (size_t i = 0; i < n_pos; ++i) {
            float * row = in.embd.data() + (t * n_pos + i) * n_embd;
            const float * pos = position.data() + i * n_embd;
            const float * tile_pos = tile_position.data() + (t * n_pos + i) * n_embd;
            // Meta adds the tile embedding before the class token joins, so the class token has none
            const float * first = i == 0 ? class_embd.data() : pre_tile.data() + t * n_embd;
            for (size_t d = 0; d < n_embd; ++d) {
                row[d] = first[d] + pos[d] + tile_pos[d];
            }
        }
    }
    post_tile.resize(rows.n_tiles_computed * n_embd);
    in.post_tile = std::move(post_tile);
    in.key_bias.assign(rows.n_rows(), 0.0f);
    for (int r = rows.n_real(); r < rows.n_rows(); ++r) {
        if (rows.tile_of(r) >= n_tiles) {
            in.key_bias[r] = std::log((float) rows.n_stand_for);
        }
    }
    return in;
}

}  // namespace pyvllama
