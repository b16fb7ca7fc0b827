#include "custom-ops.h"

namespace pyvllama {

void custom_ops::compute(ggml_tensor * dst, int, int nth, void * data) {
    op & o = *(op *) data;
    for (int unit; (unit = o.next.fetch_add(1, std::memory_order_relaxed)) < o.n_units;) {
        o.run(dst, unit);
    }
    if (o.n_finished.fetch_add(1) + 1 == nth) {  // the graph may be computed again
        o.next = 0;
        o.n_finished = 0;
    }
}

void * custom_ops::add_op(int64_t n_units, std::function<void(const ggml_tensor *, int)> run) {
    op & o = ops_.emplace_back();
    o.n_units = (int) n_units;
    o.run = std::move(run);
    return &o;
}

ggml_tensor * custom_ops::node(const char * name, ggml_type type, std::initializer_list<int64_t> ne,
                               std::vector<ggml_tensor *> args, void * op) {
    return ggml_set_name(ggml_custom_4d(ctx_, type, ne.begin()[0], ne.begin()[1], ne.size() > 2 ? ne.begin()[2] : 1, 1,
                                        args.data(), (int) args.size(), compute, GGML_N_TASKS_MAX, op),
                         name);
}

ggml_tensor * custom_ops::node_inplace(const char * name, ggml_tensor * x, std::vector<ggml_tensor *> args, void * op) {
    return ggml_set_name(ggml_custom_inplace(ctx_, x, args.data(), (int) args.size(), compute, GGML_N_TASKS_MAX, op),
                         name);
}

}  // namespace pyvllama
