#include "gguf-file.h"

#include "errors.h"

namespace pyvllama {

namespace {

std::string shape_string(const std::vector<int64_t> & ne) {
    std::string s = "[";
    for (size_t i = 0; i < ne.size(); ++i) {
        s += (i ? ", " : "") + std::to_string(ne[i]);
    }
    return s + "]";
}

}  // namespace

gguf_file::gguf_file(const std::string & path) : path_(path), bytes_(path) {
    ggml_context * tensors = nullptr;
    gguf_.reset(gguf_init_from_file(path.c_str(), { /*.no_alloc =*/true, /*.ctx =*/&tensors }));
    tensors_.reset(tensors);
    if (!gguf_) {
        fail("is no GGUF file, or a damaged one (ggml could not read its header)");
    }
    if (gguf_get_alignment(gguf_.get()) % 32 != 0) {
        fail("aligns its tensors to " + std::to_string(gguf_get_alignment(gguf_.get())) + " bytes, expected 32");
    }
    const int64_t n_tensors = gguf_get_n_tensors(gguf_.get());
    const size_t data = gguf_get_data_offset(gguf_.get());
    for (int64_t i = 0; i < n_tensors; ++i) {
        const size_t first = gguf_get_tensor_offset(gguf_.get(), i), size = gguf_get_tensor_size(gguf_.get(), i);
        if (data > bytes_.size() || first > bytes_.size() - data || size > bytes_.size() - data - first) {
            fail(std::string("tensor '") + gguf_get_tensor_name(gguf_.get(), i) +
                 "' reaches past the end of the file (" + std::to_string(bytes_.size()) +
                 " bytes): the file is truncated, get or convert it again");
        }
    }
}

void gguf_file::fail(const std::string & what) const {
    throw format_error(path_ + ": " + what);
}

int64_t gguf_file::find(const char * key, gguf_type type) const {
    const int64_t id = gguf_find_key(gguf_.get(), key);
    if (id < 0) {
        fail(std::string("key '") + key + "' is missing");
    }
    const gguf_type found = gguf_get_kv_type(gguf_.get(), id);
    if (found != type) {
        fail(std::string("key '") + key + "' is of type " + gguf_type_name(found) + ", expected " +
             gguf_type_name(type));
    }
    return id;
}

std::string gguf_file::str(const char * key) const {
    return gguf_get_val_str(gguf_.get(), find(key, GGUF_TYPE_STRING));
}

bool gguf_file::boolean(const char * key) const {
    return gguf_get_val_bool(gguf_.get(), find(key, GGUF_TYPE_BOOL));
}

uint32_t gguf_file::u32(const char * key) const {
    return gguf_get_val_u32(gguf_.get(), find(key, GGUF_TYPE_UINT32));
}

float gguf_file::f32(const char * key) const {
    return gguf_get_val_f32(gguf_.get(), find(key, GGUF_TYPE_FLOAT32));
}

std::vector<int32_t> gguf_file::i32_array(const char * key) const {
    const int64_t id = find(key, GGUF_TYPE_ARRAY);
    const gguf_type type = gguf_get_arr_type(gguf_.get(), id);
    if (type != GGUF_TYPE_INT32) {
        fail(std::string("key '") + key + "' is an array of " + gguf_type_name(type) + ", expected i32");
    }
    const size_t n = gguf_get_arr_n(gguf_.get(), id);
    const int32_t * p = n ? (const int32_t *) gguf_get_arr_data(gguf_.get(), id) : nullptr;
    return std::vector<int32_t>(p, p + n);
}

ggml_tensor * gguf_file::tensor(const std::string & name, const std::vector<int64_t> & ne) {
    ggml_tensor * t = ggml_get_tensor(tensors_.get(), name.c_str());
    if (!t) {
        fail("tensor '" + name + "' is missing");
    }
    bool fits = true;
    for (size_t i = 0; i < GGML_MAX_DIMS; ++i) {
        fits = fits && t->ne[i] == (i < ne.size() ? ne[i] : 1);
    }
    if (!fits) {
        std::vector<int64_t> found(t->ne, t->ne + ggml_n_dims(t));
        fail("tensor '" + name + "' has shape " + shape_string(found) + ", expected " + shape_string(ne) +
             " (fastest dimension first)");
    }
    if (t->type != GGML_TYPE_F32 && !ggml_get_type_traits(t->type)->to_float) {
        fail("tensor '" + name + "' is of type " + ggml_type_name(t->type) + ", which is no type of weights");
    }
    known_.insert(name);
    return t;
}

size_t gguf_file::offset(const ggml_tensor * tensor) const {
    const int64_t id = gguf_find_tensor(gguf_.get(), tensor->name);
    return gguf_get_data_offset(gguf_.get()) + gguf_get_tensor_offset(gguf_.get(), id);
}

std::vector<float> gguf_file::values(const ggml_tensor * tensor, int64_t first, int64_t n) const {
    const ggml_type type = tensor->type;
    const int64_t block = ggml_blck_size(type);
    if (first < 0 || n < 0 || first % block != 0 || n % block != 0 || first + n > ggml_nelements(tensor)) {
        fail(std::string("tensor '") + tensor->name + "' cannot be read in part as " + ggml_type_name(type));
    }
    std::vector<float> out((size_t) n);
    const size_t start = offset(tensor) + ggml_row_size(type, first);
    const uint8_t * src = bytes_.data() + start;
    if (type == GGML_TYPE_F32) {
        std::copy((const float *) src, (const float *) src + n, out.begin());
    } else {
        ggml_get_type_traits(type)->to_float(src, out.data(), n);
    }
    bytes_.drop(start, ggml_row_size(type, n));
    return out;
}

void gguf_file::refuse_unknown_tensors() const {
    std::string unknown;
    int n = 0;
    for (int64_t i = 0; i < gguf_get_n_tensors(gguf_.get()); ++i) {
        const char * name = gguf_get_tensor_name(gguf_.get(), i);
        if (!known_.count(name) && ++n <= 5) {
            unknown += (n > 1 ? ", " : "") + std::string(name);
        }
    }
    if (n > 0) {
        fail("has " + std::to_string(n) + " unknown tensors (" + unknown + (n > 5 ? ", ..." : "") +
             "): it was made for another model or by a newer pyvllama");
    }
}

}  // namespace pyvllama
