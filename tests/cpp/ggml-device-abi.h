// What a device has to be for ggml: tables of functions. ggml's releases do not install the header that declares them,
// so here they are in the order in which they lie in memory, for the release that we build against (API_VERSION, which
// ggml compares when it loads a device from a library). `unused` stands for functions that a device may leave out.
#pragma once

#include "ggml-backend.h"

namespace device_abi {

constexpr int API_VERSION = 2;
using unused = void *;

struct buffer_type_functions {
    const char * (*get_name)(ggml_backend_buffer_type_t);
    ggml_backend_buffer_t (*alloc_buffer)(ggml_backend_buffer_type_t, size_t);
    size_t (*get_alignment)(ggml_backend_buffer_type_t);
    unused get_max_size, get_alloc_size;
    bool (*is_host)(ggml_backend_buffer_type_t);
};

struct buffer_type {
    buffer_type_functions iface;
    ggml_backend_dev_t device;
    void * context;
};

struct buffer_functions {
    void (*free_buffer)(ggml_backend_buffer_t);
    void * (*get_base)(ggml_backend_buffer_t);
    unused init_tensor;
    void (*memset_tensor)(ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t);
    void (*set_tensor)(ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t);
    void (*get_tensor)(ggml_backend_buffer_t, const ggml_tensor *, void *, size_t, size_t);
    unused set_tensor_2d, get_tensor_2d;
    bool (*cpy_tensor)(ggml_backend_buffer_t, const ggml_tensor *, ggml_tensor *);
    void (*clear)(ggml_backend_buffer_t, uint8_t);
    unused reset;
};

struct buffer {
    buffer_functions iface;
    ggml_backend_buffer_type_t buft;
    void * context;
    size_t size;
    ggml_backend_buffer_usage usage;
};

struct backend_functions {
    const char * (*get_name)(ggml_backend_t);
    void (*free)(ggml_backend_t);
    void (*set_tensor_async)(ggml_backend_t, ggml_tensor *, const void *, size_t, size_t);
    void (*get_tensor_async)(ggml_backend_t, const ggml_tensor *, void *, size_t, size_t);
    unused set_tensor_2d_async, get_tensor_2d_async, cpy_tensor_async;
    void (*synchronize)(ggml_backend_t);
    unused graph_plan_create, graph_plan_free, graph_plan_update, graph_plan_compute;
    ggml_status (*graph_compute)(ggml_backend_t, ggml_cgraph *);
    void (*event_record)(ggml_backend_t, ggml_backend_event_t);
    void (*event_wait)(ggml_backend_t, ggml_backend_event_t);
    unused graph_optimize;
};

struct backend {
    ggml_guid_t guid;
    backend_functions iface;
    ggml_backend_dev_t device;
    void * context;
};

struct event {
    ggml_backend_dev_t device;
    void * context;
};

struct device_functions {
    const char * (*get_name)(ggml_backend_dev_t);
    const char * (*get_description)(ggml_backend_dev_t);
    void (*get_memory)(ggml_backend_dev_t, size_t *, size_t *);
    enum ggml_backend_dev_type (*get_type)(ggml_backend_dev_t);
    void (*get_props)(ggml_backend_dev_t, ggml_backend_dev_props *);
    ggml_backend_t (*init_backend)(ggml_backend_dev_t, const char *);
    ggml_backend_buffer_type_t (*get_buffer_type)(ggml_backend_dev_t);
    ggml_backend_buffer_type_t (*get_host_buffer_type)(ggml_backend_dev_t);
    unused buffer_from_host_ptr;
    bool (*supports_op)(ggml_backend_dev_t, const ggml_tensor *);
    bool (*supports_buft)(ggml_backend_dev_t, ggml_backend_buffer_type_t);
    bool (*offload_op)(ggml_backend_dev_t, const ggml_tensor *);
    ggml_backend_event_t (*event_new)(ggml_backend_dev_t);
    void (*event_free)(ggml_backend_dev_t, ggml_backend_event_t);
    void (*event_synchronize)(ggml_backend_dev_t, ggml_backend_event_t);
};

struct device {
    device_functions iface;
    ggml_backend_reg_t reg;
    void * context;
};

struct registry_functions {
    const char * (*get_name)(ggml_backend_reg_t);
    size_t (*get_device_count)(ggml_backend_reg_t);
    ggml_backend_dev_t (*get_device)(ggml_backend_reg_t, size_t);
    unused get_proc_address;
};

struct registry {
    int api_version;
    registry_functions iface;
    void * context;
};

}  // namespace device_abi

extern "C" ggml_backend_buffer_t ggml_backend_buffer_init(ggml_backend_buffer_type_t, device_abi::buffer_functions,
                                                          void *, size_t);
