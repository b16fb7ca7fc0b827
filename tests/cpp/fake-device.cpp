// Devices that are no CPU, for tests on machines without a GPU: ggml loads this library as it loads CUDA's. What they
// compute the CPU computes, but they are as unforgiving as a GPU is:
// - The host cannot touch their memory (it faults), nor can they touch the host's or one another's (they abort).
// - Fresh memory holds NaNs.
// - They are as late as can be: what is asked of a stream (a backend) is done when somebody waits for it and not
// before,
//   while ggml_backend_tensor_get, _set and _copy happen at once, as on CUDA, where they have a stream of their own.
// - Their pinned host memory names them as its device, as CUDA's does.
// PYVLLAMA_FAKE_DEVICES=3072,1024 makes two with so many MiB.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml-device-abi.h"

namespace abi = device_abi;

namespace {

constexpr size_t ALIGNMENT = 128;
constexpr int64_t MIN_ROWS_OFFLOAD = 8;  // CUDA's is 32: few enough here for short prompts to show what it does

struct stream {
    ggml_backend_ptr cpu;
    std::vector<std::function<void()>> waiting;
};

struct fake_device {
    std::string name, host_name;
    size_t n_bytes, n_used = 0;
    int64_t n_nodes = 0;  // computed
    std::list<stream> streams;
    std::map<char *, size_t> memory;
    abi::device dev;
    abi::buffer_type buft, host_buft;

    void run(stream & s) {
        for (auto & f : s.waiting) {
            f();
        }
        s.waiting.clear();
    }
};

// Buffers that a device is at work on. The tests have one thread, and nothing here runs within something else.
struct opened {
    std::set<ggml_backend_buffer_t> buffers;
    explicit opened(std::set<ggml_backend_buffer_t> b) : buffers(std::move(b)) { protect(PROT_READ | PROT_WRITE); }
    ~opened() { protect(PROT_NONE); }
    void protect(int how) const {
        for (ggml_backend_buffer_t b : buffers) {
            mprotect(((abi::buffer *) b)->context, ((abi::buffer *) b)->size, how);
        }
    }
};

template <typename T>
fake_device & of(T * t) {
    return *(fake_device *) t->context;
}

fake_device & of(ggml_backend_dev_t d) {
    return of((abi::device *) d);
}
fake_device & of(ggml_backend_buffer_type_t b) {
    return of((abi::buffer_type *) b);
}
fake_device & of(ggml_backend_buffer_t b) {
    return of(((abi::buffer *) b)->buft);
}
fake_device & of(ggml_backend_t b) {
    return of(((abi::backend *) b)->device);
}
stream & stream_of(ggml_backend_t b) {
    return *(stream *) ((abi::backend *) b)->context;
}

[[noreturn]] void refuse(const fake_device & d, const char * what, const ggml_tensor * t) {
    fprintf(stderr, "%s: %s: tensor '%s' (%s)\n", d.name.c_str(), what, t->name, ggml_op_desc(t));
    abort();
}

ggml_backend_buffer_t buffer_of(const ggml_tensor * t) {
    return t->view_src ? t->view_src->buffer : t->buffer;
}

bool is_here(fake_device & d, const ggml_tensor * t) {
    return buffer_of(t) && ((abi::buffer *) buffer_of(t))->buft == (ggml_backend_buffer_type_t) &d.buft;
}

// buffers

void free_buffer(ggml_backend_buffer_t buffer) {
    fake_device & d = of(buffer);
    for (stream & s : d.streams) {  // CUDA waits for all streams before it frees
        d.run(s);
    }
    char * base = (char *) ((abi::buffer *) buffer)->context;
    munmap(base, d.memory[base]);
    d.n_used -= d.memory[base];
    d.memory.erase(base);
}

const abi::buffer_functions BUFFER = {
    free_buffer,
    [](ggml_backend_buffer_t b) { return ((abi::buffer *) b)->context; },
    nullptr,
    [](ggml_backend_buffer_t b, ggml_tensor * t, uint8_t value, size_t offset, size_t size) {
        const opened o({ b });
        memset((char *) t->data + offset, value, size);
    },
    [](ggml_backend_buffer_t b, ggml_tensor * t, const void * data, size_t offset, size_t size) {
        const opened o({ b });
        memcpy((char *) t->data + offset, data, size);
    },
    [](ggml_backend_buffer_t b, const ggml_tensor * t, void * data, size_t offset, size_t size) {
        const opened o({ b });
        memcpy(data, (const char *) t->data + offset, size);
    },
    nullptr,
    nullptr,
    [](ggml_backend_buffer_t b, const ggml_tensor * src, ggml_tensor * dst) {
        if (!is_here(of(b), src)) {
            return false;
        }
        const opened o({ b, buffer_of(src) });
        memcpy(dst->data, src->data, ggml_nbytes(src));
        return true;
    },
    [](ggml_backend_buffer_t b, uint8_t value) {
        const opened o({ b });
        memset(((abi::buffer *) b)->context, value, ((abi::buffer *) b)->size);
    },
    nullptr,
};

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    fake_device & d = of(buft);
    const size_t whole = (size / 4096 + 1) * 4096;
    if (d.n_used + whole > d.n_bytes) {
        return nullptr;
    }
    char * base = (char *) mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == (char *) MAP_FAILED) {
        return nullptr;
    }
    memset(base, 0xff, whole);
    mprotect(base, whole, PROT_NONE);
    d.memory[base] = whole;
    d.n_used += whole;
    return ggml_backend_buffer_init(buft, BUFFER, base, size);
}

ggml_backend_buffer_t alloc_host_buffer(ggml_backend_buffer_type_t buft, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (buffer) {
        ((abi::buffer *) buffer)->buft = buft;
    }
    return buffer;
}

// streams

// llama.cpp may build its next graph in the same memory before this one is computed, so all of it is copied.
ggml_tensor copy_of(const ggml_tensor * t) {
    ggml_tensor c = *t;
    c.buffer = buffer_of(t);
    c.view_src = nullptr;
    return c;
}

struct graph_copy {
    std::list<ggml_tensor> tensors;
    std::map<const ggml_tensor *, ggml_tensor *> copies;
    std::set<ggml_backend_buffer_t> buffers;
    ggml_context_ptr ctx;
    ggml_cgraph * graph;

    graph_copy(fake_device & d, ggml_cgraph * given) {
        const int n = ggml_graph_n_nodes(given);
        ctx.reset(ggml_init({ ggml_graph_overhead_custom((size_t) n, false), nullptr, true }));
        graph = ggml_new_graph_custom(ctx.get(), (size_t) n, false);
        for (int i = 0; i < n; ++i) {
            ggml_graph_add_node(graph, copy(d, ggml_graph_node(given, i)));
        }
    }
    ggml_tensor * copy(fake_device & d, const ggml_tensor * t) {
        if (!is_here(d, t)) {
            refuse(d, "this memory is not mine", t);
        }
        ggml_tensor *& c = copies[t];
        if (!c) {
            tensors.push_back(copy_of(t));
            c = &tensors.back();
            buffers.insert(c->buffer);
            for (ggml_tensor *& src : c->src) {
                src = src ? copy(d, src) : nullptr;
            }
        }
        return c;
    }
};

ggml_status graph_compute(ggml_backend_t backend, ggml_cgraph * given) {
    fake_device & d = of(backend);
    for (int i = 0; i < ggml_graph_n_nodes(given); ++i) {
        if (!d.dev.iface.supports_op((ggml_backend_dev_t) &d.dev, ggml_graph_node(given, i))) {
            refuse(d, "I cannot compute this", ggml_graph_node(given, i));
        }
    }
    auto graph = std::make_shared<graph_copy>(d, given);
    stream & s = stream_of(backend);
    s.waiting.push_back([&d, &s, graph] {
        const opened o(graph->buffers);
        ggml_backend_graph_compute(s.cpu.get(), graph->graph);
        d.n_nodes += ggml_graph_n_nodes(graph->graph);
    });
    return GGML_STATUS_SUCCESS;
}

const abi::backend_functions BACKEND = {
    [](ggml_backend_t b) { return of(b).name.c_str(); },
    [](ggml_backend_t b) {
        fake_device & d = of(b);
        d.run(stream_of(b));
        d.streams.remove_if([&](const stream & s) { return &s == &stream_of(b); });
        delete (abi::backend *) b;
    },
    [](ggml_backend_t b, ggml_tensor * t, const void * data, size_t offset, size_t size) {
        const std::vector<char> kept((const char *) data, (const char *) data + size);
        stream_of(b).waiting.push_back([t = copy_of(t), kept, offset]() mutable {
            ggml_backend_tensor_set(&t, kept.data(), offset, kept.size());
        });
    },
    [](ggml_backend_t b, const ggml_tensor * t, void * data, size_t offset, size_t size) {
        stream_of(b).waiting.push_back(
            [t = copy_of(t), data, offset, size] { ggml_backend_tensor_get(&t, data, offset, size); });
    },
    nullptr,
    nullptr,
    nullptr,
    [](ggml_backend_t b) { of(b).run(stream_of(b)); },
    nullptr,
    nullptr,
    nullptr,
    nullptr,
    graph_compute,
    [](ggml_backend_t b, ggml_backend_event_t e) { ((abi::event *) e)->context = b; },
    [](ggml_backend_t, ggml_backend_event_t e) { ggml_backend_event_synchronize(e); },
    nullptr,
};

ggml_backend_t init_backend(ggml_backend_dev_t dev, const char *) {
    static ggml_guid guid = { 'p', 'y', 'v', 'l', 'l', 'a', 'm', 'a', ' ', 'f', 'a', 'k', 'e' };
    fake_device & d = of(dev);
    d.streams.push_back({ ggml_backend_ptr(ggml_backend_cpu_init()), {} });
    ggml_backend_cpu_set_n_threads(d.streams.back().cpu.get(), 1);
    return (ggml_backend_t) new abi::backend{ &guid, BACKEND, dev, &d.streams.back() };
}

// devices

bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    const bool host_only = op->op == GGML_OP_CUSTOM || op->op == GGML_OP_MAP_CUSTOM1 || op->op == GGML_OP_MAP_CUSTOM2 ||
                           op->op == GGML_OP_MAP_CUSTOM3;
    return !host_only && ggml_backend_dev_supports_op(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), op);
}

const abi::device_functions DEVICE = {
    [](ggml_backend_dev_t dev) { return of(dev).name.c_str(); },
    [](ggml_backend_dev_t) { return "no GPU, for tests"; },
    [](ggml_backend_dev_t dev, size_t * free, size_t * total) {
        *total = of(dev).n_bytes;
        *free = *total - of(dev).n_used;
    },
    [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; },
    [](ggml_backend_dev_t dev, ggml_backend_dev_props * p) {
        *p = { of(dev).name.c_str(), "no GPU, for tests", 0, 0, GGML_BACKEND_DEVICE_TYPE_GPU, nullptr, {} };
        ggml_backend_dev_memory(dev, &p->memory_free, &p->memory_total);
        p->caps = { true, true, false, true, true };
    },
    init_backend,
    [](ggml_backend_dev_t dev) { return (ggml_backend_buffer_type_t) &of(dev).buft; },
    [](ggml_backend_dev_t dev) { return (ggml_backend_buffer_type_t) &of(dev).host_buft; },
    nullptr,
    supports_op,
    [](ggml_backend_dev_t dev, ggml_backend_buffer_type_t b) {
        return b == (ggml_backend_buffer_type_t) &of(dev).buft;
    },
    [](ggml_backend_dev_t, const ggml_tensor * op) {
        return op->op == GGML_OP_MUL_MAT && op->ne[1] >= MIN_ROWS_OFFLOAD;
    },
    [](ggml_backend_dev_t dev) { return (ggml_backend_event_t) new abi::event{ dev, nullptr }; },
    [](ggml_backend_dev_t, ggml_backend_event_t e) { delete (abi::event *) e; },
    [](ggml_backend_dev_t, ggml_backend_event_t e) {
        if (auto * recorded = (ggml_backend_t) ((abi::event *) e)->context) {
            of(recorded).run(stream_of(recorded));
        }
    },
};

std::vector<std::unique_ptr<fake_device>> devices;
abi::registry registry = {
    abi::API_VERSION,
    {
        [](ggml_backend_reg_t) { return "FAKE"; },
        [](ggml_backend_reg_t) { return devices.size(); },
        [](ggml_backend_reg_t, size_t i) { return (ggml_backend_dev_t) &devices.at(i)->dev; },
        nullptr,
    },
    nullptr,
};

void make_device(size_t n_bytes) {
    devices.push_back(std::make_unique<fake_device>());
    fake_device & d = *devices.back();
    d.name = "FAKE" + std::to_string(devices.size() - 1);
    d.host_name = d.name + "_Host";
    d.n_bytes = n_bytes;
    auto * dev = (ggml_backend_dev_t) &d.dev;
    d.dev = { DEVICE, (ggml_backend_reg_t) &registry, &d };
    auto alignment = [](ggml_backend_buffer_type_t) { return ALIGNMENT; };
    d.buft = { { [](ggml_backend_buffer_type_t b) { return of(b).name.c_str(); }, alloc_buffer, alignment, nullptr,
                 nullptr, [](ggml_backend_buffer_type_t) { return false; } },
               dev,
               &d };
    d.host_buft = { { [](ggml_backend_buffer_type_t b) { return of(b).host_name.c_str(); }, alloc_host_buffer,
                      alignment, nullptr, nullptr, [](ggml_backend_buffer_type_t) { return true; } },
                    dev,
                    &d };
}

}  // namespace

// What ggml_backend_load calls; again, if it was unloaded in between.
extern "C" ggml_backend_reg_t ggml_backend_init() {
    const char * sizes = getenv("PYVLLAMA_FAKE_DEVICES");
    std::stringstream all(sizes ? sizes : "4096");
    const bool is_first = devices.empty();
    for (std::string size; is_first && std::getline(all, size, ',');) {
        make_device((size_t) std::stoull(size) << 20);
    }
    return (ggml_backend_reg_t) &registry;
}

// For tests: nodes computed so far, and memory in use and in all.
extern "C" void fake_device_stats(size_t i, int64_t * n_nodes, size_t * n_used, size_t * n_bytes) {
    *n_nodes = devices.at(i)->n_nodes;
    *n_used = devices.at(i)->n_used;
    *n_bytes = devices.at(i)->n_bytes;
}

extern "C" void fake_device_set_size(size_t i, size_t n_bytes) {
    devices.at(i)->n_bytes = n_bytes;
}
