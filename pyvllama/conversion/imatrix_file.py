"""Importance matrices in files: llama.cpp's GGUF form, read and written, and its older .dat form, read.

A file holds, for each weight, the sums of the squared inputs of its columns (`NAME.in_sum2`) and how many rows were
added up (`NAME.counts`); see llama.cpp, tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.conversion.output import OutputFile, OutputTensor, write_files
from pyvllama.conversion.writer import TensorSpec
from pyvllama.errors import FormatError, ModelNotFound
from pyvllama.gguf_file import GGUFFile

__all__ = ["ColumnSums", "ImportanceMatrix"]

_SUMS, _COUNTS = ".in_sum2", ".counts"
_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_MAX_OLD_ENTRIES = 1 << 20
_MAX_OLD_NAME = 1 << 12


@dataclass(frozen=True, eq=False)
class ColumnSums:
    """Of one weight.

    Attributes:
        sums: float64 [n_per_row], the sum of the squared inputs of each column.
        n_rows: rows added up; 0: nothing is known.
    """

    sums: NDArray[np.float64]
    n_rows: int


@dataclass(eq=False)
class ImportanceMatrix:
    """How much the columns of weights matter, by the weights' names in their GGUF file.

    Attributes:
        entries: name of a weight -> its importance.
        datasets: what it was collected from.
        chunk_size: rows of a chunk, llama.cpp's unit for the size of a calibration set.
    """

    entries: dict[str, ColumnSums] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    chunk_size: int = 512

    @classmethod
    def read(cls, *paths: str | Path) -> ImportanceMatrix:
        """Read files and put them together; what several hold of one weight is added up, as llama-imatrix does.

        Raises:
            ModelNotFound: there is no such file.
            FormatError: one is damaged or no importance matrix, or two do not fit together.
        """
        result = cls()
        for path in map(Path, paths):
            part = _read_gguf(path) if _is_gguf(path) else _read_old(path)
            for name, found in part.entries.items():
                known = result.entries.get(name)
                if known is None:
                    result.entries[name] = found
                elif known.sums.shape != found.sums.shape:
                    raise FormatError(
                        f"{path}: {name} has {len(found.sums)} columns here, {len(known.sums)} in another file: "
                        "these are of different models"
                    )
                else:
                    result.entries[name] = ColumnSums(known.sums + found.sums, known.n_rows + found.n_rows)
            result.datasets = tuple(dict.fromkeys((*result.datasets, *part.datasets)))
            result.chunk_size = part.chunk_size or result.chunk_size
        return result

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def chunk_count(self) -> int:
        """Chunks that the weight with most rows was collected over, rounded up."""
        most = max((entry.n_rows for entry in self.entries.values()), default=0)
        return -(-most // self.chunk_size) if self.chunk_size > 0 else 0

    def values(self, name: str) -> NDArray[np.float32] | None:
        """What ggml's quantizers take: float32 [n_per_row], the mean square of each column's input.

        All 1 where no row was counted, as llama-quantize reads it. None where the weight is not in the matrix.
        """
        if (entry := self.entries.get(name)) is None:
            return None
        if entry.n_rows == 0:
            return np.ones(len(entry.sums), np.float32)
        # as llama-quantize divides: float32 by float32, so that both quantize to the same bytes
        mean: NDArray[np.float32] = entry.sums.astype(np.float32) / np.float32(entry.n_rows)
        return mean

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write llama.cpp's GGUF form.

        Raises:
            ConfigError: the file exists or cannot be written.
        """
        write_files([self.output_file(Path(path))], overwrite=overwrite)

    def output_file(self, path: Path) -> OutputFile:
        """The file as `output.write_files` takes it: keys and tensors as llama-imatrix orders them."""
        keys = {
            "general.type": ("str", "imatrix"),
            _DATASETS: ("str[]", list(self.datasets) or ["unknown"]),  # llama-quantize asks for the key
            _CHUNK_COUNT: ("u32", self.chunk_count),
            _CHUNK_SIZE: ("u32", self.chunk_size),
        }
        tensors = []
        for name, entry in sorted(self.entries.items()):
            tensors.append(_tensor(name + _SUMS, entry.sums))
            tensors.append(_tensor(name + _COUNTS, np.array([entry.n_rows])))
        return OutputFile(path, keys, tuple(tensors))


def _tensor(name: str, values: NDArray[Any]) -> OutputTensor:
    data = values.astype(np.float32)
    return OutputTensor(TensorSpec(name, data.shape, "f32"), "calibration", lambda _: iter((data,)))


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            return f.read(4) == b"GGUF"
    except FileNotFoundError as e:
        raise ModelNotFound(f"{path}: there is no such importance matrix") from e
    except OSError as e:
        raise FormatError(f"{path} cannot be read: {e.strerror or e}") from e


def _read_gguf(path: Path) -> ImportanceMatrix:
    file = GGUFFile(path)
    if file.metadata.get("general.type", "imatrix") != "imatrix" or "general.architecture" in file.metadata:
        raise FormatError(f"{path}: this is a model, not an importance matrix (general.type = imatrix)")
    datasets = file.metadata.get(_DATASETS, [])
    chunk_size = file.metadata.get(_CHUNK_SIZE, 0)
    if not isinstance(datasets, list) or not all(isinstance(d, str) for d in datasets):
        raise FormatError(f"{path}: key {_DATASETS!r} is no list of texts")
    if not isinstance(chunk_size, int) or chunk_size < 0:
        raise FormatError(f"{path}: key {_CHUNK_SIZE!r} is {chunk_size!r}, no size")
    entries = {}
    for tensor in file.tensors.values():
        name, dot, kind = tensor.name.rpartition(".")
        if dot + kind not in (_SUMS, _COUNTS):
            raise FormatError(f"{path}: tensor {tensor.name!r} is neither sums nor counts: no importance matrix")
        if tensor.type != "f32":
            raise FormatError(f"{path}: tensor {tensor.name!r} is of type {tensor.type}, expected f32")
        other = name + (_COUNTS if dot + kind == _SUMS else _SUMS)
        if other not in file.tensors:
            raise FormatError(f"{path}: {tensor.name!r} has no {other!r} with it")
        if dot + kind == _SUMS:
            entries[name] = _entry(path, name, file.f32(tensor.name), file.f32(other))
    if not entries:
        raise FormatError(f"{path}: the importance matrix is empty")
    return ImportanceMatrix(entries, tuple(datasets), chunk_size)


def _entry(path: Path, name: str, sums: NDArray[np.float32], counts: NDArray[np.float32]) -> ColumnSums:
    if counts.size != 1:
        raise FormatError(f"{path}: {name} has {counts.size} counts: this is of a mixture of experts")
    count = float(counts.flat[0])
    if not (0 <= count < 2**63):  # also if it is no number
        raise FormatError(f"{path}: {name} counts {count} rows")
    return ColumnSums(_checked(path, name, sums), round(count))


def _checked(path: Path, name: str, sums: NDArray[Any]) -> NDArray[np.float64]:
    values = sums.reshape(-1).astype(np.float64)
    if not np.isfinite(values).all() or (values < 0).any():
        raise FormatError(f"{path}: {name} holds sums of squares that are negative, infinite or not a number")
    return values


def _read_old(path: Path) -> ImportanceMatrix:
    """The form before GGUF: n, then n times (name, calls, mean squares times calls), calls in all, dataset."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise FormatError(f"{path} cannot be read: {e.strerror or e}") from e
    at = 0

    def take(n: int) -> bytes:
        nonlocal at
        if n < 0 or n > len(data) - at:
            raise FormatError(f"{path}: this is no importance matrix, or a truncated one (byte {at} of {len(data)})")
        at += n
        return data[at - n : at]

    def number() -> int:
        value: int = struct.unpack("<i", take(4))[0]
        return value

    n_entries = number()
    if not 0 < n_entries <= min(_MAX_OLD_ENTRIES, len(data) // 16):
        raise FormatError(f"{path}: this is no importance matrix: neither GGUF nor llama.cpp's older form")
    entries: dict[str, ColumnSums] = {}
    for _ in range(n_entries):
        if (length := number()) > _MAX_OLD_NAME:
            raise FormatError(f"{path}: this is no importance matrix: a name of {length} bytes")
        name = take(length).decode(errors="replace")
        calls, n_values = number(), number()
        if calls < 0 or n_values < 1:
            raise FormatError(f"{path}: {name} has {n_values} values of {calls} calls")
        sums = _checked(path, name, np.frombuffer(take(4 * n_values), "<f4"))
        if name in entries:
            raise FormatError(f"{path}: {name} occurs twice")
        # without calls the file holds the mean squares themselves
        entries[name] = ColumnSums(sums, calls or 1)
    datasets: tuple[str, ...] = ()
    if at < len(data):
        number()
        datasets = (take(number()).decode(errors="replace"),) if at < len(data) else ()
    return ImportanceMatrix(entries, datasets, 0)
