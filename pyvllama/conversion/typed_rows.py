"""Rows of a source tensor as rows of a file's type: gathered, checked, quantized, a slice at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.conversion.checkpoint import Tensor, to_f32
from pyvllama.conversion.transforms import Index
from pyvllama.conversion.writer import TensorSpec
from pyvllama.errors import CheckpointError

__all__ = ["Slices", "typed_rows"]

Slices = Callable[[int], Iterator[NDArray[Any]]]
"""Called with a number of threads; gives a tensor's data, piece by piece and in order, as any dtype in C order."""

_SLICE_ELEMENTS = 1 << 24
"""Rows are read, rearranged and quantized in slices of about this many elements (64 MiB as float32)."""

_F16_MAX = 65504.0


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


def _convert(
    source: Tensor, rows: NDArray[Any], spec: TensorSpec, importance: NDArray[np.float32] | None, n_threads: int
) -> NDArray[Any]:
    where = f"{source.path.name}: {source.name}"
    values = to_f32(rows)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{where} holds numbers that are infinite or not a number: the checkpoint is damaged")
    if spec.type == source.type:
        return rows
    if spec.type == "f32":
        return values
    if spec.type == "f16" and float(np.abs(values).max()) > _F16_MAX:
        raise CheckpointError(f"{where} holds numbers beyond {_F16_MAX:.0f}, the largest of F16: choose BF16")
    from pyvllama._runtime import native  # noqa: PLC0415  (loads llama.cpp; validating a checkpoint needs none)

    quantized: NDArray[Any] = native.quantize(
        values.reshape(-1, spec.shape[-1]), spec.type, imatrix=importance, n_threads=n_threads
    )
    return quantized
