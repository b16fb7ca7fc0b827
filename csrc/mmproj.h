// An mmproj file in memory: encodes images. Weights are shared with any number of decode hooks.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "graph-compute.h"
#include "image-states.h"
#include "importance.h"
#include "mllama-weights.h"

namespace pyvllama {

struct mmproj_options {
    std::string device = "cpu";              // of the vision tower
    std::vector<std::string> layer_devices;  // of the text layers, see mllama_weights
    int n_threads = 1;
    ggml_type cross_kv_type = GGML_TYPE_F16;  // F32, F16, BF16 or Q8_0
    bool repack = true;                       // see mllama_weights
    bool merge_padding = true;                // see make_vision_input
};

struct encode_stats {
    double tower_ms = 0;  // vision tower and projector
    double kv_ms = 0;     // keys and values of all cross-attention layers
    size_t compute_bytes = 0;
    part_times parts;  // of the tower; empty on devices other than the CPU
};

// What the largest picture and its weights will take, as far as it can be told without computing one.
struct memory_plan {
    weight_bytes weights;  // as if loaded with this `repack`, whatever this mmproj was told
    size_t compute_bytes;  // scratch buffer of the vision tower
};

struct bytes_view {
    const uint8_t * data;
    size_t size;
};

class mmproj {
  public:
    mmproj(const std::string & path, const mmproj_options & options, const progress_fn & progress);

    const mllama_hparams & hparams() const { return weights_->hparams(); }
    const std::shared_ptr<const mllama_weights> & weights() const { return weights_; }
    ggml_type cross_kv_type() const { return options_.cross_kv_type; }

    // pixels: [image_size, image_size, 3, n_tiles] F32. states, if given, gets the cross_attention_states
    // [text n_embd, n_tiles*n_positions]. Threads wait for one another: one image at a time.
    // Throws std::invalid_argument, backend_error, and what progress throws.
    image_states_ptr encode(const float * pixels, int n_tiles, int aspect_ratio_id, std::vector<float> * states,
                            encode_stats * stats, const progress_fn & progress);

    // An image that was encoded before, from its parts (image_states::get_part). n_tokens: as it had.
    // Throws std::invalid_argument on sizes that do not fit this model, backend_error.
    image_states_ptr restore(int n_tokens, const std::vector<bytes_view> & parts) const;

    memory_plan plan(bool repack) const;

    // From now on the inputs of all matrices are counted there; nullptr: no more.
    void set_collector(std::shared_ptr<importance_collector> collector);

    void set_n_threads(int n_threads) { n_threads_ = n_threads; }  // from the next image on

  private:
    image_states_ptr compute_image_states(ggml_tensor * states, ggml_backend_ptr & cpu, const progress_fn & progress);
    // cpu: made when it is needed.
    ggml_backend_t backend_on(const device & dev, ggml_backend_ptr & cpu);

    std::mutex encoding_;
    std::atomic<std::thread::id> encoding_thread_{};
    const mmproj_options options_;
    std::shared_ptr<const mllama_weights> weights_;
    std::map<ggml_backend_dev_t, ggml_backend_ptr> backends_;  // of devices that are no CPU
    std::atomic<int> n_threads_;
    std::shared_ptr<importance_collector> collector_;
};

}  // namespace pyvllama
