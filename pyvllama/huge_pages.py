"""Huge pages under the weights that llama.cpp holds in memory of its own (repacked for the CPU)."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["advise", "large_blocks"]

_MIN_BYTES = 16 << 20
_MADV_HUGEPAGE = 14  # linux/mman.h


def large_blocks() -> set[tuple[int, int]]:
    """First address and end of every large block of this process's own memory; empty where the system does not tell."""
    return set(_blocks()) if sys.platform == "linux" else set()


def _blocks() -> Iterator[tuple[int, int]]:
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split()  # addresses, rights, offset, device, inode, and a name if it has one
        if len(fields) == 5 and fields[1] == "rw-p":
            first, end = (int(address, 16) for address in fields[0].split("-"))
            if end - first >= _MIN_BYTES:
                yield first, end


def advise(blocks: set[tuple[int, int]]) -> None:
    """Ask for huge pages under blocks that were not written yet: fewer addresses to look up for each token's weights.

    Most systems give them only to who asks. Where they cannot be had, nothing changes.
    """
    if blocks:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for first, end in blocks:
            madvise(first, end - first, _MADV_HUGEPAGE)
