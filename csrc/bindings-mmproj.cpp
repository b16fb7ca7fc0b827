// Mmproj: an mmproj file in memory. See bindings.cpp.
#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>

#include "bindings.h"
#include "errors.h"
#include "mmproj.h"
#include "quantize.h"

namespace pyvllama {

using namespace nb::literals;

namespace {

using array_f32_4d = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using array_u8_1d = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Lets Python see signals (Ctrl-C), and a Python callback see the fraction done, at most every 100 ms. What either
// raises ends the computation. Called on the thread that called into the extension.
class python_progress {
  public:
    explicit python_progress(nb::object callback) : callback_(std::move(callback)) {}

    void operator()(float fraction) {
        const auto now = std::chrono::steady_clock::now();
        if (now - last_ < std::chrono::milliseconds(100) && fraction < 1.0f) {
            return;
        }
        last_ = now;
        nb::gil_scoped_acquire gil;
        if (PyErr_CheckSignals() != 0) {
            throw nb::python_error();
        }
        if (!callback_.is_none() && callback_(fraction).is(nb::bool_(false))) {
            throw cancelled("stopped by its progress callback");
        }
    }

  private:
    nb::object callback_;
    std::chrono::steady_clock::time_point last_ = {};
};

// The object holds a Python reference, so it must die with the GIL held: callers keep it outside the released scope.
progress_fn as_progress(python_progress & p) {
    return [&p](float fraction) { p(fraction); };
}

std::shared_ptr<mmproj> load_mmproj(nb::object path, const std::string & device,
                                    const std::vector<std::string> & layer_devices, int n_threads,
                                    const std::string & cross_kv_type, bool repack, bool merge_padding,
                                    nb::object progress) {
    mmproj_options options;
    options.device = device;
    options.layer_devices = layer_devices;
    options.n_threads = n_threads;
    options.cross_kv_type = ggml_type_by_name(cross_kv_type.c_str());
    options.repack = repack;
    options.merge_padding = merge_padding;
    const std::string file = encoded(path);
    python_progress p(progress);
    nb::gil_scoped_release release;
    return std::make_shared<mmproj>(file, options, as_progress(p));
}

nb::tuple encode(mmproj & self, array_f32_4d pixels, int aspect_ratio_id, bool want_states, nb::object progress) {
    const mllama_hparams & h = self.hparams();
    const size_t size = h.vision.image_size, n_tiles = pixels.shape(0);
    if (n_tiles == 0 || pixels.shape(1) != 3 || pixels.shape(2) != size || pixels.shape(3) != size) {
        throw std::invalid_argument("pixel_values must have shape [n_tiles, 3, " + std::to_string(size) + ", " +
                                    std::to_string(size) + "]");
    }
    std::vector<float> states;
    encode_stats stats;
    image_states_ptr image;
    python_progress p(progress);
    {
        nb::gil_scoped_release release;
        image = self.encode(pixels.data(), (int) n_tiles, aspect_ratio_id, want_states ? &states : nullptr, &stats,
                            as_progress(p));
    }
    nb::object array = nb::none();
    if (want_states) {
        auto out = new_array<float>({ n_tiles, (size_t) h.vision.n_positions(), (size_t) h.text.n_embd });
        std::copy(states.begin(), states.end(), out.data());
        array = nb::cast(out);
    }
    nb::dict timings;
    timings["tower_ms"] = stats.tower_ms;
    timings["kv_ms"] = stats.kv_ms;
    timings["compute_bytes"] = stats.compute_bytes;
    timings["parts_ms"] = nb::cast(stats.parts);
    return nb::make_tuple(image, array, timings);
}

std::shared_ptr<image_states> restore(const mmproj & self, int n_tokens, const std::vector<array_u8_1d> & arrays) {
    std::vector<bytes_view> parts;
    for (const array_u8_1d & array : arrays) {
        parts.push_back({ array.data(), array.size() });
    }
    nb::gil_scoped_release release;
    return self.restore(n_tokens, parts);
}

nb::dict hparams_dict(const mmproj & self) {
    const mllama_hparams & h = self.hparams();
    nb::dict d;
    d["image_size"] = h.vision.image_size;
    d["patch_size"] = h.vision.patch_size;
    d["max_num_tiles"] = h.vision.max_num_tiles;
    d["n_positions"] = h.vision.n_positions();
    d["n_layer_local"] = h.vision.n_layer_local;
    d["n_layer_global"] = h.vision.n_layer_global;
    d["text_n_layer_self"] = h.text.n_layer_self();
    d["text_n_embd"] = h.text.n_embd;
    d["text_n_head"] = h.text.n_head;
    d["text_n_head_kv"] = h.text.n_head_kv;
    d["text_n_vocab"] = h.text.n_vocab;
    d["cross_attention_layers"] = nb::cast(h.text.cross_attention_layers);
    d["image_token_id"] = h.image_token_id;
    d["pairing_hash"] = h.pairing_hash;
    return d;
}

std::vector<std::string> cross_devices(const mmproj & self) {
    std::vector<std::string> names;
    for (size_t j = 0; j < self.weights()->cross.size(); ++j) {
        names.push_back(self.weights()->cross_dev(j).name());
    }
    return names;
}

std::string attention_forms(const mmproj & self) {
    std::vector<std::string> forms;
    for (size_t j = 0; j < self.weights()->cross.size(); ++j) {
        forms.push_back(attention_form_on(self.weights()->cross_dev(j)) == attention_form::softmax ? "softmax"
                                                                                                   : "flash");
    }
    if (std::adjacent_find(forms.begin(), forms.end(), std::not_equal_to<>()) == forms.end()) {
        return forms.front();
    }
    std::string joined;
    for (const std::string & form : forms) {
        joined += (joined.empty() ? "" : " ") + form;
    }
    return joined;
}

std::vector<std::string> part_types(const mmproj & self) {
    std::vector<std::string> names;
    for (size_t j = 0; j < self.weights()->cross.size(); ++j) {
        const attention_form form = attention_form_on(self.weights()->cross_dev(j));
        const auto [k, v] = image_states_types(self.cross_kv_type(), form);
        names.insert(names.end(), { ggml_type_name(k), ggml_type_name(v) });
    }
    return names;
}

nb::ndarray<nb::numpy, float, nb::c_contig> image_token_embd(const mmproj & self) {
    const std::vector<float> row = self.weights()->image_token_embd();
    auto out = new_array<float>({ row.size() });
    std::copy(row.begin(), row.end(), out.data());
    return out;
}

nb::dict plan_dict(const mmproj & self, bool repack) {
    const memory_plan plan = self.plan(repack);
    nb::dict d;
    d["copied_cross"] = plan.weights.copied_cross;
    d["copied_tower"] = plan.weights.copied_tower;
    d["mapped_cross"] = plan.weights.mapped_cross;
    d["mapped_tower"] = plan.weights.mapped_tower;
    d["compute"] = plan.compute_bytes;
    return d;
}

}  // namespace

void bind_mmproj(nb::module_ & m) {
    nb::class_<mmproj>(m, "Mmproj", "An mmproj file in memory: encodes images, one at a time.")
        .def(
            nb::new_(&load_mmproj), "path"_a, nb::kw_only(), "device"_a = "cpu",
            "layer_devices"_a = std::vector<std::string>(), "n_threads"_a = 1, "cross_kv_type"_a = "f16",
            "repack"_a = true, "merge_padding"_a = true, "progress"_a = nb::none(),
            "Args:\n"
            "    path: of the file, whatever os.fsencode takes.\n"
            "    device: of the vision tower: 'cpu', 'gpu', or one of device_names().\n"
            "    layer_devices: of the text model's layers, in their order. A cross-attention layer, and the images' "
            "keys and values for it, are put where the text layer before it is; behind the list's end on `device`.\n"
            "    cross_kv_type: 'f16', 'bf16', 'f32' or 'q8_0' (values then in f16 on the CPU), type of the images' "
            "keys and values.\n"
            "    repack: keep matmul weights in the layout of the CPU's fastest kernels, a copy in memory where there "
            "is one.\n"
            "    merge_padding: let one padding tile stand for all of them, which changes no number.\n"
            "    progress: called with the fraction done; returning False stops.\n"
            "Raises:\n"
            "    FormatError: the file is damaged or no mmproj of this architecture.\n"
            "    ConfigError: a cross_kv_type that is not for heads of this size, or a PYVLLAMA_CPU_KERNELS that names "
            "no kernels of this CPU.\n"
            "    BackendError: no memory. Cancelled: stopped. ValueError: unknown device or type.")
        .def_prop_ro("hparams", &hparams_dict, "The numbers that Python needs, as a dict.")
        .def_prop_ro("image_token_embd", &image_token_embd, nb::rv_policy::move,
                     "float32 [text n_embd]: the embedding of the image token.")
        .def_prop_ro(
            "device_bytes", [](const mmproj & self) { return self.weights()->device_bytes(); },
            "Weights in buffers of their own.")
        .def_prop_ro(
            "mapped_bytes", [](const mmproj & self) { return self.weights()->mapped_bytes(); },
            "Weights used from the mapped file.")
        .def("plan", &plan_dict, "repack"_a = true,
             "What it takes in memory, as a dict in bytes: copied_cross, copied_tower, mapped_cross, mapped_tower: its "
             "weights when loaded with this `repack`, whatever it was loaded with; compute: the tower's buffer for the "
             "largest picture. Nothing is computed.")
        .def_prop_ro(
            "device", [](const mmproj & self) { return std::string(self.weights()->dev().name()); },
            "ggml's name of the vision tower's device.")
        .def_prop_ro("cross_devices", &cross_devices, "ggml's names of the cross-attention layers' devices.")
        .def_prop_ro(
            "attention_form", &attention_forms,
            "How cross attention is computed, which decides how ImageStates lie in memory: 'softmax' or 'flash', or "
            "one of them for each layer, where they differ.")
        .def_prop_ro(
            "kernels", [](const mmproj & self) { return self.weights()->kernels_on(self.weights()->dev()).name(); },
            "Which of our own kernels the vision tower runs, and cross attention on the CPU; 'ggml': none. They differ "
            "in their rounding.")
        .def_prop_ro("part_types", &part_types, "ggml's names of the types of ImageStates' parts, in their order.")
        .def("set_n_threads", &mmproj::set_n_threads, "n_threads"_a, "CPU threads for encoding.")
        .def("set_collector", &mmproj::set_collector, "collector"_a.none(),
             "Count the inputs of all matrices of images encoded from now on; None: no more.")
        .def("encode", &encode, "pixel_values"_a, "aspect_ratio_id"_a, nb::kw_only(), "want_states"_a = false,
             "progress"_a = nb::none(),
             "Encode one image.\n\n"
             "Args:\n"
             "    pixel_values: float32 [n_tiles, 3, image_size, image_size], normalised.\n"
             "    aspect_ratio_id: 1-based index of its canvas.\n"
             "    want_states: also return the cross_attention_states.\n"
             "    progress: called with the fraction done; returning False stops.\n"
             "Returns:\n"
             "    (ImageStates, float32 [n_tiles, n_positions, text n_embd] or None, dict of tower_ms, kv_ms, "
             "compute_bytes, parts_ms: the tower's time by kind of operation, on the CPU).\n"
             "Raises:\n"
             "    ValueError: shapes or ids that do not fit. BackendError: no memory, or the device failed. Cancelled.")
        .def("restore", &restore, "n_tokens"_a, "parts"_a,
             "ImageStates from what another had, made by the same weights in the same form and type.\n\n"
             "Args:\n"
             "    n_tokens: ImageStates.n_tokens.\n"
             "    parts: uint8 [n_bytes] arrays, ImageStates.part(0), part(1) and so on.\n"
             "Raises:\n"
             "    ValueError: sizes that are not this model's. BackendError: no memory.");
}

}  // namespace pyvllama
