"""Tensors that are put together from others while they are read.

Parts of a model that was cut for several GPUs, rows in another order, tables that another layout computes at run time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pyvllama.conversion.checkpoint import Tensor
from pyvllama.conversion.transforms import Index
from pyvllama.errors import CheckpointError

__all__ = ["Columns", "Reordered", "Stacked", "TileTable", "join", "reshaped", "tile_table"]

T = TypeVar("T", bound=Tensor)


@dataclass(frozen=True)
class Stacked(Tensor):
    """Parts one below the other: their rows follow one another."""

    parts: tuple[Tensor, ...]

    def rows(self, index: Index) -> NDArray[Any]:
        """See `Tensor.rows`."""
        blocks = []
        order = []
        first = 0
        for part in self.parts:
            here = np.flatnonzero((index >= first) & (index < first + part.shape[0]))
            if len(here):
                blocks.append(part.rows(index[here] - first))
                order.append(here)
            first += part.shape[0]
        if len(blocks) == 1:
            return blocks[0]
        result = np.empty((len(index), self.n_per_row), dtype=blocks[0].dtype)
        for here, block in zip(order, blocks, strict=True):
            result[here] = block
        return result


@dataclass(frozen=True)
class Columns(Tensor):
    """Parts side by side: each row is made of the parts' rows."""

    parts: tuple[Tensor, ...]

    def rows(self, index: Index) -> NDArray[Any]:
        """See `Tensor.rows`."""
        return np.concatenate([part.rows(index) for part in self.parts], axis=1)


@dataclass(frozen=True)
class Reordered(Tensor):
    """Row i is row `order[i]` of the source."""

    source: Tensor
    order: Index

    def rows(self, index: Index) -> NDArray[Any]:
        """See `Tensor.rows`."""
        return self.source.rows(self.order[index])


@dataclass(frozen=True)
class TileTable(Tensor):
    """A row for each grid of tiles, made from an embedding [max_num_tiles, max_num_tiles, ...] by row and column.

    Row 0 (no picture) is zero. Row i holds the embeddings of the tiles of grid i, row by row, then zeros for the tiles
    that this grid does not have.
    """

    source: Tensor
    """Seen as [max_num_tiles * max_num_tiles, elements of a tile]."""
    grids: tuple[tuple[int, int], ...]
    max_num_tiles: int

    def rows(self, index: Index) -> NDArray[Any]:
        """See `Tensor.rows`."""
        return np.stack([self._row(int(i)) for i in index])

    def _row(self, i: int) -> NDArray[Any]:
        rows, cols = self.grids[i - 1] if i else (1, 1)
        tiles = np.add.outer(np.arange(rows) * self.max_num_tiles, np.arange(cols)).reshape(-1)
        values = self.source.rows(tiles)
        row = np.zeros((self.max_num_tiles, values.shape[1]), dtype=values.dtype)
        if i:
            row[: len(tiles)] = values
        return row.reshape(-1)


def join(parts: Sequence[Tensor], axis: int) -> Tensor:
    """One tensor from its parts, concatenated along axis 0 or 1.

    Raises:
        CheckpointError: the parts do not fit together.
    """
    first = parts[0]
    if len(parts) == 1:
        return first
    rest = {(p.type, len(p.shape), p.shape[:axis], p.shape[axis + 1 :]) for p in parts}
    if len(rest) > 1 or len(first.shape) <= axis:
        shapes = ", ".join(f"{p.type} {list(p.shape)} in {p.path.name}" for p in parts)
        raise CheckpointError(f"the parts of {first.name} do not fit together: {shapes}")
    total = sum(p.shape[axis] for p in parts)
    shape = (*first.shape[:axis], total, *first.shape[axis + 1 :])
    kind = Stacked if axis == 0 and len(shape) > 1 else Columns  # a vector is one row
    return kind(first.name, first.path, first.type, shape, tuple(parts))


def reshaped(tensor: T, shape: tuple[int, ...]) -> T:
    """The same rows under another shape; the first dimension stays."""
    return replace(tensor, shape=shape)


def tile_table(tensor: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
    """The table [len(grids) + 1, n_tiles * elements of a tile] of an embedding [n_tiles, n_tiles, ...].

    Args:
        tensor: by row and column of the tile; a tile's elements may be of any shape.
        grids: (rows, cols) in the order of their ids, which start at 1.

    Raises:
        CheckpointError: the embedding has not two equal dimensions in front, or is in parts.
    """
    shape = tensor.shape
    if len(shape) < 3 or shape[0] != shape[1] or isinstance(tensor, Stacked | Columns):
        raise CheckpointError(f"{tensor.path}: {tensor.name} has the shape {list(shape)}; expected [tiles, tiles, ...]")
    n_tiles, n_elements = shape[0], int(np.prod(shape[2:], dtype=np.int64))
    flat = reshaped(tensor, (n_tiles * n_tiles, n_elements))
    table = (len(grids) + 1, n_tiles * n_elements)
    return TileTable(tensor.name, tensor.path, tensor.type, table, flat, tuple(grids), n_tiles)
