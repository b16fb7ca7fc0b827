"""Devices that are no CPU, on any machine: tests/cpp/fake-device.cpp, built and loaded as a backend of llama.cpp's."""

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyvllama._runtime import llama_cpp, native

SOURCE = Path(__file__).parent / "cpp" / "fake-device.cpp"
LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
MIB = 1 << 20


@dataclass(frozen=True)
class Stats:
    """Of a device: nodes of graphs that it has computed, bytes in use and in all."""

    n_nodes: int
    n_used: int
    n_bytes: int


class FakeDevices:
    """FAKE0 and FAKE1, while they are registered."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def stats(self, i: int) -> Stats:
        n_nodes, n_used, n_bytes = ctypes.c_int64(), ctypes.c_size_t(), ctypes.c_size_t()
        self._library.fake_device_stats(
            ctypes.c_size_t(i), ctypes.byref(n_nodes), ctypes.byref(n_used), ctypes.byref(n_bytes)
        )
        return Stats(n_nodes.value, n_used.value, n_bytes.value)

    @contextmanager
    def of_size(self, i: int, n_bytes: int) -> Iterator[None]:
        """A device that has only so much memory."""
        before = self.stats(i).n_bytes
        self._library.fake_device_set_size(ctypes.c_size_t(i), ctypes.c_size_t(n_bytes))
        try:
            yield
        finally:
            self._library.fake_device_set_size(ctypes.c_size_t(i), ctypes.c_size_t(before))


def build(folder: Path) -> Path:
    """The library, built by the C++ compiler; the test is skipped where there is none, or where there is a GPU."""
    if native.offload_devices():
        pytest.skip("there is a GPU, and layers would be put on it")
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("fake devices need Linux and a C++ compiler")
    target = folder / "libfake-device.so"
    headers = Path(sysconfig.get_path("purelib")) / "include"
    if not headers.is_dir():  # of an environment that shares its packages
        headers = LIBRARIES.parents[1] / "include"
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", f"-I{headers}", f"-L{LIBRARIES}")
    libraries = ("-lggml", "-lggml-cpu", "-lggml-base")
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(target), *libraries], check=True)
    return target


@contextmanager
def registered(path: Path) -> Iterator[FakeDevices]:
    """llama.cpp knows the devices as long as this lasts; FAKE0 has three times the memory of FAKE1."""
    ggml = ctypes.CDLL("libggml.so.0")  # by its name alone: that which is loaded, not a copy of it
    ggml.ggml_backend_load.restype = ctypes.c_void_p
    os.environ["PYVLLAMA_FAKE_DEVICES"] = "768,256"
    library = ctypes.CDLL(str(path))  # stays loaded: its devices do not die while something may still name them
    registry = ggml.ggml_backend_load(os.fsencode(path))
    assert registry, "ggml does not load the fake devices"
    try:
        yield FakeDevices(library)
    finally:
        ggml.ggml_backend_unload(ctypes.c_void_p(registry))
