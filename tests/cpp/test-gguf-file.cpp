// Damaged and foreign mmproj files are refused by name; nothing aborts.
#include <fstream>
#include <iterator>

#include "check.h"
#include "errors.h"
#include "mllama-weights.h"
#include "tiny-mmproj.h"

using namespace pyvllama;

static void load(const std::string & path) {
    mllama_weights weights(path, device("cpu"), {}, false, nullptr);
}

static std::vector<char> read(const std::string & path) {
    std::ifstream in(path, std::ios::binary);
    return { std::istreambuf_iterator<char>(in), {} };
}

static void write(const std::string & path, const std::vector<char> & bytes, size_t n) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), (std::streamsize) n);
}

int main() {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    const temp_file file("test-gguf-file.gguf"), bad("test-gguf-file-bad.gguf");
    const tiny_mmproj good(file.path);
    load(file.path);

    THROWS(load("does-not-exist.gguf"), format_error, "does-not-exist.gguf: cannot be opened");
    THROWS(load("."), format_error, "no regular file");
    const std::vector<char> bytes = read(file.path);
    for (size_t n : { (size_t) 0, (size_t) 3, (size_t) 20, (size_t) 200, bytes.size() / 2, bytes.size() - 32 }) {
        write(bad.path, bytes, n);
        THROWS(load(bad.path), format_error, bad.path.c_str());
    }
    std::mt19937 rng(3);  // any damage in the header is an error or harmless, never a crash
    for (int i = 0; i < 400; ++i) {
        std::vector<char> damaged = bytes;
        for (int j = 0; j < 4; ++j) {
            damaged[rng() % 6000] = (char) rng();
        }
        write(bad.path, damaged, damaged.size());
        try {
            load(bad.path);
        } catch (const error &) {
        }
        ++n_checks;
    }
    auto edited = [&](const tiny_mmproj::edit_fn & edit) { const tiny_mmproj m(bad.path, {}, edit); };
    auto set_u32 = [&](const char * key, uint32_t v) {
        edited([=](gguf_context * g) { gguf_set_val_u32(g, key, v); });
    };
    auto set_str = [&](const char * key, const char * v) {
        edited([=](gguf_context * g) { gguf_set_val_str(g, key, v); });
    };

    set_str("general.architecture", "llama");
    THROWS(load(bad.path), format_error, "'general.architecture' is 'llama'");
    set_str("clip.projector_type", "mlp");
    THROWS(load(bad.path), format_error, "expected 'mllama'");
    set_u32("clip.mllama.format_version", 2);
    THROWS(load(bad.path), format_error, "format version 2");
    edited([](gguf_context * g) { gguf_remove_key(g, "clip.vision.image_size"); });
    THROWS(load(bad.path), format_error, "'clip.vision.image_size' is missing");
    edited([](gguf_context * g) { gguf_set_val_str(g, "clip.vision.image_size", "28"); });
    THROWS(load(bad.path), format_error, "is of type str, expected u32");
    set_u32("clip.vision.image_size", 0xFFFFFFFF);
    THROWS(load(bad.path), format_error, "expected 1 to");
    set_u32("clip.vision.patch_size", 13);
    THROWS(load(bad.path), format_error, "no multiple of");
    set_u32("clip.vision.block_count", 3);
    THROWS(load(bad.path), format_error, "tensor 'v.blk.2.ln1.weight' is missing");
    set_u32("clip.vision.feed_forward_length", 47);
    THROWS(load(bad.path), format_error, "has shape [32, 48], expected [32, 47]");
    for (const std::vector<int32_t> & layers : { std::vector<int32_t>{ 0, 1, 0 }, std::vector<int32_t>(400, 1) }) {
        edited([&](gguf_context * g) {
            gguf_set_arr_data(g, "clip.mllama.intermediate_layers_indices", GGUF_TYPE_INT32, layers.data(),
                              layers.size());
        });
        THROWS(load(bad.path), format_error, "twice");
    }
    edited([](gguf_context * g) { gguf_set_val_f32(g, "clip.vision.attention.layer_norm_epsilon", 0.0f); });
    THROWS(load(bad.path), format_error, "small positive number");
    auto set_cross = [&](std::vector<int32_t> layers) {
        edited([=](gguf_context * g) {
            gguf_set_arr_data(g, "clip.mllama.cross_attention_layers", GGUF_TYPE_INT32, layers.data(), layers.size());
        });
    };
    set_cross({ 0, 2, 4 });
    THROWS(load(bad.path), format_error, "cross-attention layer 0 stands before all self-attention layers");
    set_cross({ 1, 2, 5 });
    THROWS(load(bad.path), format_error, "cross-attention layer 5 stands after all");
    set_cross({ 2, 1, 4 });
    THROWS(load(bad.path), format_error, "not ascending");
    set_cross({});
    THROWS(load(bad.path), format_error, "is empty");
    {
        const tiny_mmproj m(bad.path, {}, nullptr, "xattn.blk.4.gate_attn");
    }
    THROWS(load(bad.path), format_error, "tensor 'xattn.blk.4.gate_attn' is missing");
    {
        const tiny_mmproj m(bad.path, {}, nullptr, "", "v.blk.0.surprise");
    }
    THROWS(load(bad.path), format_error, "1 unknown tensors (v.blk.0.surprise)");
    THROWS(device("CUDA7"), std::invalid_argument, "no device 'CUDA7'");
    return summary("gguf-file");
}
