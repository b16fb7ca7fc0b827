// A ggml device: which one, where its weights go, and backends (streams, thread counts) on it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-cpp.h"

namespace pyvllama {

class device {
  public:
    // "cpu", "gpu" (the first one), or a name as ggml gives it ("CUDA0", "Metal"). Throws std::invalid_argument that
    // lists the devices there are.
    explicit device(const std::string & name);

    ggml_backend_dev_t get() const { return dev_; }
    const char * name() const { return ggml_backend_dev_name(dev_); }
    bool is_cpu() const { return ggml_backend_dev_type(dev_) == GGML_BACKEND_DEVICE_TYPE_CPU; }

    // A backend of its own (on a GPU: a stream of its own). n_threads counts on the CPU only. Throws backend_error.
    ggml_backend_ptr new_backend(int n_threads) const;

    // Where a matmul weight is fastest: a repacking buffer type of the CPU if it takes this weight, else the default.
    ggml_backend_buffer_type_t matmul_buft(const ggml_tensor * weight, bool repack) const;
    // Would the CPU keep this weight as a copy in that layout? Only on the CPU.
    bool repacks(const ggml_tensor * weight) const { return matmul_buft(weight, true) != default_buft(); }
    ggml_backend_buffer_type_t default_buft() const { return ggml_backend_dev_buffer_type(dev_); }

  private:
    ggml_backend_dev_t dev_;
    std::vector<ggml_backend_buffer_type_t> extra_bufts_;  // of the CPU
};

// Names of all devices that ggml knows.
std::vector<std::string> device_names();

// The devices that text layers can be put on, in llama.cpp's order: GPUs, or where there are none, those that share the
// host's memory. One that two backends know (CUDA and Vulkan) counts once.
std::vector<ggml_backend_dev_t> offload_devices();

// Sets the CPU backend's thread count; does nothing on other backends.
void set_n_threads(ggml_backend_t backend, int n_threads);

// Threads that backends of the CPU, ours and those of llama.cpp's contexts, compute with in turn. Without them ggml,
// where it is built without OpenMP, starts and ends threads for every piece of a graph that is computed.
struct threadpool_deleter {
    void operator()(ggml_threadpool_t pool) const;
};
using threadpool_ptr = std::unique_ptr<ggml_threadpool, threadpool_deleter>;

// For graphs computed by at most n_threads. nullptr where ggml has no such thing.
threadpool_ptr new_threadpool(int n_threads);

// From now on the CPU backend computes with these threads; does nothing on other backends.
void set_threadpool(ggml_backend_t backend, ggml_threadpool_t pool);

// Called between graph nodes on the CPU (not on other backends); returning true aborts the computation.
void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data);

// The device that can address a tensor's memory. Asks for host memory first: CUDA's pinned host buffers name the CUDA
// device as theirs.
ggml_backend_dev_t device_of(const ggml_tensor * tensor);

}  // namespace pyvllama
