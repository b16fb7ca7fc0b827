// The tensors of an mmproj file on their devices, and the small tables that only the host reads.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cpu-kernels.h"
#include "device.h"
#include "gguf-file.h"
#include "mllama-hparams.h"

namespace pyvllama {

// Fraction done, 0 to 1. May throw to stop.
using progress_fn = std::function<void(float)>;

struct layer_norm {
    ggml_tensor * weight;  // [n_embd]
    ggml_tensor * bias;    // [n_embd]
};

// MllamaVisionEncoderLayer. Shapes in ggml order.
struct vision_layer {
    layer_norm ln1, ln2;
    ggml_tensor *q, *k, *v, *o;               // [n_embd, n_embd], no bias
    ggml_tensor *ffn_up, *ffn_up_b;           // [n_embd, n_ff], [n_ff]
    ggml_tensor *ffn_down, *ffn_down_b;       // [n_ff, n_embd], [n_embd]
    float gate_attn = 1.0f, gate_ffn = 1.0f;  // tanh(raw) in the global layers, 1 in the local ones
};

// MllamaCrossAttentionDecoderLayer.
struct cross_layer {
    int il_hf;                                  // its index in the HF model
    int il_after;                               // the self-attention layer (text GGUF index) whose output it rewrites
    ggml_tensor *attn_norm, *ffn_norm;          // [n_embd]
    ggml_tensor *q_norm, *k_norm;               // [n_embd_head]
    ggml_tensor *q, *o;                         // [n_embd, n_embd]
    ggml_tensor *k, *v;                         // [n_embd, n_embd_head*n_head_kv]
    ggml_tensor *ffn_gate, *ffn_up, *ffn_down;  // [n_embd, n_ff], [n_embd, n_ff], [n_ff, n_embd]
    float gate_attn, gate_ffn;                  // tanh(raw)
};

// Bytes of weights by where they are, those of the cross-attention layers that are read for every token apart from
// those that are read once a picture: of the tower, and for keys and values.
struct weight_bytes {
    size_t copied_cross = 0, copied_tower = 0;  // in buffers of their own
    size_t mapped_cross = 0, mapped_tower = 0;  // where they lie in the mapped file
};

class mllama_weights {
  public:
    // dev: of vision tower and projector.
    // layer_devs: of the text model's layers. A cross-attention layer lives where the layer lives whose output it
    // rewrites; where that is not said, on dev.
    // repack: let the CPU keep matmul weights in the layout its fastest kernels want (a copy in memory); without it,
    // for types that have no such layout, and for matrices that our own kernels read, they stay in the mapped file.
    mllama_weights(const std::string & path, const device & dev, const std::vector<device> & layer_devs, bool repack,
                   const progress_fn & progress);

    const mllama_hparams & hparams() const { return hparams_; }
    const device & dev() const { return dev_; }
    const device & cross_dev(size_t j_cross) const { return cross_devs_[j_cross]; }
    const cpu_kernels & kernels_on(const device & dev) const;  // none but on the CPU
    // Is a matrix one for our bf16 kernels there? Not where the file has more precision than that.
    bool in_bf16(const ggml_tensor * weight, const device & dev) const;
    uint64_t id() const { return id_; }  // unique in this process
    const std::string & path() const { return file_.path(); }

    // on their devices
    ggml_tensor * patch_embd;  // [patch*patch*3, n_embd], always F32: small, and pixels stay exact
    layer_norm pre_ln, post_ln;
    std::vector<vision_layer> local, global;
    ggml_tensor *mm, *mm_b;  // [n_embd_out, text n_embd], [text n_embd]
    std::vector<cross_layer> cross;

    // on the host, F32; gates applied
    std::vector<float> class_embd() const;                             // [n_embd]
    std::vector<float> position_embd() const;                          // [n_embd, n_positions]
    std::vector<float> tile_position_embd(int aspect_ratio_id) const;  // [n_embd, n_positions, max_num_tiles]
    std::vector<float> pre_tile_embd(int aspect_ratio_id) const;       // [n_embd, max_num_tiles]
    std::vector<float> post_tile_embd(int aspect_ratio_id) const;      // [n_embd, max_num_tiles]
    std::vector<float> image_token_embd() const;                       // [text n_embd]

    // Gives back the pages of what a node has read in the mapped file, if anything. For weights that each picture
    // reads once: the next one finds them in the page cache.
    void drop_pages_read_by(const ggml_tensor * node) const;

    // What there would be with that repack, on this device.
    weight_bytes planned(bool repack) const;

    size_t device_bytes() const;  // weights in buffers of their own
    size_t mapped_bytes() const;  // weights used where they lie in the mapped file

  private:
    void find_tensors(const std::vector<device> & layer_devs);
    void place(bool repack, const progress_fn & progress);
    struct placed {
        ggml_tensor * tensor;
        const device * dev;
    };
    ggml_backend_buffer_type_t buft_of(const placed & matmul, bool repack) const;
    ggml_tensor * find(const device & dev, const std::string & name, const std::vector<int64_t> & ne);
    ggml_tensor * find_matmul(const device & dev, const std::string & name, int64_t n_in, int64_t n_out);
    layer_norm find_norm(const std::string & name, int64_t n);
    float find_gate(const std::string & name);
    std::vector<float> tile_row(const ggml_tensor * table, int aspect_ratio_id, float factor) const;

    uint64_t id_;
    gguf_file file_;
    mllama_hparams hparams_;
    device dev_;
    std::vector<device> cross_devs_;
    cpu_kernels kernels_;  // if anything is on the CPU
    std::vector<placed> matmuls_, others_;
    ggml_tensor * patch_embd_src_;  // as the file has it
    ggml_context_ptr own_;          // of patch_embd
    std::vector<ggml_backend_buffer_ptr> buffers_;
    ggml_backend_buffer_t mapped_ = nullptr;  // one of buffers_, if any weights are used from the file
    size_t device_bytes_ = 0, mapped_bytes_ = 0;

    ggml_tensor *class_embd_, *position_embd_, *tile_position_embd_, *pre_tile_embd_, *post_tile_embd_,
        *image_token_embd_;
    float position_gate_, pre_tile_gate_, post_tile_gate_;  // tanh(raw)
};

}  // namespace pyvllama
