// Names, docstrings, GIL guards and the exception map; no logic. Arrays are C-contiguous NumPy arrays, slowest
// dimension first; what C++ calls [a, b] (ggml order) is shape (b, a) here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <tuple>

#include "bindings.h"
#include "decode-hook.h"
#include "errors.h"
#include "importance.h"
#include "mapped-pages.h"
#include "mmproj.h"
#include "quantize.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace pyvllama {

namespace {

void poll_signals() {
    nb::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) {
        throw nb::python_error();
    }
}

bool cpu_repacks(const std::string & type, int64_t n_in, int64_t n_out) {
    ggml_tensor weight = {};
    weight.type = ggml_type_by_name(type.c_str());
    weight.ne[0] = n_in;
    weight.ne[1] = n_out;
    return device("cpu").repacks(&weight);
}

size_t drop_file_pages(nb::object path) {
    return drop_mapped_pages(encoded(path));
}

std::vector<std::tuple<std::string, size_t, uintptr_t>> offload_device_list() {
    std::vector<std::tuple<std::string, size_t, uintptr_t>> devices;
    for (ggml_backend_dev_t dev : offload_devices()) {
        size_t free, total;
        ggml_backend_dev_memory(dev, &free, &total);
        if (total == 0) {  // it has the host's, as llama.cpp takes it
            ggml_backend_dev_memory(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), &free, &total);
        }
        devices.emplace_back(ggml_backend_dev_name(dev), free, (uintptr_t) dev);
    }
    return devices;
}

nb::dict importance_dict(const importance_collector & self) {
    nb::dict d;
    for (const auto & [name, entry] : self.entries()) {
        auto sums = new_array<double>({ entry.sums.size() });
        std::copy(entry.sums.begin(), entry.sums.end(), sums.data());
        d[name.c_str()] = nb::make_tuple(nb::cast(sums), entry.n_rows);
    }
    return d;
}

nb::dict stats_dict(const decode_hook & self) {
    const hook_stats & s = self.stats();
    nb::dict d;
    d["n_blocks"] = s.n_blocks;
    d["n_graphs"] = s.n_graphs;
    d["n_copies"] = s.n_copies;
    d["ms"] = s.ms;
    d["scratch_bytes"] = s.scratch_bytes;
    return d;
}

// Each C++ error becomes the class of the same name in pyvllama.errors.
void translate(const std::exception_ptr & p, void *) {
    auto raise = [](const char * name, const char * what) {
        nb::object type = nb::module_::import_("pyvllama.errors").attr(name);
        PyErr_SetString(type.ptr(), what);
    };
    try {
        std::rethrow_exception(p);
    } catch (const config_error & e) {
        raise("ConfigError", e.what());
    } catch (const format_error & e) {
        raise("FormatError", e.what());
    } catch (const cancelled & e) {
        raise("Cancelled", e.what());
    } catch (const error & e) {
        raise("BackendError", e.what());
    }
}

}  // namespace

}  // namespace pyvllama

NB_MODULE(_native, m) {
    using namespace pyvllama;
    m.doc() = "The compiled part of pyvllama. Import pyvllama._runtime, which loads llama.cpp's libraries first.";
    nb::register_exception_translator(translate);

    m.attr("llama_cpp_python_version") = PYVLLAMA_LLAMA_CPP_PYTHON;
    m.attr("llama_cpp_commit") = PYVLLAMA_LLAMA_COMMIT;

    m.def("device_names", &device_names, "Names of the devices of this build of llama.cpp, the CPU among them.");
    m.def("drop_mapped_pages", &drop_file_pages, "path"_a,
          "Give back the resident pages of a file that this process maps, whoever mapped it; they stay readable.\n\n"
          "Returns:\n"
          "    Bytes of its mappings; 0 where the system does not tell of them (all but Linux).");

    m.def("cpu_repacks", &cpu_repacks, "type"_a, "n_in"_a, "n_out"_a,
          "Whether llama.cpp keeps a matrix of that type and shape as a copy, in the layout of its CPU kernels.\n\n"
          "Raises:\n"
          "    ValueError: unknown type.");

    m.def("offload_devices", &offload_device_list,
          "Devices that text layers can be put on, in llama.cpp's order: (name, bytes free, its ggml_backend_dev_t).");

    bind_quantize(m);
    bind_image_states(m);
    bind_mmproj(m);

    nb::class_<importance_collector>(m, "ImportanceCollector",
                                     "Adds up squared inputs of weight columns while models compute. Not thread-safe.")
        .def(nb::init<bool>(), nb::kw_only(), "process_output"_a = false, "process_output: also of output.weight.")
        .def_prop_ro("entries", &importance_dict,
                     "A copy: name of a weight in its file -> (float64 [n_per_row]: sums of squares, rows counted).");

    nb::class_<decode_hook>(
        m, "DecodeHook",
        "Runs cross-attention inside llama_decode of one llama_context. Not thread-safe: begin, llama_decode "
        "and end follow one another on one thread.")
        .def(
            "__init__",
            [](decode_hook * self, const mmproj & m, int n_threads) {
                new (self) decode_hook(m.weights(), n_threads, poll_signals);
            },
            "mmproj"_a, nb::kw_only(), "n_threads"_a = 1,
            "Of images that this mmproj encoded; n_threads: on the CPU, the most that set_n_threads will ask for.")
        .def_prop_ro(
            "cb_eval", [](const decode_hook &) { return (uintptr_t) &decode_hook::cb_eval; },
            "Address for llama_context_params.cb_eval.")
        .def_prop_ro(
            "abort_callback", [](const decode_hook &) { return (uintptr_t) &decode_hook::cb_abort; },
            "Address for llama_context_params.abort_callback: lets Ctrl-C end a llama_decode on the CPU.")
        .def_prop_ro(
            "user_data", [](const decode_hook & self) { return (uintptr_t) &self; },
            "Address for cb_eval_user_data and abort_callback_data; valid while this object lives.")
        .def_prop_ro(
            "threadpool", [](const decode_hook & self) { return (uintptr_t) self.threadpool(); },
            "Address for llama_attach_threadpool, 0 if there is none; valid while this object lives. The context's "
            "thread counts must not exceed n_threads.")
        .def("begin", &decode_hook::begin, "row_group"_a, "groups"_a,
             "Say what the rows of the next llama_decode see.\n\n"
             "Args:\n"
             "    row_group: for each row of the batch the index of a group, or -1 for none.\n"
             "    groups: lists of ImageStates that are seen together.\n"
             "Raises:\n"
             "    ValueError: an index without group, an empty group, an image of another model.")
        .def("end", &decode_hook::end, "decoded"_a,
             "End the batch; decoded: llama_decode returned 0.\n\n"
             "Raises:\n"
             "    BackendError: a block failed, or rows were missed. KeyboardInterrupt and others that arose "
             "meanwhile.\n"
             "    The batch's rows must then be removed from the KV cache.")
        .def("set_n_threads", &decode_hook::set_n_threads, "n_threads"_a,
             "CPU threads for cross-attention, at most those of the constructor.")
        .def("interrupt", &decode_hook::interrupt, "on"_a,
             "From any thread: while it is on, a running llama_decode ends soon (on the CPU), and end() raises "
             "Cancelled.")
        .def("set_collector", &decode_hook::set_collector, "collector"_a.none(),
             "Count the inputs of all matrices of batches decoded from now on; None: no more. Not within a batch.")
        .def_prop_ro("stats", &stats_dict, "Counters since creation, as a dict.");
}
