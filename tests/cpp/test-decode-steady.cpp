// A token that is like the one before it allocates nothing in the hook, nor in ggml.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "check.h"
#include "decode-hook.h"
#include "mmproj.h"
#include "tiny-mmproj.h"

using namespace pyvllama;

static std::atomic<long> n_allocations{ 0 };
static void (*volatile release)(void *) = std::free;  // called directly, GCC 12 takes it for a mistake

void * operator new(size_t n) {
    ++n_allocations;
    if (void * p = std::malloc(n ? n : 1)) {
        return p;
    }
    throw std::bad_alloc();
}

void * operator new[](size_t n) {
    return operator new(n);
}

void operator delete(void * p) noexcept {
    release(p);
}

void operator delete[](void * p) noexcept {
    release(p);
}

void operator delete(void * p, size_t) noexcept {
    release(p);
}

void operator delete[](void * p, size_t) noexcept {
    release(p);
}

int main() {
    const temp_file file("test-decode-steady.gguf");
    const tiny_sizes sizes;
    const tiny_mmproj written(file.path, sizes);
    for (ggml_type kv : { GGML_TYPE_F16, GGML_TYPE_F32 }) {
        mmproj_options options;
        options.cross_kv_type = kv;
        mmproj model(file.path, options, nullptr);
        const std::vector<float> pixels((size_t) 3 * sizes.image * sizes.image, 0.5f);
        const image_states_ptr one = model.encode(pixels.data(), 1, 1, nullptr, nullptr, nullptr),
                               two = model.encode(pixels.data(), 1, 1, nullptr, nullptr, nullptr);
        decode_hook hook(model.weights(), 2, nullptr);

        // rows of three sequences, of which the last one sees nothing
        const std::vector<int32_t> rows = { 0, 1, NO_IMAGE };
        const std::vector<image_group> groups = { { one }, { one, two } };
        const ggml_context_ptr ctx(ggml_init({ 16 * ggml_tensor_overhead(), nullptr, true }));
        std::vector<ggml_tensor *> layers;
        for (int il = 0; il < sizes.t_layers - (int) sizes.cross.size(); ++il) {
            layers.push_back(ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, sizes.t_embd, (int64_t) rows.size()));
            ggml_format_name(layers.back(), "l_out-%d", il);
        }
        const ggml_backend_buffer_ptr buffer(
            ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_cpu_buffer_type()));
        ggml_backend_buffer_clear(buffer.get(), 0);

        for (int token = 0; token < 6; ++token) {
            std::vector<int32_t> row_group = rows;  // begin() takes them over
            std::vector<image_group> images = groups;
            const int64_t n_blocks = hook.stats().n_blocks;
            const long before = n_allocations;
            hook.begin(std::move(row_group), std::move(images));
            for (ggml_tensor * layer : layers) {
                if (decode_hook::cb_eval(layer, true, &hook)) {
                    CHECK(decode_hook::cb_eval(layer, false, &hook));
                }
            }
            hook.end(true);
            const long n = n_allocations - before;
            CHECK(hook.stats().n_blocks - n_blocks == (int64_t) sizes.cross.size());
            CHECK(token < 2 ? token > 0 || n > 0 : n == 0);  // the first one builds its graphs, and is counted
        }
    }
    return summary("decode-steady");
}
