#include "mllama-weights.h"

#include <atomic>
#include <cmath>
#include <map>

#include "errors.h"

namespace pyvllama {

namespace {

uint64_t next_id() {
    static std::atomic<uint64_t> id{ 1 };
    return id++;
}

// Is it read for every token, rather than once a picture?
bool is_of_tokens(const ggml_tensor * t) {
    const std::string name = t->name;
    return name.compare(0, 6, "xattn.") == 0 && name.find(".attn_k.") == std::string::npos &&
           name.find(".attn_v.") == std::string::npos;
}

}  // namespace

mllama_weights::mllama_weights(const std::string & path, const device & dev, const std::vector<device> & layer_devs,
                               bool repack, const progress_fn & progress)
    : id_(next_id()), file_(path), hparams_(mllama_hparams::load(file_)), dev_(dev) {
    find_tensors(layer_devs);
    file_.refuse_unknown_tensors();
    place(repack, progress);
}

const cpu_kernels & mllama_weights::kernels_on(const device & dev) const {
    static const cpu_kernels none;
    return dev.is_cpu() ? kernels_ : none;
}

bool mllama_weights::in_bf16(const ggml_tensor * weight, const device & dev) const {
    const ggml_type type = weight->type;
    return kernels_on(dev).bf16 && type != GGML_TYPE_F32 && type != GGML_TYPE_F16 && weight->ne[0] % 2 == 0 &&
           (type == GGML_TYPE_BF16 || ggml_get_type_traits(type)->to_float);
}

ggml_tensor * mllama_weights::find(const device & dev, const std::string & name, const std::vector<int64_t> & ne) {
    ggml_tensor * t = file_.tensor(name, ne);
    if (t->type != GGML_TYPE_F32) {
        file_.fail("tensor '" + name + "' is of type " + ggml_type_name(t->type) + ", expected f32");
    }
    others_.push_back({ t, &dev });
    return t;
}

ggml_tensor * mllama_weights::find_matmul(const device & dev, const std::string & name, int64_t n_in, int64_t n_out) {
    ggml_tensor * t = file_.tensor(name, { n_in, n_out });
    matmuls_.push_back({ t, &dev });
    return t;
}

layer_norm mllama_weights::find_norm(const std::string & name, int64_t n) {
    return { find(dev_, name + ".weight", { n }), find(dev_, name + ".bias", { n }) };
}

float mllama_weights::find_gate(const std::string & name) {
    const ggml_tensor * t = file_.tensor(name, { 1 });
    const float raw = file_.values(t, 0, 1)[0];
    if (!std::isfinite(raw)) {
        file_.fail("gate '" + name + "' is no finite number");
    }
    return std::tanh(raw);
}

void mllama_weights::find_tensors(const std::vector<device> & layer_devs) {
    const mllama_vision_hparams & v = hparams_.vision;
    const mllama_text_hparams & t = hparams_.text;
    const int64_t n_embd = v.n_embd, n_ff = v.n_ff, n_aspect = (int64_t) v.aspect_ratios.size() + 1;
    const int64_t n_tile = (int64_t) v.max_num_tiles * n_embd;

    class_embd_ = file_.tensor("v.class_embd", { n_embd });
    position_embd_ = file_.tensor("v.position_embd.weight", { n_embd, v.n_positions() });
    tile_position_embd_ = file_.tensor("v.tile_position_embd.weight", { n_tile * v.n_positions(), n_aspect });
    pre_tile_embd_ = file_.tensor("v.pre_tile_position_embd.weight", { n_tile, n_aspect });
    post_tile_embd_ = file_.tensor("v.post_tile_position_embd.weight", { n_tile, n_aspect });
    image_token_embd_ = file_.tensor("mm.image_token_embd.weight", { t.n_embd });
    position_gate_ = find_gate("v.position_embd.gate");
    pre_tile_gate_ = find_gate("v.pre_tile_position_embd.gate");
    post_tile_gate_ = find_gate("v.post_tile_position_embd.gate");

    patch_embd_src_ = file_.tensor("v.patch_embd.weight", { v.patch_size, v.patch_size, 3, n_embd });
    own_.reset(ggml_init({ ggml_tensor_overhead(), nullptr, true }));
    patch_embd = ggml_new_tensor_2d(own_.get(), GGML_TYPE_F32, 3 * v.patch_size * v.patch_size, n_embd);
    pre_ln = find_norm("v.pre_ln", n_embd);
    post_ln = find_norm("v.post_ln", n_embd);

    auto find_layer = [&](const std::string & p, bool gated) {
        vision_layer l;
        l.ln1 = find_norm(p + "ln1", n_embd);
        l.ln2 = find_norm(p + "ln2", n_embd);
        l.q = find_matmul(dev_, p + "attn_q.weight", n_embd, n_embd);
        l.k = find_matmul(dev_, p + "attn_k.weight", n_embd, n_embd);
        l.v = find_matmul(dev_, p + "attn_v.weight", n_embd, n_embd);
        l.o = find_matmul(dev_, p + "attn_out.weight", n_embd, n_embd);
        l.ffn_up = find_matmul(dev_, p + "ffn_up.weight", n_embd, n_ff);
        l.ffn_up_b = find(dev_, p + "ffn_up.bias", { n_ff });
        l.ffn_down = find_matmul(dev_, p + "ffn_down.weight", n_ff, n_embd);
        l.ffn_down_b = find(dev_, p + "ffn_down.bias", { n_embd });
        if (gated) {
            l.gate_attn = find_gate(p + "gate_attn");
            l.gate_ffn = find_gate(p + "gate_ffn");
        }
        return l;
    };
    for (int i = 0; i < v.n_layer_local; ++i) {
        local.push_back(find_layer("v.blk." + std::to_string(i) + ".", false));
    }
    for (int i = 0; i < v.n_layer_global; ++i) {
        global.push_back(find_layer("v.global.blk." + std::to_string(i) + ".", true));
    }
    mm = find_matmul(dev_, "mm.0.weight", v.n_embd_out(), t.n_embd);
    mm_b = find(dev_, "mm.0.bias", { t.n_embd });

    const int64_t n_kv = (int64_t) t.n_embd_head() * t.n_head_kv;
    const auto layer_dev = [&](size_t il) -> const device & { return il < layer_devs.size() ? layer_devs[il] : dev_; };
    for (size_t j = 0; j < t.cross_attention_layers.size(); ++j) {
        cross_devs_.push_back(layer_dev((size_t) t.cross_attention_layers[j] - j - 1));
    }
    if (dev_.is_cpu() || std::any_of(cross_devs_.begin(), cross_devs_.end(), [](auto & dev) { return dev.is_cpu(); })) {
        kernels_ = choose_cpu_kernels();
    }
    for (size_t j = 0; j < t.cross_attention_layers.size(); ++j) {
        const device & on = cross_devs_[j];
        cross_layer l;
        l.il_hf = t.cross_attention_layers[j];
        l.il_after = l.il_hf - (int) j - 1;  // j cross layers stand before it; those are not in the text GGUF
        const std::string p = "xattn.blk." + std::to_string(l.il_hf) + ".";
        l.attn_norm = find(on, p + "attn_norm.weight", { t.n_embd });
        l.ffn_norm = find(on, p + "ffn_norm.weight", { t.n_embd });
        l.q_norm = find(on, p + "attn_q_norm.weight", { t.n_embd_head() });
        l.k_norm = find(on, p + "attn_k_norm.weight", { t.n_embd_head() });
        l.q = find_matmul(on, p + "attn_q.weight", t.n_embd, t.n_embd);
        l.k = find_matmul(on, p + "attn_k.weight", t.n_embd, n_kv);
        l.v = find_matmul(on, p + "attn_v.weight", t.n_embd, n_kv);
        l.o = find_matmul(on, p + "attn_output.weight", t.n_embd, t.n_embd);
        l.ffn_gate = find_matmul(on, p + "ffn_gate.weight", t.n_embd, t.n_ff);
        l.ffn_up = find_matmul(on, p + "ffn_up.weight", t.n_embd, t.n_ff);
        l.ffn_down = find_matmul(on, p + "ffn_down.weight", t.n_ff, t.n_embd);
        l.gate_attn = find_gate(p + "gate_attn");
        l.gate_ffn = find_gate(p + "gate_ffn");
        cross.push_back(l);
    }
}

ggml_backend_buffer_type_t mllama_weights::buft_of(const placed & matmul, bool repack) const {
    const bool is_ours = !is_of_tokens(matmul.tensor) && in_bf16(matmul.tensor, *matmul.dev);
    return matmul.dev->matmul_buft(matmul.tensor, repack && !is_ours);
}

weight_bytes mllama_weights::planned(bool repack) const {
    weight_bytes n;
    n.copied_tower = ggml_nbytes(patch_embd);
    auto add = [&](const ggml_tensor * t, ggml_backend_buffer_type_t buft) {
        const bool mapped = buft == ggml_backend_cpu_buffer_type();
        (mapped            ? is_of_tokens(t) ? n.mapped_cross : n.mapped_tower
         : is_of_tokens(t) ? n.copied_cross
                           : n.copied_tower) += ggml_nbytes(t);
    };
    for (const placed & p : matmuls_) {
        add(p.tensor, buft_of(p, repack));
    }
    for (const placed & p : others_) {
        add(p.tensor, p.dev->default_buft());
    }
    return n;
}

// One buffer per buffer type. On the CPU, tensors of the default type are used where they lie in the mapped file.
void mllama_weights::place(bool repack, const progress_fn & progress) {
    std::map<ggml_backend_buffer_type_t, std::vector<ggml_tensor *>> by_buft;
    for (const placed & p : matmuls_) {
        by_buft[buft_of(p, repack)].push_back(p.tensor);
    }
    for (const placed & p : others_) {
        by_buft[p.dev->default_buft()].push_back(p.tensor);
    }
    buffers_.emplace_back(ggml_backend_alloc_ctx_tensors_from_buft(own_.get(), dev_.default_buft()));
    if (!buffers_.back()) {
        throw backend_error(path() + ": no memory on " + dev_.name());
    }
    const std::vector<float> patches = file_.values(patch_embd_src_, 0, ggml_nelements(patch_embd_src_));
    ggml_backend_tensor_set(patch_embd, patches.data(), 0, ggml_nbytes(patch_embd));
    device_bytes_ += ggml_nbytes(patch_embd);

    const uint8_t * base = file_.bytes().data();
    size_t total = 0, done = 0;
    for (const auto & entry : by_buft) {
        for (const ggml_tensor * t : entry.second) {
            total += ggml_nbytes(t);
        }
    }
    for (auto & [buft, tensors] : by_buft) {
        if (buft == ggml_backend_cpu_buffer_type()) {
            mapped_ = ggml_backend_cpu_buffer_from_ptr((void *) base, file_.bytes().size());
            buffers_.emplace_back(mapped_);
            ggml_backend_buffer_set_usage(mapped_, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
            for (ggml_tensor * t : tensors) {
                if (ggml_backend_tensor_alloc(mapped_, t, (void *) (base + file_.offset(t))) != GGML_STATUS_SUCCESS) {
                    file_.fail(std::string("tensor '") + t->name + "' cannot be used from the mapped file");
                }
                done += ggml_nbytes(t);
                mapped_bytes_ += ggml_nbytes(t);
            }
            continue;
        }
        const size_t align = ggml_backend_buft_get_alignment(buft);
        size_t size = 0;
        for (const ggml_tensor * t : tensors) {
            size += GGML_PAD(ggml_backend_buft_get_alloc_size(buft, t), align);
        }
        ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(buft, size);
        if (!buffer) {
            throw backend_error(path() + ": " + std::to_string(size >> 20) + " MiB of weights do not fit into " +
                                ggml_backend_buft_name(buft));
        }
        buffers_.emplace_back(buffer);
        ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        device_bytes_ += size;
        ggml_tallocr alloc = ggml_tallocr_new(buffer);
        for (ggml_tensor * t : tensors) {
            if (ggml_tallocr_alloc(&alloc, t) != GGML_STATUS_SUCCESS) {
                throw backend_error(path() + ": no place for tensor '" + t->name + "'");
            }
            const size_t offset = file_.offset(t), n_bytes = ggml_nbytes(t);
            ggml_backend_tensor_set(t, base + offset, 0, n_bytes);  // repacks, where the buffer type does
            file_.bytes().drop(offset, n_bytes);
            done += n_bytes;
            if (progress && done < total) {
                progress((float) done / (float) total);
            }
        }
    }
    if (progress) {
        progress(1.0f);
    }
}

void mllama_weights::drop_pages_read_by(const ggml_tensor * node) const {
    for (const ggml_tensor * t : node->src) {
        if (t && t->buffer && t->buffer == mapped_) {
            file_.bytes().drop((size_t) ((const uint8_t *) t->data - file_.bytes().data()), ggml_nbytes(t));
        }
    }
}

std::vector<float> mllama_weights::class_embd() const {
    return file_.values(class_embd_, 0, class_embd_->ne[0]);
}

std::vector<float> mllama_weights::position_embd() const {
    std::vector<float> r = file_.values(position_embd_, 0, ggml_nelements(position_embd_));
    for (float & x : r) {
        x *= 1.0f - position_gate_;
    }
    return r;
}

std::vector<float> mllama_weights::tile_row(const ggml_tensor * table, int aspect_ratio_id, float factor) const {
    std::vector<float> r = file_.values(table, aspect_ratio_id * table->ne[0], table->ne[0]);
    for (float & x : r) {
        x *= factor;
    }
    return r;
}

std::vector<float> mllama_weights::tile_position_embd(int aspect_ratio_id) const {
    return tile_row(tile_position_embd_, aspect_ratio_id, position_gate_);
}

std::vector<float> mllama_weights::pre_tile_embd(int aspect_ratio_id) const {
    return tile_row(pre_tile_embd_, aspect_ratio_id, pre_tile_gate_);
}

std::vector<float> mllama_weights::post_tile_embd(int aspect_ratio_id) const {
    return tile_row(post_tile_embd_, aspect_ratio_id, post_tile_gate_);
}

std::vector<float> mllama_weights::image_token_embd() const {
    return file_.values(image_token_embd_, 0, image_token_embd_->ne[0]);
}

size_t mllama_weights::device_bytes() const {
    return device_bytes_;
}

size_t mllama_weights::mapped_bytes() const {
    return mapped_bytes_;
}

}  // namespace pyvllama
