"""GGUF files as they are to be written, and writing them: all or none, and no name before the file is right."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pyvllama.conversion.typed_rows import Slices
from pyvllama.conversion.writer import Metadata, TensorSpec, publish, verify_gguf, write_gguf, writing
from pyvllama.errors import Cancelled, ConfigError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "Meter",
    "OutputFile",
    "OutputTensor",
    "Progress",
    "check_existing",
    "make_directory",
    "n_cores",
    "work_directory",
    "write_files",
]

Progress = Callable[[int, int, str], "bool | None"]
"""Called with (bytes done, bytes in all, what is being done); returning False stops the work."""

_WORK_PREFIX = ".pyvllama-"
_LOCK = "lock"
_YOUNG_S = 60.0
"""A work directory without a lock may be another process's that has only just made it."""


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to be written, and where its data comes from."""

    spec: TensorSpec
    origin: str
    """'file: tensor', for people."""
    slices: Slices


@dataclass(frozen=True)
class OutputFile:
    """A GGUF file to be written."""

    path: Path
    """Its final name."""
    metadata: Metadata
    tensors: tuple[OutputTensor, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(t.spec.n_bytes for t in self.tensors)


def write_files(
    files: Sequence[OutputFile],
    *,
    n_threads: int | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write files of one directory, which is made if need be.

    They are written under hidden names, flushed, read again and compared with what was meant, and only then get their
    names. What killed processes have left behind in the directory is removed.

    Args:
        files: at least one.
        n_threads: for quantizing; None: all cores.
        progress: called after every slice, at least once a tensor.
        overwrite: replace files of the same names.

    Returns:
        The files' paths.

    Raises:
        ConfigError: a file exists, the disk is too small or full, or the directory cannot be written to.
        FormatError: what was read back is not what was written.
        Cancelled: `progress` returned False.
    """
    paths = [file.path for file in files]
    out_dir = paths[0].parent
    check_existing(paths, overwrite=overwrite)
    make_directory(out_dir)
    total = sum(file.n_bytes for file in files)
    meter = Meter(progress, total)
    with work_directory(out_dir, total) as work:
        for file in files:
            specs = [t.spec for t in file.tensors]
            temporary = work / file.path.name
            checksums = write_gguf(temporary, file.metadata, specs, _data(file, n_threads or n_cores(), meter))
            meter.check(f"verifying {file.path.name}")
            verify_gguf(temporary, file.metadata, specs, checksums)
        publish({work / path.name: path for path in paths})
    return paths


def check_existing(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse to write two files of one name, and to replace files unless that was asked for.

    Raises:
        ConfigError: names the files that exist.
    """
    if twice := sorted({str(p) for p in paths if list(paths).count(p) > 1}):
        raise ConfigError(f"{' and '.join(twice)} would be written twice: write the sources into different directories")
    if not overwrite and (existing := [str(p) for p in paths if p.exists()]):
        raise ConfigError(
            f"{' and '.join(existing)} {'exist' if len(existing) > 1 else 'exists'} already; ask for overwriting "
            "(--overwrite), or choose another directory"
        )


def make_directory(out_dir: Path) -> None:
    """Make a directory for results, if there is none.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"{out_dir} cannot be made: {e.strerror or e}") from e


@contextlib.contextmanager
def work_directory(out_dir: Path, n_bytes: int) -> Iterator[Path]:
    """A hidden directory in `out_dir` for unfinished files, gone at the end.

    Args:
        out_dir: an existing directory.
        n_bytes: what will be written there.

    Raises:
        ConfigError: it cannot be made, or the disk is too small.
    """
    try:
        _remove_abandoned(out_dir)
        free = shutil.disk_usage(out_dir).free
        if n_bytes > free:
            raise ConfigError(f"{out_dir} has {_size(free)} free, but the files need {_size(n_bytes)}")
        work = Path(tempfile.mkdtemp(prefix=_WORK_PREFIX, dir=out_dir))
    except OSError as e:
        raise ConfigError(f"{out_dir} cannot be written to: {e.strerror or e}") from e
    try:
        with _locked(work / _LOCK):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, however that ends."""
    if fcntl is None:
        yield
        return
    with writing(path):
        f = path.open("wb")
    with f:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _remove_abandoned(out_dir: Path) -> None:
    """Work directories of processes that were killed: those whose lock nobody holds."""
    if fcntl is None:
        return
    for work in out_dir.glob(_WORK_PREFIX + "*"):
        with contextlib.suppress(OSError):
            lock = work / _LOCK
            if not lock.is_file():
                if time.time() - work.stat().st_mtime > _YOUNG_S:
                    shutil.rmtree(work)
                continue
            with lock.open("rb+") as f:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(work)


def _data(file: OutputFile, n_threads: int, meter: Meter) -> Iterator[tuple[str, Iterator[NDArray[Any]]]]:
    for t in file.tensors:
        yield t.spec.name, _metered(t, n_threads, meter)


def _metered(t: OutputTensor, n_threads: int, meter: Meter) -> Iterator[NDArray[Any]]:
    for data in t.slices(n_threads):
        yield data
        meter.add(data.nbytes, t.spec.name)


class Meter:
    """Adds up the bytes written, tells the caller, and stops when he says so."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress = progress
        self.total = total
        self.done = 0

    def add(self, n_bytes: int, what: str) -> None:
        """So many bytes more are written, of the tensor `what`."""
        self.done += n_bytes
        self.check(what)

    def check(self, what: str) -> None:
        """Tell where the work is.

        Raises:
            Cancelled: the caller says that it shall stop.
        """
        if self.progress is not None and self.progress(self.done, self.total, what) is False:
            raise Cancelled(f"the work was stopped at {what}; nothing was kept")


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
