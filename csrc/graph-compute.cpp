#include "graph-compute.h"

#include <cstring>
#include <exception>
#include <string>

#include "errors.h"

namespace pyvllama {

namespace {

std::string kind_of(const ggml_tensor * node) {
    switch (node->op) {
        case GGML_OP_CUSTOM:
            return node->name;
        case GGML_OP_MUL_MAT:
            return strncmp(node->src[0]->name, "mm.", 3) == 0 ? "projector" : "product";
        case GGML_OP_FLASH_ATTN_EXT:
            return "attention";
        default:
            return ggml_op_desc(node);
    }
}

bool takes_no_time(const ggml_tensor * node) {  // ggml's CPU backend passes over these
    return node->op == GGML_OP_NONE || node->op == GGML_OP_RESHAPE || node->op == GGML_OP_VIEW ||
           node->op == GGML_OP_PERMUTE || node->op == GGML_OP_TRANSPOSE;
}

struct observer {
    const progress_fn & on_node;
    ggml_cgraph * graph;
    part_times * parts;
    const node_fn & on_done;
    int n_nodes = ggml_graph_n_nodes(graph);
    int n_done = 0;
    int n_told = 0;  // to on_done
    int64_t last_us = ggml_time_us();
    std::exception_ptr stopped = nullptr;

    static bool called(void * data) {
        observer & self = *(observer *) data;
        try {
            self.step();
            return false;
        } catch (...) {  // an exception must not pass through ggml
            self.stopped = std::current_exception();
            return true;
        }
    }

    void tell(int n) {
        for (; on_done && n_told < n; ++n_told) {
            on_done(ggml_graph_node(graph, n_told));
        }
    }

    void step() {
        while (n_done < n_nodes && takes_no_time(ggml_graph_node(graph, n_done))) {
            ++n_done;
        }
        if (parts && n_done < n_nodes) {
            const int64_t now = ggml_time_us();
            (*parts)[kind_of(ggml_graph_node(graph, n_done))] += (double) (now - last_us) / 1000.0;
            last_us = now;
        }
        tell(n_done);  // of this one only our thread is known to have finished
        ++n_done;
        if (on_node) {
            on_node((float) n_done / (float) n_nodes);
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

void compute_graph(ggml_backend_t backend, ggml_cgraph * graph, const progress_fn & on_node, const row_counter & rows,
                   part_times * parts, const node_fn & on_done) {
    observer o{ on_node, graph, parts, on_done };
    const bool observed = on_node || parts || on_done;
    if (observed) {
        set_abort_callback(backend, observer::called, &o);
    }
    const ggml_status status =
        rows.collector ? compute_and_collect(backend, graph, rows) : ggml_backend_graph_compute(backend, graph);
    if (observed) {
        set_abort_callback(backend, nullptr, nullptr);
    }
    o.tell(o.n_nodes);
    if (o.stopped) {
        std::rethrow_exception(o.stopped);
    }
    if (status != GGML_STATUS_SUCCESS) {
        throw backend_error(std::string(ggml_backend_name(backend)) + " failed: " + ggml_status_to_string(status));
    }
}

}  // namespace pyvllama
