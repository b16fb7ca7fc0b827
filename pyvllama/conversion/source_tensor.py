"""Tensors of a checkpoint that are read row by row, when they are asked for.

Plain reads of row ranges: what is not asked for takes no memory, and a file cut short meanwhile is an error and no
SIGBUS.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.conversion.transforms import Index
from pyvllama.errors import CheckpointError

__all__ = [
    "DTYPES",
    "INTEGERS",
    "SourceTensor",
    "Tensor",
    "computed_rows",
    "from_f32",
    "gather_rows",
    "read_rows",
    "to_f32",
]

DTYPES = {"F32": ("f32", "<f4"), "F16": ("f16", "<f2"), "BF16": ("bf16", "<u2")}
"""safetensors' dtype -> (ggml's name, NumPy's; bfloat16 as its 16 bits)."""

INTEGERS = {"U8": ("u8", "u1"), "I8": ("i8", "i1")}
"""Same, of the parts of quantized tensors."""


@dataclass(frozen=True)
class Tensor(ABC):
    """A tensor that is read row by row, when it is asked for."""

    name: str
    """As the file spells it."""
    path: Path
    """The file, or the first of them; for messages."""
    type: str
    """'f32', 'f16' or 'bf16'; 'u8' or 'i8' only in the parts of quantized tensors."""
    shape: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """First dimension; a vector or a scalar is one row."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def n_per_row(self) -> int:
        """Elements behind the first dimension."""
        return math.prod(self.shape) // max(1, self.n_rows)

    @abstractmethod
    def rows(self, index: Index) -> NDArray[Any]:
        """Read rows: [len(index), n_per_row] in the file's own type (bfloat16 as uint16).

        Raises:
            CheckpointError: the file cannot be read any more.
        """


@dataclass(frozen=True)
class SourceTensor(Tensor):
    """A tensor whose values lie in one piece, row after row, in a file."""

    offset: int
    """Bytes from the start of the file."""

    def rows(self, index: Index) -> NDArray[Any]:
        """See `Tensor.rows`."""
        return gather_rows(index, self.read)

    def read(self, first: int, count: int) -> NDArray[Any]:
        """Rows that follow one another: [count, n_per_row], as `rows` gives them."""
        dtype = np.dtype(_NUMPY[self.type])
        return read_rows(self, self.offset, self.n_per_row * dtype.itemsize, first, count).view(dtype)


def gather_rows(index: Index, read: Callable[[int, int], NDArray[Any]]) -> NDArray[Any]:
    """Rows in any order by reads of rows that follow one another.

    Args:
        index: the rows; those that lie near one another are read together.
        read: called with the first row and how many.
    """
    first, last = int(index.min()), int(index.max())
    if last - first < 2 * len(index) + 64:
        block = read(first, last - first + 1)
        if len(index) == len(block) and bool((index == np.arange(first, last + 1)).all()):
            return block
        return np.ascontiguousarray(block[index - first])
    return np.concatenate([read(int(i), 1) for i in index])


def read_rows(tensor: Tensor, offset: int, row_bytes: int, first: int, count: int) -> NDArray[np.uint8]:
    """Rows that follow one another, as bytes: uint8 [count, row_bytes].

    Args:
        tensor: its file is read; for messages, too.
        offset: of its first row, in bytes from the start of the file.
        row_bytes: of a row.
        first, count: which rows.

    Raises:
        CheckpointError: the file cannot be read any more.
    """
    try:
        with tensor.path.open("rb") as f:
            f.seek(offset + first * row_bytes)
            data = np.fromfile(f, dtype=np.uint8, count=count * row_bytes)
    except OSError as e:
        raise CheckpointError(f"{tensor.path}: {tensor.name} cannot be read: {e.strerror or e}") from e
    if data.size != count * row_bytes:
        raise CheckpointError(f"{tensor.path}: the file ends inside {tensor.name}; it was complete a moment ago")
    return data.reshape(count, row_bytes)


_NUMPY = dict((*DTYPES.values(), *INTEGERS.values()))


_PIECE_ELEMENTS = 1 << 21
"""Rows that are computed from others are computed in pieces of about this many elements (8 MiB as float32)."""


def computed_rows(
    compute: Callable[[Index], NDArray[np.float32]], index: Index, n_per_row: int, kind: str
) -> NDArray[Any]:
    """Rows that are computed in float32, as rows of a type: [len(index), n_per_row].

    Args:
        compute: rows -> float32 [rows, n_per_row]; called for some at a time, so that what it needs beside stays small.
        index: the rows.
        n_per_row: elements of a row.
        kind: see `from_f32`.
    """
    result = np.empty((len(index), n_per_row), dtype=_NUMPY[kind])
    step = max(1, _PIECE_ELEMENTS // max(1, n_per_row))
    for i in range(0, len(index), step):
        result[i : i + step] = from_f32(compute(index[i : i + step]), kind)
    return result


def to_f32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Rows as `Tensor.rows` gives them (bfloat16 as uint16) as float32, exactly."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def from_f32(values: NDArray[np.float32], kind: str) -> NDArray[Any]:
    """float32 as rows of a type: rounded to nearest, ties to even, as PyTorch and IEEE 754 do.

    Args:
        values: of any shape.
        kind: 'f32', 'f16' or 'bf16' (its 16 bits, as uint16). What is too large becomes infinite.
    """
    if kind == "f32":
        return values
    if kind == "f16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16)
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    # Adding could carry a NaN's bits into the sign.
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)
