#include "graph-compute.h"

#include <exception>
#include <string>

#include "errors.h"

namespace pyvllama {

namespace {

struct observer {
    const progress_fn & on_node;
    int n_nodes;
    int n_done = 0;
    std::exception_ptr stopped;

    static bool called(void * data) {
        observer & self = *(observer *) data;
        try {
            self.on_node((float) ++self.n_done / (float) self.n_nodes);
            return false;
        } catch (...) {  // an exception must not pass through ggml
            self.stopped = std::current_exception();
            return true;
        }
    }
};

ggml_status compute_and_collect(ggml_backend_t backend, ggml_cgraph * graph, const row_counter & rows) {
    const int n = ggml_graph_n_nodes(graph);
    ggml_context_ptr ctx(ggml_init({ ggml_graph_overhead_custom((size_t) n, false), nullptr, true }));
    ggml_cgraph * part = ggml_new_graph_custom(ctx.get(), (size_t) n, false);
    for (int i = 0; i < n; ++i) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        ggml_graph_add_node(part, node);
        const bool wanted = rows.collector->wants(node);
        if (!wanted && i + 1 < n) {
            continue;
        }
        const ggml_status status = ggml_backend_graph_compute(backend, part);
        if (status != GGML_STATUS_SUCCESS) {
            return status;
        }
        if (wanted) {
            rows.collector->add(node, rows.max_rows);
        }
        ggml_graph_clear(part);
    }
    return GGML_STATUS_SUCCESS;
}

}  // namespace

void require_support(ggml_backend_t backend, ggml_cgraph * graph) {
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        const ggml_tensor * node = ggml_graph_node(graph, i);
        if (!ggml_backend_supports_op(backend, node)) {
            throw backend_error(std::string(ggml_backend_name(backend)) + " cannot compute " + ggml_op_desc(node) +
                                " with these types and shapes: put this part of the model on the CPU");
        }
    }
}

void compute_graph(ggml_backend_t backend, ggml_cgraph * graph, const progress_fn & on_node, const row_counter & rows) {
    observer o{ on_node, ggml_graph_n_nodes(graph), 0, nullptr };
    if (on_node) {
        set_abort_callback(backend, observer::called, &o);
    }
    const ggml_status status =
        rows.collector ? compute_and_collect(backend, graph, rows) : ggml_backend_graph_compute(backend, graph);
    if (on_node) {
        set_abort_callback(backend, nullptr, nullptr);
    }
    if (o.stopped) {
        std::rethrow_exception(o.stopped);
    }
    if (status != GGML_STATUS_SUCCESS) {
        throw backend_error(std::string(ggml_backend_name(backend)) + " failed: " + ggml_status_to_string(status));
    }
}

}  // namespace pyvllama
