"""The only importer of llama_cpp and of the compiled extension, in the order that keeps one copy of ggml.

llama-cpp-python installs each library twice (`lib/` and `llama_cpp/lib/`) and `import llama_cpp` loads the second set.
The extension names libggml by SONAME only, so importing llama_cpp first makes the loader reuse what is loaded. The
extension reads llama.cpp's C structs, whose layout changes between releases: hence the exact version check.

llama.cpp's log goes to the logger "pyvllama.llama_cpp".
"""

import ctypes
import functools
import logging
import os
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from pyvllama.errors import BackendError

__all__ = [
    "attach_threadpool",
    "default_n_threads",
    "init_backend",
    "llama_cpp",
    "machine_memory",
    "native",
    "set_fields",
]

_log = logging.getLogger("pyvllama.llama_cpp")
# ggml_log_level; a step lower than its name, for llama.cpp is talkative and what matters is raised as well
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.WARNING}
_CONTINUE = 5


def _check_versions(found: str, extension: ModuleType) -> None:
    built = extension.llama_cpp_python_version
    if found != built:
        raise BackendError(
            f"llama-cpp-python {found} is installed, but pyvllama was built against {built}, and the layout of "
            f"llama.cpp's structs differs between releases. Mend it with: pip install llama-cpp-python=={built}"
        )


import llama_cpp  # noqa: E402  loads libllama and libggml, before the extension

_found = metadata.version("llama-cpp-python")
try:
    from pyvllama import _native as native
except ImportError as e:
    if not any(Path(__file__).parent.glob("_native*.so")) and (Path(__file__).parents[1] / "pyproject.toml").exists():
        raise BackendError(
            f"{Path(__file__).parent} is pyvllama's source folder, without the compiled extension. Python found it "
            "before the installed package: change to another folder, or install this one in place: pip install -e ."
        ) from e
    raise BackendError(
        f"pyvllama's compiled extension does not load beside llama-cpp-python {_found}: {e}. "
        "Build it again: pip install --force-reinstall --no-deps --no-cache-dir pyvllama"
    ) from e
_check_versions(_found, native)


class _LogLines:
    """llama.cpp logs in pieces; this puts lines together and passes each on with its level."""

    def __init__(self) -> None:
        self._text = ""
        self._level = logging.DEBUG

    def __call__(self, level: int, text: bytes, _user_data: Any) -> None:
        if level != _CONTINUE:
            self._level = _LEVELS.get(level, logging.DEBUG)
        if not _log.isEnabledFor(self._level):
            return
        *lines, self._text = (self._text + text.decode("utf-8", errors="replace")).split("\n")
        for line in lines:
            if line:
                _log.log(self._level, line)


_log_callback = llama_cpp.llama_log_callback(_LogLines())  # kept alive here: C holds a pointer to it


def set_fields(struct: ctypes.Structure, **values: Any) -> None:
    """Fill in one of llama.cpp's structs: ctypes takes any name, known to C or not, and cuts what is too large.

    Raises:
        AttributeError: the struct has no such field.
        TypeError: a bool for what is none, or the other way round; or what ctypes does not take.
        OverflowError: an integer that the field does not hold.
    """
    kinds = {name: kind for name, kind, *_ in struct._fields_}
    for name, value in values.items():
        if name not in kinds:
            raise AttributeError(f"{type(struct).__name__} has no field {name}; it has {', '.join(kinds)}")
        if isinstance(value, bool) != (kinds[name] is ctypes.c_bool):
            raise TypeError(f"{type(struct).__name__}.{name} is {kinds[name].__name__}, not {value!r}")
        setattr(struct, name, value)
        # float32 rounds; addresses and callbacks do not come back as what they were
        if isinstance(value, int) and (getattr(struct, name) or 0) != value:  # NULL comes back as None
            raise OverflowError(f"{type(struct).__name__}.{name} is {kinds[name].__name__}, too small for {value}")


def attach_threadpool(context: Any, threadpool: int) -> None:
    """Let a llama_context compute with DecodeHook.threadpool, which must outlive it; 0: with threads of its own."""
    if threadpool:
        # llama-cpp-python has no name for it
        attach = llama_cpp.llama_cpp._lib.llama_attach_threadpool
        attach.argtypes, attach.restype = [ctypes.c_void_p] * 3, None
        attach(context, threadpool, threadpool)


@functools.cache
def init_backend() -> None:
    """Start llama.cpp, once a process, and take over its log."""
    llama_cpp.llama_log_set(_log_callback, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()


@functools.cache
def default_n_threads() -> int:
    """Physical cores that this process may use: ggml's kernels gain nothing from a second thread a core."""
    if sys.platform == "darwin":
        # performance cores only: ggml waits for the slowest thread
        libc = ctypes.CDLL(None)
        value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
        name = b"hw.perflevel0.physicalcpu"
        if libc.sysctlbyname(name, ctypes.byref(value), ctypes.byref(size), None, 0) == 0 and value.value > 0:
            return value.value
    if hasattr(os, "sched_getaffinity"):
        cores = set()
        for cpu in os.sched_getaffinity(0):
            topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
            try:
                cores.add(((topology / "physical_package_id").read_text(), (topology / "core_id").read_text()))
            except OSError:
                cores.add(("", str(cpu)))
        return len(cores)
    return max(1, (os.cpu_count() or 2) // 2)


def machine_memory() -> int | None:
    """Bytes that the machine has; None where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on Windows, not everywhere else
        return None
