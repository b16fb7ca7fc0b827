"""`pyvllama doctor`: what is installed, on which machine, and whether a model fits it. Nothing is loaded for that."""

import os
import platform
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from pyvllama._runtime import default_n_threads, llama_cpp, native
from pyvllama.memory_need import available_memory
from pyvllama.model_cache import cache_root

__all__ = ["Finding", "examine"]

_GIB = 1 << 30
_LOW_DISK_BYTES = 10 * _GIB  # a conversion of the 11B model writes 8
_PACKAGES = ("fastapi", "uvicorn", "huggingface_hub", "pillow", "numpy")
_FEATURES = (  # what Linux calls it, what llama.cpp's build calls it
    ("avx", "AVX"),
    ("avx2", "AVX2"),
    ("fma", "FMA"),
    ("f16c", "F16C"),
    ("avx512f", "AVX512"),
    ("avx512_vnni", "AVX512_VNNI"),
    ("avx512_bf16", "AVX512_BF16"),
    ("avx_vnni", "AVX_VNNI"),
    ("amx_int8", "AMX_INT8"),
    ("asimddp", "DOTPROD"),
    ("i8mm", "MATMUL_INT8"),
    ("sve", "SVE"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what it is.
        value: how it is.
        problem: what is wrong with it and what to do; None: nothing.
        hint: what could be better.
    """

    name: str
    value: str
    problem: str | None = None
    hint: str | None = None


def examine(cache: Path | None = None, cpuinfo: Path = Path("/proc/cpuinfo")) -> list[Finding]:
    """The installation and the machine.

    Args:
        cache: where converted models are kept; None: `cache_root()`.
        cpuinfo: Linux's description of the processor.
    """
    info = llama_cpp.llama_print_system_info().decode(errors="replace")
    has_gpu = bool(llama_cpp.llama_supports_gpu_offload())
    return [
        Finding(
            "pyvllama", f"{metadata.version('pyvllama')}, Python {platform.python_version()}, {platform.platform()}"
        ),
        Finding(
            "llama-cpp-python",
            f"{metadata.version('llama-cpp-python')}, llama.cpp {native.llama_cpp_commit}; the extension was built "
            "against the same",  # else `import pyvllama` had told how to mend it
        ),
        Finding("packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)),
        Finding("build", " ".join(info.split())),
        _processor(info, cpuinfo),
        _devices(has_gpu),
        _memory(),
        _disk("cache", cache_root() if cache is None else cache),
    ]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(missing)"


def _processor(info: str, cpuinfo: Path) -> Finding:
    name, flags = _read_cpuinfo(cpuinfo)
    missing = [ours for theirs, ours in _FEATURES if theirs in flags and f"{ours} = 1" not in info]
    hint = None
    if missing:
        hint = (
            f"the processor has {', '.join(missing)}, which this build of llama.cpp does not use; building it on this "
            "machine makes it faster: pip install --force-reinstall --no-binary :all: --no-cache-dir "
            f"llama-cpp-python=={metadata.version('llama-cpp-python')}"
        )
    n = default_n_threads()
    cores = f"{n} physical core{'s' if n > 1 else ''} usable, {os.cpu_count()} logical"
    return Finding("processor", f"{name or platform.machine()}, {cores}", hint=hint)


def _read_cpuinfo(path: Path) -> tuple[str, frozenset[str]]:
    """(the processor's name, its features); nothing where there is no such file."""
    name, flags = "", frozenset[str]()
    try:
        lines: Iterable[str] = path.read_text(errors="replace").splitlines()
    except OSError:
        return name, flags
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
    return name, flags


def _devices(has_gpu: bool) -> Finding:
    names = native.device_names()
    gpus = [name for name in names if not name.upper().startswith("CPU")]
    hint = None
    if has_gpu and not gpus:
        hint = "this build of llama.cpp can use a GPU, but finds none: look at the driver"
    rpc = "" if llama_cpp.llama_supports_rpc() else "; no RPC backend in this build"
    return Finding("devices", f"{', '.join(names)}{rpc}", hint=hint)


def _memory() -> Finding:
    memory = available_memory()
    if memory is None:
        return Finding("memory", "unknown on this system")
    return Finding("memory", f"{memory / _GIB:.1f} GiB available")


def _disk(name: str, path: Path) -> Finding:
    """Of the directory, or of the one that it would be made in."""
    there = next((p for p in (path, *path.parents) if p.exists()), Path(path.anchor or "."))
    try:
        free = shutil.disk_usage(there).free
    except OSError as e:
        return Finding(name, str(path), problem=f"{there} cannot be asked for its free space: {e.strerror or e}")
    value = f"{path}, {free / _GIB:.1f} GiB free"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        problem = f"{there} cannot be written: choose another directory with PYVLLAMA_CACHE"
        return Finding(name, value, problem=problem)
    hint = None
    if free < _LOW_DISK_BYTES:
        hint = "converting the 11B model takes 8 GiB; PYVLLAMA_CACHE may name a directory on another disk"
    return Finding(name, value, hint=hint)
