// A tiny random mmproj file, written with ggml's own GGUF writer. `edit` may damage it before it is written.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "ggml-cpp.h"
#include "ggml.h"
#include "gguf.h"

struct tiny_sizes {
    int n_embd = 32, n_head = 2, n_ff = 48, n_local = 2, n_global = 1, image = 28, patch = 14, max_tiles = 4;
    int t_embd = 64, t_head = 4, t_kv = 2, t_ff = 96, t_layers = 6, n_vocab = 50;
    std::vector<int32_t> cross = { 1, 2, 4 }, intermediate = { 1, 0 }, aspects = { 1, 1, 1, 2, 2, 2, 3, 1 };
    std::function<ggml_type(const std::string &)> type;  // of a matrix of the tower, by its name; none: F32
    ggml_type cross_type = GGML_TYPE_F32;                // of a matrix of the cross-attention layers
    bool zero_padding = true;  // tile embeddings of padding tiles are zero, as in real checkpoints
};

class tiny_mmproj {
  public:
    using edit_fn = std::function<void(gguf_context *)>;

    tiny_mmproj(const std::string & path, const tiny_sizes & s = {}, const edit_fn & edit = nullptr,
                const std::string & leave_out = "", const std::string & extra = "")
        : ctx_(ggml_init({ 64 << 20, nullptr, false })),
          gguf_(gguf_init_empty()),
          leave_out_(leave_out),
          type_(s.type),
          cross_type_(s.cross_type) {
        keys(s);
        tensors(s);
        if (!extra.empty()) {
            add(extra, { 4 });
        }
        if (edit) {
            edit(gguf_.get());
        }
        gguf_write_to_file(gguf_.get(), path.c_str(), false);
    }

  private:
    void keys(const tiny_sizes & s) {
        gguf_context * g = gguf_.get();
        gguf_set_val_str(g, "general.architecture", "clip");
        gguf_set_val_str(g, "general.type", "mmproj");
        gguf_set_val_str(g, "clip.projector_type", "mllama");
        gguf_set_val_bool(g, "clip.has_vision_encoder", true);
        const std::map<std::string, uint32_t> u32 = {
            { "clip.mllama.format_version", 1 },
            { "clip.vision.image_size", s.image },
            { "clip.vision.patch_size", s.patch },
            { "clip.vision.embedding_length", s.n_embd },
            { "clip.vision.feed_forward_length", s.n_ff },
            { "clip.vision.block_count", s.n_local },
            { "clip.vision.attention.head_count", s.n_head },
            { "clip.vision.projection_dim", s.t_embd },
            { "clip.mllama.global_block_count", s.n_global },
            { "clip.mllama.max_num_tiles", s.max_tiles },
            { "clip.mllama.text.block_count", s.t_layers },
            { "clip.mllama.text.embedding_length", s.t_embd },
            { "clip.mllama.text.feed_forward_length", s.t_ff },
            { "clip.mllama.text.vocab_size", s.n_vocab },
            { "clip.mllama.text.attention.head_count", s.t_head },
            { "clip.mllama.text.attention.head_count_kv", s.t_kv },
            { "clip.mllama.image_token_id", s.n_vocab },
        };
        for (const auto & [key, value] : u32) {
            gguf_set_val_u32(g, key.c_str(), value);
        }
        gguf_set_val_f32(g, "clip.vision.attention.layer_norm_epsilon", 1e-5f);
        gguf_set_val_f32(g, "clip.mllama.text.attention.layer_norm_rms_epsilon", 1e-5f);
        gguf_set_val_str(g, "clip.mllama.pairing_hash", "0");
        auto array = [&](const char * key, const std::vector<int32_t> & v) {
            gguf_set_arr_data(g, key, GGUF_TYPE_INT32, v.data(), v.size());
        };
        array("clip.mllama.intermediate_layers_indices", s.intermediate);
        array("clip.mllama.supported_aspect_ratios", s.aspects);
        array("clip.mllama.cross_attention_layers", s.cross);
    }

    float * add(const std::string & name, std::vector<int64_t> ne, float mean = 0.0f, float scale = 0.0f) {
        if (name == leave_out_) {
            return nullptr;
        }
        ggml_tensor * t = ggml_new_tensor(ctx_.get(), GGML_TYPE_F32, (int) ne.size(), ne.data());
        ggml_set_name(t, name.c_str());
        std::mt19937 rng((unsigned) std::hash<std::string>{}(name));
        std::normal_distribution<float> normal(mean, scale > 0 ? scale : 1.3f / std::sqrt((float) ne[0]));
        float * data = (float *) t->data;
        for (int64_t i = 0; i < ggml_nelements(t); ++i) {
            data[i] = normal(rng);
        }
        const bool matrix = ne.size() == 2 && name.find("embd") == std::string::npos;
        const ggml_type type = matrix && name.compare(0, 6, "xattn.") == 0 ? cross_type_
                               : matrix && type_                           ? type_(name)
                                                                           : GGML_TYPE_F32;
        if (type != GGML_TYPE_F32) {
            ggml_tensor * other = ggml_new_tensor(ctx_.get(), type, (int) ne.size(), ne.data());
            ggml_quantize_chunk(type, data, other->data, 0, ne[1], ne[0], nullptr);
            ggml_set_name(other, name.c_str());
            t = other;
        }
        gguf_add_tensor(gguf_.get(), t);
        return data;
    }

    void add_tile_embd(const std::string & name, const tiny_sizes & s, int64_t n_values) {
        const int64_t n_aspect = (int64_t) s.aspects.size() / 2 + 1;
        float * data = add(name + ".weight", { n_values * s.max_tiles, n_aspect }, 0, 0.5f);
        if (name != "v.tile_position_embd") {  // shares the position embedding's gate
            add(name + ".gate", { 1 }, 0.7f, 0.1f);
        }
        for (int64_t a = 1; data && s.zero_padding && a < n_aspect; ++a) {
            const int n_tiles = s.aspects[2 * (a - 1)] * s.aspects[2 * (a - 1) + 1];
            float * row = data + a * n_values * s.max_tiles;
            std::fill(row + n_tiles * n_values, row + s.max_tiles * n_values, 0.0f);
        }
    }

    void tensors(const tiny_sizes & s) {
        const int64_t n_pos = (int64_t) (s.image / s.patch) * (s.image / s.patch) + 1, d = s.t_embd / s.t_head;
        add("v.class_embd", { s.n_embd }, 0, 0.5f);
        add("v.patch_embd.weight", { s.patch, s.patch, 3, s.n_embd }, 0, 0.05f);
        add("v.position_embd.weight", { s.n_embd, n_pos }, 0, 0.5f);
        add("v.position_embd.gate", { 1 }, 0.5f, 0.1f);
        add_tile_embd("v.tile_position_embd", s, n_pos * s.n_embd);
        add_tile_embd("v.pre_tile_position_embd", s, s.n_embd);
        add_tile_embd("v.post_tile_position_embd", s, s.n_embd);
        auto norm = [&](const std::string & name, int64_t n) {
            add(name + ".weight", { n }, 1, 0.2f);
            add(name + ".bias", { n }, 0, 0.1f);
        };
        norm("v.pre_ln", s.n_embd);
        norm("v.post_ln", s.n_embd);
        for (int i = 0; i < s.n_local + s.n_global; ++i) {
            const bool global = i >= s.n_local;
            const std::string p =
                (global ? "v.global.blk." + std::to_string(i - s.n_local) : "v.blk." + std::to_string(i)) + ".";
            norm(p + "ln1", s.n_embd);
            norm(p + "ln2", s.n_embd);
            for (const char * m : { "attn_q", "attn_k", "attn_v", "attn_out" }) {
                add(p + m + ".weight", { s.n_embd, s.n_embd });
            }
            add(p + "ffn_up.weight", { s.n_embd, s.n_ff });
            add(p + "ffn_up.bias", { s.n_ff }, 0, 0.1f);
            add(p + "ffn_down.weight", { s.n_ff, s.n_embd });
            add(p + "ffn_down.bias", { s.n_embd }, 0, 0.1f);
            if (global) {
                add(p + "gate_attn", { 1 }, 0.8f, 0.1f);
                add(p + "gate_ffn", { 1 }, -0.6f, 0.1f);
            }
        }
        add("mm.0.weight", { s.n_embd * (1 + (int64_t) s.intermediate.size()), s.t_embd });
        add("mm.0.bias", { s.t_embd }, 0, 0.1f);
        add("mm.image_token_embd.weight", { s.t_embd }, 0, 1);
        for (int il : s.cross) {
            const std::string p = "xattn.blk." + std::to_string(il) + ".";
            add(p + "attn_norm.weight", { s.t_embd }, 1, 0.2f);
            add(p + "ffn_norm.weight", { s.t_embd }, 1, 0.2f);
            add(p + "attn_q_norm.weight", { d }, 1, 0.2f);
            add(p + "attn_k_norm.weight", { d }, 1, 0.2f);
            add(p + "attn_q.weight", { s.t_embd, s.t_embd });
            add(p + "attn_k.weight", { s.t_embd, d * s.t_kv });
            add(p + "attn_v.weight", { s.t_embd, d * s.t_kv });
            add(p + "attn_output.weight", { s.t_embd, s.t_embd });
            add(p + "ffn_gate.weight", { s.t_embd, s.t_ff });
            add(p + "ffn_up.weight", { s.t_embd, s.t_ff });
            add(p + "ffn_down.weight", { s.t_ff, s.t_embd });
            add(p + "gate_attn", { 1 }, 0.9f, 0.1f);
            add(p + "gate_ffn", { 1 }, 0.5f, 0.1f);
        }
    }

    ggml_context_ptr ctx_;
    gguf_context_ptr gguf_;
    std::string leave_out_;
    std::function<ggml_type(const std::string &)> type_;
    ggml_type cross_type_;
};

// A file name in the current directory, removed at the end.
struct temp_file {
    std::string path;
    explicit temp_file(const std::string & name) : path(name) {}
    ~temp_file() { remove(path.c_str()); }
};
