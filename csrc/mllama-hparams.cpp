#include "mllama-hparams.h"

#include <algorithm>

namespace pyvllama {

namespace {

constexpr const char * KEY_ARCHITECTURE = "general.architecture";
constexpr const char * KEY_TYPE = "general.type";
constexpr const char * KEY_HAS_VISION = "clip.has_vision_encoder";
constexpr const char * KEY_PROJECTOR_TYPE = "clip.projector_type";
constexpr const char * KEY_FORMAT_VERSION = "clip.mllama.format_version";

constexpr const char * KEY_IMAGE_SIZE = "clip.vision.image_size";
constexpr const char * KEY_PATCH_SIZE = "clip.vision.patch_size";
constexpr const char * KEY_N_EMBD = "clip.vision.embedding_length";
constexpr const char * KEY_N_FF = "clip.vision.feed_forward_length";
constexpr const char * KEY_N_LAYER = "clip.vision.block_count";
constexpr const char * KEY_N_HEAD = "clip.vision.attention.head_count";
constexpr const char * KEY_LN_EPS = "clip.vision.attention.layer_norm_epsilon";
constexpr const char * KEY_PROJECTION_DIM = "clip.vision.projection_dim";

constexpr const char * KEY_N_LAYER_GLOBAL = "clip.mllama.global_block_count";
constexpr const char * KEY_MAX_NUM_TILES = "clip.mllama.max_num_tiles";
constexpr const char * KEY_INTERMEDIATE = "clip.mllama.intermediate_layers_indices";
constexpr const char * KEY_ASPECT_RATIOS = "clip.mllama.supported_aspect_ratios";
constexpr const char * KEY_CROSS_LAYERS = "clip.mllama.cross_attention_layers";
constexpr const char * KEY_TEXT_N_LAYER = "clip.mllama.text.block_count";
constexpr const char * KEY_TEXT_N_EMBD = "clip.mllama.text.embedding_length";
constexpr const char * KEY_TEXT_N_FF = "clip.mllama.text.feed_forward_length";
constexpr const char * KEY_TEXT_N_VOCAB = "clip.mllama.text.vocab_size";
constexpr const char * KEY_TEXT_N_HEAD = "clip.mllama.text.attention.head_count";
constexpr const char * KEY_TEXT_N_HEAD_KV = "clip.mllama.text.attention.head_count_kv";
constexpr const char * KEY_TEXT_RMS_EPS = "clip.mllama.text.attention.layer_norm_rms_epsilon";
constexpr const char * KEY_IMAGE_TOKEN = "clip.mllama.image_token_id";
constexpr const char * KEY_PAIRING_HASH = "clip.mllama.pairing_hash";

constexpr uint32_t FORMAT_VERSION = 1;

// A count from the file within [lo, hi]: the bounds are far beyond any model, and keep all later products in range.
int count(const gguf_file & f, const char * key, uint32_t lo, uint32_t hi) {
    const uint32_t v = f.u32(key);
    if (v < lo || v > hi) {
        f.fail(std::string("key '") + key + "' is " + std::to_string(v) + ", expected " + std::to_string(lo) + " to " +
               std::to_string(hi));
    }
    return (int) v;
}

float epsilon(const gguf_file & f, const char * key) {
    const float v = f.f32(key);
    if (!(v > 0.0f && v < 1.0f)) {
        f.fail(std::string("key '") + key + "' is " + std::to_string(v) + ", expected a small positive number");
    }
    return v;
}

void require_multiple(const gguf_file & f, int value, const char * key, int of, const char * of_key) {
    if (value % of != 0) {
        f.fail(std::string("'") + key + "' (" + std::to_string(value) + ") is no multiple of '" + of_key + "' (" +
               std::to_string(of) + ")");
    }
}

void require_kind(const gguf_file & f, const char * key, const char * expected) {
    const std::string found = f.str(key);
    if (found != expected) {
        f.fail(std::string("'") + key + "' is '" + found + "', expected '" + expected +
               "': this is no mmproj file of a Llama 3.2 Vision model; make one with `pyvllama convert`");
    }
}

mllama_vision_hparams load_vision(const gguf_file & f) {
    mllama_vision_hparams h = {};
    h.n_embd = count(f, KEY_N_EMBD, 1, 1 << 16);
    h.n_head = count(f, KEY_N_HEAD, 1, 1 << 10);
    h.n_ff = count(f, KEY_N_FF, 1, 1 << 20);
    h.n_layer_local = count(f, KEY_N_LAYER, 1, 1 << 10);
    h.n_layer_global = count(f, KEY_N_LAYER_GLOBAL, 0, 1 << 10);
    h.image_size = count(f, KEY_IMAGE_SIZE, 1, 1 << 13);
    h.patch_size = count(f, KEY_PATCH_SIZE, 1, 1 << 10);
    h.max_num_tiles = count(f, KEY_MAX_NUM_TILES, 1, 64);
    h.layer_norm_eps = epsilon(f, KEY_LN_EPS);
    require_multiple(f, h.n_embd, KEY_N_EMBD, h.n_head, KEY_N_HEAD);
    require_multiple(f, h.image_size, KEY_IMAGE_SIZE, h.patch_size, KEY_PATCH_SIZE);
    for (int i : f.i32_array(KEY_INTERMEDIATE)) {
        const auto & known = h.intermediate_layers;
        if (std::find(known.begin(), known.end(), i) != known.end()) {
            f.fail(std::string("'") + KEY_INTERMEDIATE + "' names layer " + std::to_string(i) + " twice");
        }
        if (i < 0 || i >= h.n_layer_local) {
            f.fail(std::string("'") + KEY_INTERMEDIATE + "' names layer " + std::to_string(i) + " of " +
                   std::to_string(h.n_layer_local));
        }
        h.intermediate_layers.push_back(i);
    }
    const std::vector<int32_t> ratios = f.i32_array(KEY_ASPECT_RATIOS);
    if (ratios.empty() || ratios.size() % 2 != 0) {
        f.fail(std::string("'") + KEY_ASPECT_RATIOS + "' is no list of (rows, columns) pairs");
    }
    for (size_t i = 0; i < ratios.size(); i += 2) {
        const int64_t rows = ratios[i], cols = ratios[i + 1];
        if (rows < 1 || cols < 1 || rows * cols > h.max_num_tiles) {
            f.fail(std::string("'") + KEY_ASPECT_RATIOS + "' has " + std::to_string(rows) + " x " +
                   std::to_string(cols) + " tiles, at most " + std::to_string(h.max_num_tiles) + " are possible");
        }
        h.aspect_ratios.push_back({ (int) rows, (int) cols });
    }
    return h;
}

mllama_text_hparams load_text(const gguf_file & f) {
    mllama_text_hparams h = {};
    h.n_layer = count(f, KEY_TEXT_N_LAYER, 1, 1 << 12);
    h.n_embd = count(f, KEY_TEXT_N_EMBD, 1, 1 << 16);
    h.n_ff = count(f, KEY_TEXT_N_FF, 1, 1 << 20);
    h.n_vocab = count(f, KEY_TEXT_N_VOCAB, 1, 1 << 24);
    h.n_head = count(f, KEY_TEXT_N_HEAD, 1, 1 << 10);
    h.n_head_kv = count(f, KEY_TEXT_N_HEAD_KV, 1, 1 << 10);
    h.rms_norm_eps = epsilon(f, KEY_TEXT_RMS_EPS);
    require_multiple(f, h.n_embd, KEY_TEXT_N_EMBD, h.n_head, KEY_TEXT_N_HEAD);
    require_multiple(f, h.n_head, KEY_TEXT_N_HEAD, h.n_head_kv, KEY_TEXT_N_HEAD_KV);
    for (int i : f.i32_array(KEY_CROSS_LAYERS)) {
        const int previous = h.cross_attention_layers.empty() ? -1 : h.cross_attention_layers.back();
        if (i <= previous || i >= h.n_layer) {
            f.fail(std::string("'") + KEY_CROSS_LAYERS + "' is not ascending below " + std::to_string(h.n_layer));
        }
        h.cross_attention_layers.push_back(i);
    }
    if (h.cross_attention_layers.empty()) {
        f.fail(std::string("'") + KEY_CROSS_LAYERS + "' is empty");
    }
    // The hook lives between two self-attention layers: one before, whose output it rewrites, and one after (llama.cpp
    // drops rows nobody asked the logits of in the last layer).
    if (h.cross_attention_layers.front() == 0) {
        f.fail("cross-attention layer 0 stands before all self-attention layers, which is not supported");
    }
    if (h.cross_attention_layers.back() == h.n_layer - 1) {
        f.fail("cross-attention layer " + std::to_string(h.n_layer - 1) +
               " stands after all self-attention layers, which is not supported");
    }
    return h;
}

}  // namespace

mllama_hparams mllama_hparams::load(const gguf_file & f) {
    require_kind(f, KEY_ARCHITECTURE, "clip");
    require_kind(f, KEY_TYPE, "mmproj");
    require_kind(f, KEY_PROJECTOR_TYPE, "mllama");
    if (!f.boolean(KEY_HAS_VISION)) {
        f.fail(std::string("'") + KEY_HAS_VISION + "' is false");
    }
    const uint32_t version = f.u32(KEY_FORMAT_VERSION);
    if (version != FORMAT_VERSION) {
        f.fail("format version " + std::to_string(version) + ", this pyvllama reads version " +
               std::to_string(FORMAT_VERSION) + ": update pyvllama, or convert the model again");
    }
    mllama_hparams h = {};
    h.vision = load_vision(f);
    h.text = load_text(f);
    h.image_token_id = count(f, KEY_IMAGE_TOKEN, 0, 1 << 24);
    h.pairing_hash = f.str(KEY_PAIRING_HASH);
    const int projection = count(f, KEY_PROJECTION_DIM, 1, 1 << 16);
    if (projection != h.text.n_embd) {
        f.fail(std::string("'") + KEY_PROJECTION_DIM + "' (" + std::to_string(projection) + ") is not '" +
               KEY_TEXT_N_EMBD + "' (" + std::to_string(h.text.n_embd) + ")");
    }
    return h;
}

}  // namespace pyvllama
