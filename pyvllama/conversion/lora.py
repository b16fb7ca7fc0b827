"""Adapters merged into a checkpoint's tensors, row by row while they are read.

What PEFT's `merge_and_unload` gives: W + scale * (B @ A) is computed in float32 and rounded to the checkpoint's own
type, after each adapter. With DoRA the sum's rows are brought to the lengths in lora_magnitude_vector. (Equal up to the
order of the additions within B @ A, which may round a value to its neighbour.) A base that bitsandbytes quantized is
not quantized again, as PEFT does: the sum keeps the type that it had before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.conversion.adapter import Adapter, Delta
from pyvllama.conversion.source_tensor import SourceTensor, Tensor, computed_rows, from_f32, to_f32
from pyvllama.conversion.text_files import listing
from pyvllama.conversion.transforms import Index
from pyvllama.errors import CheckpointError

__all__ = ["Merged", "merged"]


@dataclass(frozen=True)
class Merged(Tensor):
    """A weight with an adapter's change in it."""

    source: Tensor
    """What is changed: the base's weight, or that with other adapters merged."""
    base: Tensor
    """The base's weight, whose rows DoRA measures."""
    delta: Delta

    def rows(self, index: Index) -> NDArray[Any]:
        """See `Tensor.rows`."""
        right = self.delta.right()
        return computed_rows(lambda some: self._sum(some, right), index, self.n_per_row, self.type)

    def _sum(self, index: Index, right: NDArray[np.float32]) -> NDArray[np.float32]:
        change = (self.delta.left(index) @ right) * np.float32(self.delta.scale)
        if self.delta.is_embedding:  # PEFT rounds the change of an embedding by itself
            change = to_f32(from_f32(change, self.type))
        values = to_f32(self.source.rows(index)) + change
        if self.delta.magnitude is not None:
            # Of the base without other adapters, as the layer computed it when it was trained.
            unmerged = values if self.base is self.source else to_f32(self.base.rows(index)) + change
            lengths = np.sqrt(np.square(unmerged).sum(axis=1, keepdims=True))
            with np.errstate(divide="ignore", invalid="ignore"):
                values = values * (to_f32(self.delta.magnitude.rows(index)) / lengths)
        return values


@dataclass(frozen=True)
class _MergedBias(Tensor):
    """A bias with the bias of a lora_B in it."""

    source: Tensor
    change: SourceTensor
    scale: float

    def rows(self, index: Index) -> NDArray[Any]:
        """See `Tensor.rows`."""
        return from_f32(
            to_f32(self.source.rows(index)) + to_f32(self.change.rows(index)) * np.float32(self.scale), self.type
        )


@dataclass(frozen=True)
class _Retyped(Tensor):
    """The adapter's own tensor, in the type of the one whose place it takes (as PEFT loads it)."""

    source: Tensor

    def rows(self, index: Index) -> NDArray[Any]:
        """See `Tensor.rows`."""
        return from_f32(to_f32(self.source.rows(index)), self.type)


def merged(tensors: Mapping[str, Tensor], adapters: Sequence[Adapter], path: Path) -> dict[str, Tensor]:
    """The tensors with all adapters merged into them, one after the other.

    Args:
        tensors: canonical name -> tensor.
        adapters: at least one.
        path: the checkpoint; for messages.

    Raises:
        CheckpointError: one message with everything in an adapter that has no place in the checkpoint.
    """
    result = dict(tensors)
    bases = dict(tensors)
    for adapter in adapters:
        problems: list[str] = []
        for name, tensor in adapter.replacements.items():  # before the changes: an embedding may have both
            if (old := result.get(name)) is None:
                problems.append(f"no such tensor: {tensor.name}")
            elif _may_replace(old, tensor):
                result[name] = bases[name] = _Retyped(tensor.name, tensor.path, old.type, tensor.shape, tensor)
            else:
                problems.append(f"{tensor.name}: shape {list(tensor.shape)}, but it replaces {list(old.shape)}")
        for name, delta in adapter.deltas.items():
            if (source := result.get(name)) is None:
                problems.append(f"no such module: {delta.a.name}")
            elif len(source.shape) < 2 or (source.n_rows, source.n_per_row) != (delta.n_rows, delta.n_per_row):
                problems.append(
                    f"{delta.a.name}: for {[delta.n_rows, delta.n_per_row]}, but it is {list(source.shape)}"
                )
            else:
                result[name] = Merged(source.name, source.path, source.type, source.shape, source, bases[name], delta)
        for name, (change, scale) in adapter.bias_deltas.items():
            if (source := result.get(name)) is None or source.shape != change.shape:
                problems.append(f"no such bias: {change.name}")
            else:
                result[name] = _MergedBias(source.name, source.path, source.type, source.shape, source, change, scale)
        if problems:
            raise CheckpointError(
                f"the adapter {adapter.path} does not fit {path} (another base model?):\n{listing(problems)}"
            )
    return result


def _may_replace(old: Tensor, new: Tensor) -> bool:
    """A vocabulary may have been enlarged: a table of another number of rows."""
    if len(old.shape) == 2 and len(new.shape) == 2:
        return old.shape[1] == new.shape[1]
    return old.shape == new.shape
