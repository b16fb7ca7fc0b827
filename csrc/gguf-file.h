// Checked reads of a GGUF file: every key has its type verified, every tensor its shape and its place inside the file,
// before anything is computed from them. ggml's own reader parses the header; what it leaves unchecked (that the data
// really is in the file) is checked here. All errors are format_error and name the file and the key or tensor.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_set>
#include <vector>

#include "file-map.h"
#include "ggml-cpp.h"
#include "ggml.h"
#include "gguf.h"

namespace pyvllama {

class gguf_file {
  public:
    explicit gguf_file(const std::string & path);

    const std::string & path() const { return path_; }
    const file_map & bytes() const { return bytes_; }

    std::string str(const char * key) const;
    bool boolean(const char * key) const;
    uint32_t u32(const char * key) const;
    float f32(const char * key) const;
    std::vector<int32_t> i32_array(const char * key) const;

    // The tensor (no data attached yet), whose shape must be ne (ggml order, trailing ones implied) and whose type must
    // be one of weights (floating point or quantized).
    ggml_tensor * tensor(const std::string & name, const std::vector<int64_t> & ne);
    // Offset of its data from the start of the file.
    size_t offset(const ggml_tensor * tensor) const;
    // n elements of it from element `first` on, as F32. Their pages are given back: the copy is what is used.
    std::vector<float> values(const ggml_tensor * tensor, int64_t first, int64_t n) const;

    // Throws if the file holds a tensor that nobody asked for: better than ignoring half a model.
    void refuse_unknown_tensors() const;

    [[noreturn]] void fail(const std::string & what) const;

  private:
    int64_t find(const char * key, gguf_type type) const;

    std::string path_;
    file_map bytes_;
    gguf_context_ptr gguf_;
    ggml_context_ptr tensors_;
    std::unordered_set<std::string> known_;
};

}  // namespace pyvllama
