#include "decode-hook.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "errors.h"
#include "graph-compute.h"

namespace pyvllama {

namespace {

constexpr const char * LAYER_OUTPUT = "l_out-";  // llama.cpp's name for a layer's output, followed by its index
constexpr int64_t POLL_US = 100 * 1000;
constexpr size_t MAX_BLOCKS_PER_LAYER = 8;  // decoding shapes stay, one-off prefill shapes go

// -1 if the tensor is no layer output
int layer_of(const ggml_tensor * t) {
    const size_t n = strlen(LAYER_OUTPUT);
    if (strncmp(t->name, LAYER_OUTPUT, n) != 0 || t->name[n] < '0' || t->name[n] > '9') {
        return -1;
    }
    char * end;
    const long il = strtol(t->name + n, &end, 10);
    return *end ? -1 : (int) il;
}

// Makes x, a leaf of ours, name n rows of l_out's memory: l_out itself would drag llama.cpp's graph into ours.
void alias_rows(ggml_tensor * x, const ggml_tensor * l_out, int first_row) {
    x->buffer = l_out->view_src ? l_out->view_src->buffer : l_out->buffer;
    x->data = (char *) l_out->data + (size_t) first_row * l_out->nb[1];
}

}  // namespace

struct decode_hook::site {
    ggml_backend_ptr backend;
    ggml_gallocr_ptr scratch;             // shared by the blocks here: one runs at a time and nothing outlives it
    const void * scratch_base = nullptr;  // of the buffer that they point into
    size_t scratch_bytes = 0;
};

struct decode_hook::block {
    site * on;
    ggml_context_ptr ctx;
    std::unique_ptr<cross_attn_cpu> own;  // some nodes of the graph
    ggml_cgraph * graph = nullptr;
    ggml_tensor * x = nullptr;         // the rows: l_out's own memory, or a copy when the devices differ
    ggml_tensor * far = nullptr;       // copy only: the rows on the other device
    std::vector<ggml_tensor *> views;  // results in place: their memory is x's
    uint64_t used = 0;
};

decode_hook::decode_hook(std::shared_ptr<const mllama_weights> weights, int n_threads, std::function<void()> poll)
    : weights_(std::move(weights)),
      max_threads_(n_threads),
      threadpool_(new_threadpool(n_threads)),
      poll_(std::move(poll)),
      rows_done_(weights_->cross.size(), 0) {
    for (size_t j = 0; j < weights_->cross.size(); ++j) {
        cross_after_[weights_->cross[j].il_after].push_back(j);
        const device & dev = weights_->cross_dev(j);
        std::unique_ptr<site> & on = sites_[dev.get()];
        if (!on) {
            on = std::make_unique<site>();
            on->backend = dev.new_backend(n_threads);
            set_threadpool(on->backend.get(), threadpool_.get());
            on->scratch.reset(ggml_gallocr_new(dev.default_buft()));
        }
    }
}

decode_hook::~decode_hook() = default;

void decode_hook::set_n_threads(int n_threads) {
    for (const auto & entry : sites_) {
        pyvllama::set_n_threads(entry.second->backend.get(), std::min(n_threads, max_threads_));
    }
}

void decode_hook::begin(std::vector<int32_t> row_group, std::vector<image_group> groups) {
    for (const image_group & group : groups) {
        if (group.empty()) {
            throw std::invalid_argument("a group of images is empty");
        }
        for (const image_states_ptr & image : group) {
            if (!image || image->made_for() != weights_->id()) {
                throw std::invalid_argument("an image was not encoded by this model");
            }
        }
    }
    plan_ = batch_plan(std::move(row_group), (int) groups.size());
    groups_ = std::move(groups);
    std::fill(rows_done_.begin(), rows_done_.end(), 0);
    failure_ = nullptr;
}

void decode_hook::end(bool decoded) {
    const batch_plan plan = std::move(plan_);
    plan_ = batch_plan();
    groups_.clear();
    if (std::exception_ptr failure = std::exchange(failure_, nullptr)) {
        std::rethrow_exception(failure);
    }
    if (!decoded || !plan.sees_images()) {
        return;
    }
    for (size_t j = 0; j < rows_done_.size(); ++j) {
        if (rows_done_[j] != plan.n_rows()) {
            throw backend_error("cross-attention layer " + std::to_string(weights_->cross[j].il_hf) + " saw " +
                                std::to_string(rows_done_[j]) + " of " + std::to_string(plan.n_rows()) +
                                " rows: llama.cpp did not compute the graph as expected");
        }
    }
}

bool decode_hook::wants_layer(const ggml_tensor * tensor) const {
    if (!plan_.sees_images() || failure_) {
        return false;
    }
    const int il = layer_of(tensor);
    return il >= 0 && cross_after_.count(il) > 0;
}

bool decode_hook::wants_input(const ggml_tensor * tensor) const {
    return collector_ && !failure_ && collector_->wants(tensor);
}

bool decode_hook::cb_eval(ggml_tensor * tensor, bool ask, void * user_data) {
    decode_hook & self = *(decode_hook *) user_data;
    if (ask) {
        return self.wants_layer(tensor) || self.wants_input(tensor);
    }
    const int64_t t0 = ggml_time_us();
    try {
        if (self.wants_input(tensor)) {
            self.collector_->add(tensor);
        } else {
            self.after_layer(tensor);
        }
    } catch (...) {  // an exception must not pass through llama.cpp
        self.failure_ = std::current_exception();
    }
    self.stats_.ms += (double) (ggml_time_us() - t0) / 1000.0;
    return !self.failure_;  // false skips the rest of this graph split only; end() tells
}

bool decode_hook::cb_abort(void * user_data) {
    decode_hook & self = *(decode_hook *) user_data;
    if (self.interrupted_ && !self.failure_) {
        self.failure_ = std::make_exception_ptr(cancelled("the computation was cancelled"));
    }
    const int64_t now = ggml_time_us();
    if (!self.poll_ || self.failure_ || now - self.last_poll_us_ < POLL_US) {
        return self.failure_ != nullptr;
    }
    self.last_poll_us_ = now;
    try {
        self.poll_();
        return false;
    } catch (...) {
        self.failure_ = std::current_exception();
        return true;
    }
}

void decode_hook::after_layer(ggml_tensor * l_out) {
    const int n_rows = (int) l_out->ne[1];
    if (l_out->type != GGML_TYPE_F32 || l_out->ne[0] != weights_->hparams().text.n_embd ||
        ggml_nrows(l_out) != n_rows || !ggml_is_contiguous(l_out)) {
        throw backend_error(std::string("tensor ") + l_out->name + " is no F32 matrix of hidden states");
    }
    for (size_t j : cross_after_.at(layer_of(l_out))) {
        const int first = rows_done_[j];
        if (first + n_rows > plan_.n_rows()) {
            throw backend_error("llama.cpp computed more rows than the batch has");
        }
        run_.first = run_.n_rows = 0;
        while (plan_.next_run(first, n_rows, run_)) {
            run_block(j, l_out, run_);
        }
        rows_done_[j] += n_rows;
    }
}

// The block of one layer for one shape of run: what it sees and how its rows are divided. Replayed for every token that
// sees the same images; all blocks of a device share one scratch buffer.
//
// CUDA graphs depend on it. ggml-cuda keeps one for each address of a graph's first node and replays it once two calls
// in a row had the same number of nodes with the same bytes in all of them, and the same addresses and shapes of what
// they read (ggml_cuda_graph_update_required); else it launches kernels one by one, which is as right, but slower. So:
// - A block's nodes, and with them all addresses, stay the same from token to token: hence blocks_, and hence the hook
//   never allocates for a shape that it knows. x is an address among them: llama.cpp keeps l_out where it is as long as
//   it reuses its graph (a new one every 256 positions costs two tokens without CUDA graphs).
// - llama.cpp's own pieces between stops are told by their first nodes, too. Their borders must be the same for each
//   token: wants_layer() asks what the batch sees, not what a ubatch or a row does. Only the first piece is another one
//   in batches without images (the whole split): each change from one to the other costs two tokens there.
// - Nothing of ours runs while a graph is recorded: the scheduler waits for its stream before it calls us, and
//   compute_graph() waits for ours.
// With a callback set, ggml gives pieces no id that would spare ggml-cuda comparing all nodes, not even in batches
// without stops: 0.12 ms a token on an H100 with 32 layers, as the prototype measured.
decode_hook::block & decode_hook::find_block(size_t j_cross, const ggml_tensor * l_out, const row_run & run,
                                             bool copy) {
    key_.assign({ (int64_t) j_cross, run.n_rows, copy });
    for (const row_segment & s : run.segments) {
        key_.push_back(s.first);
        for (const image_states_ptr & image : groups_[s.group]) {
            key_.push_back((int64_t) image->id());
        }
        key_.push_back(-1);
    }
    auto found = blocks_.find(key_);
    if (found != blocks_.end()) {
        found->second->used = ++clock_;
        return *found->second;
    }
    const mllama_text_hparams & h = weights_->hparams().text;
    const size_t n_nodes = cross_attn_block_nodes(h, run.n_rows, run.segments, groups_);
    const device & dev = weights_->cross_dev(j_cross);
    auto b = std::make_unique<block>();
    b->on = sites_.at(dev.get()).get();
    b->ctx.reset(ggml_init(
        { (n_nodes + 8) * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false), nullptr, true }));
    b->x = ggml_new_tensor_2d(b->ctx.get(), GGML_TYPE_F32, h.n_embd, run.n_rows);
    if (copy) {
        b->far = ggml_new_tensor_2d(b->ctx.get(), GGML_TYPE_F32, h.n_embd, run.n_rows);
        ggml_set_input(b->x);
        ggml_set_output(b->x);  // keeps its memory for the whole graph
    } else {
        alias_rows(b->x, l_out, run.first);  // memory that is not the allocator's business
    }
    b->graph = ggml_new_graph_custom(b->ctx.get(), n_nodes, false);
    const cpu_kernels & kernels = weights_->kernels_on(dev);
    if (kernels.f32 && cross_attn_cpu::takes(h.n_embd_head())) {
        const bool bf16 = weights_->in_bf16(weights_->cross[j_cross].q, dev);
        b->own = std::make_unique<cross_attn_cpu>(b->ctx.get(), kernels, bf16);
    }
    ggml_build_forward_expand(b->graph, build_cross_attn_block(b->ctx.get(), *weights_, j_cross, b->x, run.segments,
                                                               groups_, b->views, b->own.get()));
    require_support(b->on->backend.get(), b->graph);

    allocate(*b);
    while (blocks_.size() >= MAX_BLOCKS_PER_LAYER * weights_->cross.size()) {
        auto oldest = std::min_element(blocks_.begin(), blocks_.end(),
                                       [](const auto & x, const auto & y) { return x.second->used < y.second->used; });
        blocks_.erase(oldest);
    }
    b->used = ++clock_;
    stats_.n_graphs++;
    return *(blocks_[key_] = std::move(b));
}

// Gives the block's tensors their places in its device's scratch buffer.
void decode_hook::allocate(block & b) {
    site & on = *b.on;
    auto forget_blocks = [&] {  // whose tensors point into a buffer that is gone
        for (auto it = blocks_.begin(); it != blocks_.end();) {
            it = it->second->on == &on ? blocks_.erase(it) : std::next(it);
        }
    };
    // reserve() plans for this very graph: alloc_graph alone would take over the plan of the graph before if that has
    // as many nodes of the same sizes.
    if (!ggml_gallocr_reserve(on.scratch.get(), b.graph) || !ggml_gallocr_alloc_graph(on.scratch.get(), b.graph)) {
        forget_blocks();
        // a failed one would crash at its next use
        on.scratch.reset(ggml_gallocr_new(ggml_backend_get_default_buffer_type(on.backend.get())));
        on.scratch_base = nullptr;
        stats_.scratch_bytes -= on.scratch_bytes;
        on.scratch_bytes = 0;
        throw backend_error(std::string("no memory on ") + ggml_backend_name(on.backend.get()) +
                            " for a cross-attention block");
    }
    const void * buffer = nullptr;
    for (int i = 0; i < ggml_graph_n_nodes(b.graph) && !buffer; ++i) {
        const ggml_tensor * node = ggml_graph_node(b.graph, i);
        if (!node->view_src) {
            buffer = ggml_backend_buffer_get_base(node->buffer);
        }
    }
    const size_t size = ggml_gallocr_get_buffer_size(on.scratch.get(), 0);
    if (buffer != on.scratch_base || size != on.scratch_bytes) {
        forget_blocks();
    }
    on.scratch_base = buffer;
    stats_.scratch_bytes += size - on.scratch_bytes;
    on.scratch_bytes = size;
}

void decode_hook::run_block(size_t j_cross, ggml_tensor * l_out, const row_run & run) {
    const bool copy = device_of(l_out) != weights_->cross_dev(j_cross).get();
    block & b = find_block(j_cross, l_out, run, copy);
    if (copy) {
        alias_rows(b.far, l_out, run.first);
        ggml_backend_tensor_copy(b.far, b.x);
    } else {
        alias_rows(b.x, l_out, run.first);
        for (ggml_tensor * view : b.views) {
            view->data = b.x->data;
            view->buffer = b.x->buffer;
        }
    }
    compute_graph(b.on->backend.get(), b.graph, nullptr, { collector_.get(), -1 });
    if (copy) {
        ggml_backend_tensor_copy(b.x, b.far);
        stats_.n_copies++;
    }
    stats_.n_blocks++;
}

}  // namespace pyvllama
