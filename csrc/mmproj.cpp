#include "mmproj.h"

#include <stdexcept>

#include "cross-attn-graph.h"
#include "errors.h"
#include "graph-compute.h"
#include "vision-graph.h"

namespace pyvllama {

namespace {

// Part of the work that the tower is, for progress: K/V of 8 layers against 40 layers of the tower.
constexpr float TOWER_SHARE = 0.97f;

}  // namespace

mmproj::mmproj(const std::string & path, const mmproj_options & options, const progress_fn & progress)
    : options_(options), n_threads_(options.n_threads) {
    const ggml_type kv = options.cross_kv_type;
    if (kv != GGML_TYPE_F32 && kv != GGML_TYPE_F16 && kv != GGML_TYPE_BF16 && kv != GGML_TYPE_Q8_0) {
        throw std::invalid_argument(std::string("keys and values of images can be f32, f16, bf16 or q8_0, not ") +
                                    ggml_type_name(kv));
    }
    const device dev(options.device);
    const std::vector<device> layer_devs(options.layer_devices.begin(), options.layer_devices.end());
    weights_ = std::make_shared<const mllama_weights>(path, dev, layer_devs, options.repack, progress);
    if (const int d = hparams().text.n_embd_head(); d % ggml_blck_size(kv) != 0) {
        throw config_error(std::string("cross_kv_type cannot be ") + ggml_type_name(kv) +
                           " in this model: its heads have " + std::to_string(d) + " numbers, and " +
                           ggml_type_name(kv) + " takes " + std::to_string(ggml_blck_size(kv)) +
                           " at a time; take f16, bf16 or f32");
    }
    const int n_threads = options.n_threads;
    auto add = [&](const device & d) {
        if (!d.is_cpu() && !backends_.count(d.get())) {
            backends_[d.get()] = d.new_backend(n_threads);
        }
    };
    add(dev);
    for (size_t j = 0; j < weights_->cross.size(); ++j) {
        add(weights_->cross_dev(j));
    }
}

ggml_backend_t mmproj::backend_on(const device & dev, ggml_backend_ptr & cpu) {
    if (!dev.is_cpu()) {
        return backends_.at(dev.get()).get();
    }
    if (!cpu) {
        cpu = dev.new_backend(n_threads_);
    }
    return cpu.get();
}

void mmproj::set_collector(std::shared_ptr<importance_collector> collector) {
    if (encoding_thread_ == std::this_thread::get_id()) {
        throw backend_error("an image is being encoded: its progress callback cannot change what is collected");
    }
    const std::lock_guard<std::mutex> lock(encoding_);
    collector_ = std::move(collector);
}

image_states_ptr mmproj::encode(const float * pixels, int n_tiles, int aspect_ratio_id, std::vector<float> * states_out,
                                encode_stats * stats, const progress_fn & progress) {
    if (encoding_thread_ == std::this_thread::get_id()) {  // called from its own progress callback: would wait forever
        throw backend_error("an image is being encoded, and its progress callback cannot encode another");
    }
    const std::lock_guard<std::mutex> lock(encoding_);
    encoding_thread_ = std::this_thread::get_id();
    const std::unique_ptr<std::atomic<std::thread::id>, void (*)(std::atomic<std::thread::id> *)> at_end(
        &encoding_thread_, [](std::atomic<std::thread::id> * owner) { *owner = std::thread::id(); });
    vision_input input = make_vision_input(*weights_, pixels, n_tiles, aspect_ratio_id, options_.merge_padding);
    const int64_t t0 = ggml_time_us();
    ggml_context_ptr ctx(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
    ggml_tensor * states = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, hparams().text.n_embd, input.rows.n_real());
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), weights_->dev().default_buft()));
    if (!buffer) {
        throw backend_error(std::string("no memory on ") + weights_->dev().name() + " for an image's states");
    }
    ggml_backend_ptr cpu;  // for this image: one that lives on would keep its largest work buffer, 28 MB
    size_t compute_bytes = 0;
    part_times parts;
    {
        vision_graph graph(*weights_, input.rows, states, collector_.get());
        graph.compute(backend_on(weights_->dev(), cpu), std::move(input),
                      progress ? [&](float f) { progress(f * TOWER_SHARE); } : progress_fn(), stats ? &parts : nullptr);
        compute_bytes = graph.compute_bytes();
    }
    const int64_t t1 = ggml_time_us();
    image_states_ptr image = compute_image_states(states, cpu, progress);
    if (progress) {
        progress(1.0f);
    }
    if (stats) {
        *stats = { (double) (t1 - t0) / 1000.0, (double) (ggml_time_us() - t1) / 1000.0, compute_bytes,
                   std::move(parts) };
    }
    if (states_out) {
        states_out->resize(ggml_nelements(states));
        ggml_backend_tensor_get(states, states_out->data(), 0, ggml_nbytes(states));
    }
    return image;
}

// Keys and values of each layer are computed on its device, to which the states travel once.
image_states_ptr mmproj::compute_image_states(ggml_tensor * states, ggml_backend_ptr & cpu,
                                              const progress_fn & progress) {
    auto image = std::make_shared<image_states>(*weights_, options_.cross_kv_type, (int) states->ne[1]);
    const size_t n_layers = weights_->cross.size();
    std::map<ggml_backend_dev_t, std::vector<size_t>> layers_on;
    for (size_t j = 0; j < n_layers; ++j) {
        layers_on[weights_->cross_dev(j).get()].push_back(j);
    }
    size_t n_done = 0;
    for (const auto & [dev, layers] : layers_on) {
        ggml_backend_t backend = backend_on(weights_->cross_dev(layers[0]), cpu);
        const size_t n_nodes = 24 * layers.size() + 16;
        ggml_context_ptr ctx(ggml_init(
            { n_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false), nullptr, true }));
        ggml_cgraph * graph = ggml_new_graph_custom(ctx.get(), n_nodes, false);
        ggml_context_ptr near_ctx(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
        ggml_backend_buffer_ptr near_buffer;
        ggml_tensor * near = states;
        if (dev != weights_->dev().get()) {
            near = ggml_dup_tensor(near_ctx.get(), states);
            near_buffer.reset(
                ggml_backend_alloc_ctx_tensors_from_buft(near_ctx.get(), ggml_backend_dev_buffer_type(dev)));
            if (!near_buffer) {
                throw backend_error(std::string("no memory on ") + ggml_backend_dev_name(dev) +
                                    " for an image's states");
            }
            ggml_backend_tensor_copy(states, near);
        }
        const cpu_kernels & kernels = weights_->kernels_on(weights_->cross_dev(layers[0]));
        std::unique_ptr<image_states_cpu> own;
        if (kernels.bf16 && !collector_) {
            own = std::make_unique<image_states_cpu>(ctx.get(), kernels, near);
        }
        for (size_t j : layers) {
            build_image_states(ctx.get(), graph, *weights_, j, near, *image, own.get());
        }
        require_support(backend, graph);
        ggml_gallocr_ptr scratch(ggml_gallocr_new(ggml_backend_dev_buffer_type(dev)));
        if (!ggml_gallocr_alloc_graph(scratch.get(), graph)) {
            throw backend_error(std::string("no memory on ") + ggml_backend_dev_name(dev) +
                                " for an image's keys and values");
        }
        const auto on_node = [&, n = layers.size()](float f) {
            const float done = ((float) n_done + f * (float) n) / (float) n_layers;
            if (done < 1.0f) {  // the end is told once, by who calls this
                progress(TOWER_SHARE + done * (1.0f - TOWER_SHARE));
            }
        };
        compute_graph(backend, graph, progress ? on_node : progress_fn(), { collector_.get(), -1 }, nullptr,
                      [&](const ggml_tensor * node) { weights_->drop_pages_read_by(node); });
        n_done += layers.size();
    }
    return image;
}

memory_plan mmproj::plan(bool repack) const {
    const mllama_vision_hparams & v = hparams().vision;
    const vision_rows rows = { v.max_num_tiles, v.max_num_tiles, 1, v.n_positions(), v.n_pad_rows() };
    // Memory that is never touched: the graph only needs a place for its result.
    ggml_context_ptr ctx(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
    ggml_tensor * states = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, hparams().text.n_embd, rows.n_real());
    ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), weights_->dev().default_buft()));
    if (!buffer) {
        throw backend_error(std::string("no memory on ") + weights_->dev().name() + " for an image's states");
    }
    return { weights_->planned(repack), vision_graph(*weights_, rows, states, nullptr).planned_bytes(weights_->dev()) };
}

image_states_ptr mmproj::restore(int n_tokens, const std::vector<bytes_view> & parts) const {
    const int n_positions = hparams().vision.n_positions(), max_tiles = hparams().vision.max_num_tiles;
    if (n_tokens < n_positions || n_tokens > max_tiles * n_positions || n_tokens % n_positions != 0) {
        throw std::invalid_argument("an image of this model has 1 to " + std::to_string(max_tiles) + " times " +
                                    std::to_string(n_positions) + " tokens, not " + std::to_string(n_tokens));
    }
    if (parts.size() != 2 * weights_->cross.size()) {
        throw std::invalid_argument("an image of this model has " + std::to_string(2 * weights_->cross.size()) +
                                    " parts, not " + std::to_string(parts.size()));
    }
    auto image = std::make_shared<image_states>(*weights_, options_.cross_kv_type, n_tokens);
    for (size_t i = 0; i < parts.size(); ++i) {
        image->set_part(i, parts[i].data, parts[i].size);
    }
    return image;
}

}  // namespace pyvllama
