"""Advice for huge pages: which memory gets it."""

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from pyvllama.huge_pages import advise, large_blocks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's /proc")


def flags_of(address: int) -> list[str]:
    """VmFlags of the mapping an address is in."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if "-" in name and not name.endswith(":"):
            first, end = (int(part, 16) for part in name.split("-"))
            found = first <= address < end
        elif found and name == "VmFlags:":
            return rest.split()
    raise AssertionError(f"no mapping holds {address:#x}")


def test_new_memory_is_advised_and_no_other(tmp_path):
    if not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        pytest.skip("a kernel without transparent huge pages")
    before = large_blocks()
    private = mmap.mmap(-1, 40 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    file = tmp_path / "file"
    file.write_bytes(bytes(40 << 20))
    with file.open("r+b") as f:
        of_file = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE)
    at, at_file = (np.frombuffer(m, np.uint8).ctypes.data for m in (private, of_file))
    new = large_blocks() - before
    assert any(first <= at < end for first, end in new)
    assert not any(first <= at_file < end for first, end in new)
    assert "hg" not in flags_of(at)
    advise(new)
    assert "hg" in flags_of(at)
    assert "hg" not in flags_of(at_file)
    private[:4] = b"abcd"
    assert private[:8] == b"abcd\0\0\0\0"


def test_nothing_to_advise():
    advise(set())
