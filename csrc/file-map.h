// A file's bytes in memory: mapped read-only where the system can, read whole elsewhere. A mapped file must stay as it
// is as long as it is used: truncating it kills the process, as with any program that maps files.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pyvllama {

class file_map {
  public:
    explicit file_map(const std::string & path);  // throws format_error if the file cannot be opened
    ~file_map();
    file_map(const file_map &) = delete;
    file_map & operator=(const file_map &) = delete;

    const uint8_t * data() const { return data_; }
    size_t size() const { return size_; }

    // The bytes have been copied elsewhere: let the system take back whole pages within [offset, offset + size).
    // They stay readable (from disk).
    void drop(size_t offset, size_t size) const;

  private:
    const uint8_t * data_ = nullptr;
    size_t size_ = 0;
#if defined(_WIN32)
    void * copy_ = nullptr;  // without mmap
#endif
};

}  // namespace pyvllama
