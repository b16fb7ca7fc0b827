// Running a graph: can the backend do it, and can the caller stop it?
#pragma once

#include "ggml-backend.h"
#include "importance.h"
#include "mllama-weights.h"

namespace pyvllama {

// Throws backend_error that names the first node which the backend's device cannot compute.
void require_support(ggml_backend_t backend, ggml_cgraph * graph);

// Computes and waits. on_node, if given, is called between nodes on the CPU with the fraction of nodes done; what it
// throws stops the computation and is rethrown here. Throws backend_error if the computation fails.
//
// rows: where a collector is attached, it is shown the input of every product with a weight. The graph is then computed
// in parts that end at these nodes, since an input's memory may serve something else later.
void compute_graph(ggml_backend_t backend, ggml_cgraph * graph, const progress_fn & on_node = nullptr,
                   const row_counter & rows = {});

}  // namespace pyvllama
