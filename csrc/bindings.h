// What the files of the bindings share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>

namespace pyvllama {

namespace nb = nanobind;

template <typename T>
nb::ndarray<nb::numpy, T, nb::c_contig> new_array(std::initializer_list<size_t> shape) {
    size_t n = 1;
    for (size_t s : shape) {
        n *= s;
    }
    T * data = new T[n];
    nb::capsule owner(data, [](void * p) noexcept { delete[] (T *) p; });
    return nb::ndarray<nb::numpy, T, nb::c_contig>(data, shape, owner);
}

// A path as the system takes it.
inline std::string encoded(nb::object path) {
    const nb::bytes bytes = nb::cast<nb::bytes>(nb::module_::import_("os").attr("fsencode")(path));
    return std::string(bytes.c_str(), bytes.size());
}

void bind_image_states(nb::module_ & m);
void bind_mmproj(nb::module_ & m);
void bind_quantize(nb::module_ & m);

}  // namespace pyvllama
