// The resident pages of a file that this process has mapped, whoever mapped it: llama.cpp maps a text model and keeps
// all of it, although the weights that it copies (into the layout of its CPU kernels, or to a GPU) are never read there
// again.
#pragma once

#include <cstddef>
#include <string>

namespace pyvllama {

// Gives back the pages of all shared, read-only mappings of that file. They stay readable: those that are read again
// come from the page cache, or from the disk. Returns the bytes of these mappings; 0 where the system does not tell
// which there are (all but Linux), or if there is no such file.
size_t drop_mapped_pages(const std::string & path);

}  // namespace pyvllama
