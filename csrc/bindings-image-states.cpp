// ImageStates: no logic. See bindings.cpp.
#include <nanobind/stl/shared_ptr.h>

#include "bindings.h"
#include "image-states.h"

namespace pyvllama {

using namespace nb::literals;

namespace {

// keys or values of one layer: [n_head_kv, n_tokens, n_embd_head]
nb::ndarray<nb::numpy, float, nb::c_contig> layer_states(const image_states & self, size_t j_cross, bool keys) {
    if (j_cross >= self.k.size()) {
        throw nb::index_error(("there are " + std::to_string(self.k.size()) + " cross-attention layers").c_str());
    }
    const std::vector<float> data = keys ? self.keys(j_cross) : self.values(j_cross);
    const ggml_tensor * k = self.k[j_cross];
    auto out = new_array<float>({ (size_t) k->ne[2], (size_t) k->ne[1], (size_t) k->ne[0] });
    std::copy(data.begin(), data.end(), out.data());
    return out;
}

nb::ndarray<nb::numpy, uint8_t, nb::c_contig> part(const image_states & self, size_t i) {
    auto out = new_array<uint8_t>({ self.part_bytes(i) });
    nb::gil_scoped_release release;
    self.get_part(i, out.data());
    return out;
}

}  // namespace

void bind_image_states(nb::module_ & m) {
    nb::class_<image_states>(
        m, "ImageStates", nb::is_weak_referenceable(),
        "Keys and values of one image for every cross-attention layer. Immutable; keep it as long as any "
        "token attends to the image.")
        .def_prop_ro("n_tokens", &image_states::n_tokens, "Rows that text attends to: n_tiles * n_positions.")
        .def_prop_ro("n_bytes", &image_states::n_bytes, "Memory it holds on its device.")
        .def(
            "keys", [](const image_states & self, size_t j) { return layer_states(self, j, true); }, "j_cross"_a,
            "float32 [n_head_kv, n_tokens, n_embd_head]: keys of the j-th cross-attention layer, for evaluation.")
        .def(
            "values", [](const image_states & self, size_t j) { return layer_states(self, j, false); }, "j_cross"_a,
            "float32 [n_head_kv, n_tokens, n_embd_head]: values of the j-th cross-attention layer, for evaluation.")
        .def_prop_ro("n_parts", &image_states::n_parts, "Keys and values of each layer: twice their number.")
        .def("part_bytes", &image_states::part_bytes, "i"_a, "Size of the i-th part.")
        .def(
            "part", &part, "i"_a,
            "uint8 [n_bytes]: a copy of the i-th part, to be kept elsewhere; keys of the first layer, its values, keys "
            "of the second, ..., as they lie in memory. See Mmproj.restore.");
}

}  // namespace pyvllama
