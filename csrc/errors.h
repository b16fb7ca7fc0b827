// The errors that the core throws. bindings.cpp turns each into the class of the same name in pyvllama/errors.py.
#pragma once

#include <stdexcept>
#include <string>

namespace pyvllama {

struct error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// An option or a setting that is not supported.
struct config_error : error {
    using error::error;
};

// A GGUF file that is damaged, of another kind, or that does not fit its partner.
struct format_error : error {
    using error::error;
};

// A computation that failed in ggml, llama.cpp or here.
struct backend_error : error {
    using error::error;
};

// A progress callback asked to stop.
struct cancelled : error {
    using error::error;
};

}  // namespace pyvllama
