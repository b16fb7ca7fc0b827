#include "file-map.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>

#include "errors.h"

#if defined(_WIN32)
#define PYVLLAMA_MMAP 0
#else
#define PYVLLAMA_MMAP 1
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace pyvllama {

#if PYVLLAMA_MMAP

file_map::file_map(const std::string & path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        throw format_error(path + ": cannot be opened: " + strerror(errno));
    }
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size <= 0) {
        close(fd);
        throw format_error(path + ": is empty or no regular file");
    }
    size_ = (size_t) st.st_size;
    void * p = mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (p == MAP_FAILED) {
        throw format_error(path + ": cannot be mapped: " + strerror(errno));
    }
    data_ = (const uint8_t *) p;
}

file_map::~file_map() {
    munmap((void *) data_, size_);
}

void file_map::drop(size_t offset, size_t size) const {
    const size_t page = (size_t) sysconf(_SC_PAGESIZE);
    const size_t first = (offset + page - 1) / page * page, last = (offset + size) / page * page;
    if (first < last) {
        madvise((void *) (data_ + first), last - first, MADV_DONTNEED);
    }
}

#else

constexpr std::align_val_t ALIGNMENT{ 64 };  // ggml wants 32

file_map::file_map(const std::string & path) {
    FILE * f = fopen(path.c_str(), "rb");
    if (!f) {
        throw format_error(path + ": cannot be opened: " + strerror(errno));
    }
    _fseeki64(f, 0, SEEK_END);
    const int64_t size = _ftelli64(f);
    _fseeki64(f, 0, SEEK_SET);
    size_ = size > 0 ? (size_t) size : 0;
    copy_ = ::operator new(size_, ALIGNMENT);
    const bool ok = size > 0 && fread(copy_, 1, size_, f) == size_;
    fclose(f);
    if (!ok) {
        ::operator delete(copy_, ALIGNMENT);
        throw format_error(path + ": is empty or cannot be read");
    }
    data_ = (const uint8_t *) copy_;
}

file_map::~file_map() {
    ::operator delete(copy_, ALIGNMENT);
}

void file_map::drop(size_t, size_t) const {}

#endif

}  // namespace pyvllama
