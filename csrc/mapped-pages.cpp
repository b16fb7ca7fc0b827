#include "mapped-pages.h"

#if defined(__linux__)
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#endif

namespace pyvllama {

#if defined(__linux__)

size_t drop_mapped_pages(const std::string & path) {
    struct stat st;
    const std::unique_ptr<char, void (*)(void *)> real(realpath(path.c_str(), nullptr), free);
    if (!real || stat(real.get(), &st) != 0) {
        return 0;
    }
    size_t n_bytes = 0;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        unsigned long first, last, inode;
        unsigned major, minor;
        char access[5];
        int name_at = 0;
        if (sscanf(line.c_str(), "%lx-%lx %4s %*x %x:%x %lu %n", &first, &last, access, &major, &minor, &inode,
                   &name_at) < 6 ||
            std::string(access) != "r--s" || inode != (unsigned long) st.st_ino) {
            continue;
        }
        // Some file systems have another device number here than in stat().
        if (makedev(major, minor) == st.st_dev || line.compare((size_t) name_at, std::string::npos, real.get()) == 0) {
            if (madvise((void *) first, last - first, MADV_DONTNEED) == 0) {
                n_bytes += last - first;
            }
        }
    }
    return n_bytes;
}

#else

size_t drop_mapped_pages(const std::string &) {
    return 0;
}

#endif

}  // namespace pyvllama
