#include "device.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include "errors.h"
#include "ggml-cpu.h"

namespace pyvllama {

namespace {

// How long threads look for more work before they sleep: some milliseconds, as there are between the pieces of a
// token's graph and between tokens. ggml's own 50 is a tenth of a second and more.
constexpr uint32_t POLL = 2;

template <typename F>
F cpu_function(const char * name) {
    ggml_backend_dev_t cpu = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return (F) ggml_backend_reg_get_proc_address(ggml_backend_dev_backend_reg(cpu), name);
}

bool is_cpu_backend(ggml_backend_t backend) {
    return ggml_backend_dev_type(ggml_backend_get_device(backend)) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

ggml_backend_dev_t find_device(const std::string & name) {
    if (name == "cpu") {
        return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    }
    if (name == "gpu") {
        const std::vector<ggml_backend_dev_t> gpus = offload_devices();
        return gpus.empty() ? nullptr : gpus.front();
    }
    return ggml_backend_dev_by_name(name.c_str());
}

}  // namespace

device::device(const std::string & name) : dev_(find_device(name)) {
    if (!dev_) {
        std::string known;
        for (const std::string & n : device_names()) {
            known += " " + n;
        }
        throw std::invalid_argument("no device '" + name + "' in this build of llama.cpp, which has:" + known);
    }
    if (is_cpu()) {
        auto get = cpu_function<ggml_backend_dev_get_extra_bufts_t>("ggml_backend_dev_get_extra_bufts");
        for (auto * b = get ? get(dev_) : nullptr; b && *b; ++b) {
            extra_bufts_.push_back(*b);
        }
    }
}

ggml_backend_ptr device::new_backend(int n_threads) const {
    ggml_backend_ptr backend(ggml_backend_dev_init(dev_, nullptr));
    if (!backend) {
        throw backend_error(std::string("device ") + name() + " cannot be initialised");
    }
    set_n_threads(backend.get(), n_threads);
    return backend;
}

ggml_backend_buffer_type_t device::matmul_buft(const ggml_tensor * weight, bool repack) const {
    if (repack && is_cpu()) {
        for (ggml_backend_buffer_type_t buft : extra_bufts_) {
            // ask as llama.cpp does: does the device take this matmul with the weight in a buffer of that type?
            ggml_context_ptr ctx(ggml_init({ 8 * ggml_tensor_overhead(), nullptr, true }));
            ggml_tensor * w = ggml_new_tensor_2d(ctx.get(), weight->type, weight->ne[0], weight->ne[1]);
            ggml_tensor * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, weight->ne[0], 512);
            ggml_tensor * op = ggml_mul_mat(ctx.get(), w, x);
            ggml_backend_buffer_ptr empty(ggml_backend_buft_alloc_buffer(buft, 0));
            w->buffer = empty.get();
            if (ggml_backend_dev_supports_op(dev_, op)) {
                return buft;
            }
        }
    }
    return default_buft();
}

std::vector<std::string> device_names() {
    std::vector<std::string> names;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        names.push_back(ggml_backend_dev_name(ggml_backend_dev_get(i)));
    }
    return names;
}

std::vector<ggml_backend_dev_t> offload_devices() {
    std::vector<ggml_backend_dev_t> gpus, integrated;
    auto id_of = [](ggml_backend_dev_t dev) {
        ggml_backend_dev_props props;
        ggml_backend_dev_get_props(dev, &props);
        return std::string(props.device_id ? props.device_id : "");
    };
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_t dev = ggml_backend_dev_get(i);
        const auto type = ggml_backend_dev_type(dev);
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU) {
            const std::string id = id_of(dev);
            auto is_same = [&](ggml_backend_dev_t other) { return !id.empty() && id_of(other) == id; };
            if (std::none_of(gpus.begin(), gpus.end(), is_same)) {
                gpus.push_back(dev);
            }
        } else if (type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            if (integrated.empty() ||
                ggml_backend_dev_backend_reg(dev) == ggml_backend_dev_backend_reg(integrated.front())) {
                integrated.push_back(dev);
            }
        }
    }
    return gpus.empty() ? integrated : gpus;
}

void set_n_threads(ggml_backend_t backend, int n_threads) {
    if (!is_cpu_backend(backend)) {
        return;
    }
    if (auto set = cpu_function<ggml_backend_set_n_threads_t>("ggml_backend_set_n_threads")) {
        set(backend, n_threads);
    }
}

void threadpool_deleter::operator()(ggml_threadpool_t pool) const {
    cpu_function<decltype(&ggml_threadpool_free)>("ggml_threadpool_free")(pool);
}

threadpool_ptr new_threadpool(int n_threads) {
    const auto make = cpu_function<decltype(&ggml_threadpool_new)>("ggml_threadpool_new");
    if (!make || !cpu_function<decltype(&ggml_threadpool_free)>("ggml_threadpool_free")) {
        return nullptr;
    }
    ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
    params.poll = POLL;
    return threadpool_ptr(make(&params));
}

void set_threadpool(ggml_backend_t backend, ggml_threadpool_t pool) {
    if (!is_cpu_backend(backend)) {
        return;
    }
    if (auto set = cpu_function<decltype(&ggml_backend_cpu_set_threadpool)>("ggml_backend_cpu_set_threadpool")) {
        set(backend, pool);
    }
}

void set_abort_callback(ggml_backend_t backend, ggml_abort_callback callback, void * data) {
    if (!is_cpu_backend(backend)) {
        return;
    }
    if (auto set = cpu_function<ggml_backend_set_abort_callback_t>("ggml_backend_set_abort_callback")) {
        set(backend, callback, data);
    }
}

ggml_backend_dev_t device_of(const ggml_tensor * tensor) {
    ggml_backend_buffer_t buffer = tensor->view_src ? tensor->view_src->buffer : tensor->buffer;
    if (ggml_backend_buffer_is_host(buffer)) {
        return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    }
    return ggml_backend_buft_get_device(ggml_backend_buffer_get_type(buffer));
}

}  // namespace pyvllama
