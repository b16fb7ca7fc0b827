// The bridge into llama_decode: llama.cpp's scheduler shows every tensor it computes to llama_context_params.cb_eval.
// When it has computed `l_out-K`, the output of the self-attention layer before a cross-attention layer, the hook runs
// the gated cross-attention block on that tensor's own memory, and the scheduler goes on with layer K+1.
//
// One hook belongs to one llama_context; begin(), llama_decode() and end() follow one another on one thread. The
// context must have one KV stream (kv_unified, or n_seq_max = 1): with several, llama.cpp reorders rows between
// ubatches.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "batch-plan.h"
#include "cross-attn-graph.h"
#include "importance.h"

namespace pyvllama {

struct hook_stats {
    int64_t n_blocks = 0;  // blocks computed
    int64_t n_graphs = 0;  // graphs built for them
    int64_t n_copies = 0;  // blocks whose rows had to travel between devices
    double ms = 0;         // time spent in the hook
    size_t scratch_bytes = 0;
};

class decode_hook {
  public:
    // poll, if given, is called at most every 100 ms while llama.cpp computes on the CPU; what it throws ends the
    // computation and is rethrown by end(). n_threads: most that set_n_threads may ask for.
    decode_hook(std::shared_ptr<const mllama_weights> weights, int n_threads, std::function<void()> poll);
    ~decode_hook();
    decode_hook(const decode_hook &) = delete;
    decode_hook & operator=(const decode_hook &) = delete;

    // What the rows of the next llama_decode see, in batch order. A batch whose rows see no image leaves llama.cpp
    // entirely alone. Throws std::invalid_argument on a plan that names no or foreign images.
    void begin(std::vector<int32_t> row_group, std::vector<image_group> groups);

    // Ends the batch. Rethrows what went wrong in between (llama_decode itself reports success then!).
    // decoded: llama_decode returned success; then every row must have passed every cross-attention layer, or this
    // throws backend_error.
    void end(bool decoded);

    // From now on the inputs of all matrices, llama.cpp's and those of the cross-attention layers, are counted there;
    // nullptr: no more.
    void set_collector(std::shared_ptr<importance_collector> collector) { collector_ = std::move(collector); }

    // From any thread: while it is on, llama_decode ends soon (on the CPU) and end() throws cancelled.
    void interrupt(bool on) { interrupted_ = on; }

    void set_n_threads(int n_threads);

    // What it computes with on the CPU, for llama_attach_threadpool; nullptr if there is none. It must outlive the
    // context, whose own thread counts must not exceed the hook's.
    ggml_threadpool_t threadpool() const { return threadpool_.get(); }
    const hook_stats & stats() const { return stats_; }

    // llama_context_params.cb_eval and abort_callback; user_data is the hook. Never throw.
    static bool cb_eval(ggml_tensor * tensor, bool ask, void * user_data);
    static bool cb_abort(void * user_data);

  private:
    struct site;   // a device with cross-attention layers
    struct block;  // a graph, built once for a shape and replayed

    bool wants_layer(const ggml_tensor * tensor) const;
    bool wants_input(const ggml_tensor * tensor) const;
    void after_layer(ggml_tensor * l_out);
    void run_block(size_t j_cross, ggml_tensor * l_out, const row_run & run);
    block & find_block(size_t j_cross, const ggml_tensor * l_out, const row_run & run, bool copy);

    void allocate(block & b);

    std::shared_ptr<const mllama_weights> weights_;
    const int max_threads_;
    threadpool_ptr threadpool_;
    std::map<ggml_backend_dev_t, std::unique_ptr<site>> sites_;
    std::function<void()> poll_;
    std::shared_ptr<importance_collector> collector_;
    int64_t last_poll_us_ = 0;
    std::atomic<bool> interrupted_{ false };
    std::map<int, std::vector<size_t>> cross_after_;  // self-attention layer -> cross layers that follow it

    batch_plan plan_;
    std::vector<image_group> groups_;
    std::vector<int> rows_done_;  // per cross layer
    std::exception_ptr failure_;
    row_run run_;  // these two keep their memory: a token that is like the last one allocates nothing
    std::vector<int64_t> key_;

    std::map<std::vector<int64_t>, std::unique_ptr<block>> blocks_;
    uint64_t clock_ = 0;
    hook_stats stats_;
};

}  // namespace pyvllama
