"""Rows of a source tensor as rows of a file's type: gathered, checked, quantized, a slice at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.conversion.checkpoint import Tensor
from pyvllama.conversion.transforms import Index
from pyvllama.conversion.writer import TensorSpec
from pyvllama.errors import CheckpointError

__all__ = ["Slices", "constant", "typed_rows"]

Slices = Callable[[int], Iterator[NDArray[Any]]]
"""Called with a number of threads; gives a tensor's data, piece by piece and in order, as any dtype in C order."""

_SLICE_ELEMENTS = 1 << 24
"""Rows are read, rearranged and quantized in slices of about this many elements (64 MiB as float32)."""

_EXPONENTS = {"f32": (np.uint32, 0x7F800000), "f16": (np.uint16, 0x7C00), "bf16": (np.uint16, 0x7F80)}
"""Bits that are all set in an infinite number and in what is no number."""


def typed_rows(source: Tensor, index: Index, spec: TensorSpec, importance: NDArray[np.float32] | None = None) -> Slices:
    """The data of a tensor whose row i is row `index[i]` of the source.

    Args:
        source: whose rows are copied where it is of the wanted type, and converted where it is not.
        index: rows of the source.
        spec: what to make of them.
        importance: float32 [n_per_row], how much each column matters; None: all the same.

    Raises:
        CheckpointError: (while iterating) numbers that are not finite or do not fit, or a file that cannot be read.
    """

    def slices(n_threads: int) -> Iterator[NDArray[Any]]:
        step = max(1, _SLICE_ELEMENTS // source.n_per_row)
        for first in range(0, len(index), step):
            yield _convert(source, source.rows(index[first : first + step]), spec, importance, n_threads)

    return slices


def constant(values: NDArray[Any]) -> Slices:
    """The data of a tensor that is no row of any source."""
    return lambda _: iter((values,))


def _convert(
    source: Tensor, rows: NDArray[Any], spec: TensorSpec, importance: NDArray[np.float32] | None, n_threads: int
) -> NDArray[Any]:
    if spec.type == source.type:
        _check_finite(source, rows)
        return rows
    from pyvllama._runtime import native  # noqa: PLC0415  (loads llama.cpp; validating a checkpoint needs none)

    n_rows = rows.shape[0] * source.n_per_row // spec.shape[-1]
    data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).reshape(n_rows, -1)
    try:
        return native.convert(data, source.type, spec.type, imatrix=importance, n_threads=n_threads)
    except ValueError as e:
        raise CheckpointError(f"{source.path.name}: {source.name} holds {e}") from e


def _check_finite(source: Tensor, rows: NDArray[Any]) -> None:
    if (exponent := _EXPONENTS.get(source.type)) is None:
        return  # quantized: copied as it is
    dtype, mask = exponent
    bits = rows.view(dtype)
    if ((bits & mask) == mask).any():
        raise CheckpointError(
            f"{source.path.name}: {source.name} holds numbers that are infinite or none: the checkpoint is damaged"
        )
