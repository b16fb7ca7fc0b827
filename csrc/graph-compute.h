// Running a graph: can the backend do it, and can the caller stop it?
#pragma once

#include <map>
#include <string>

#include "ggml-backend.h"
#include "importance.h"
#include "mllama-weights.h"

namespace pyvllama {

// Kind of node (ggml's name of the operation, or that of our own) -> milliseconds.
using part_times = std::map<std::string, double>;

using node_fn = std::function<void(const ggml_tensor *)>;

// Throws backend_error that names the first node which the backend's device cannot compute.
void require_support(ggml_backend_t backend, ggml_cgraph * graph);

// Computes and waits. on_node, if given, is called between nodes on the CPU with the fraction of nodes done; what it
// throws stops the computation and is rethrown here. Throws backend_error if the computation fails.
//
// parts, if given, gets the milliseconds that each kind of node took, added to what it holds; only on the CPU.
//
// rows: where a collector is attached, it is shown the input of every product with a weight. The graph is then computed
// in parts that end at these nodes, since an input's memory may serve something else later.
//
// on_done, if given, is called once for each node that all threads have finished, on the CPU soon after it.
void compute_graph(ggml_backend_t backend, ggml_cgraph * graph, const progress_fn & on_node = nullptr,
                   const row_counter & rows = {}, part_times * parts = nullptr, const node_fn & on_done = nullptr);

}  // namespace pyvllama
