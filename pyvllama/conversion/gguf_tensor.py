"""A tensor of a GGUF file as a source of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.conversion.checkpoint import Tensor
from pyvllama.conversion.transforms import Index
from pyvllama.errors import CheckpointError
from pyvllama.gguf_file import GGUFFile

__all__ = ["GGUFTensor", "gguf_tensor"]

_NUMPY = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


@dataclass(frozen=True)
class GGUFTensor(Tensor):
    """Rows along the fastest dimension, as GGUF quantizes them; of quantized types the bytes."""

    file: GGUFFile

    @property
    def n_rows(self) -> int:
        """All but the fastest dimension."""
        return self.file.tensors[self.name].n_rows

    @property
    def n_per_row(self) -> int:
        """The fastest dimension."""
        return self.shape[-1]

    def rows(self, index: Index) -> NDArray[Any]:
        """[len(index), n_per_row] of floats (bfloat16 as uint16); of a quantized type uint8 [len(index), row bytes].

        Read and not mapped: what has been used takes no memory.

        Raises:
            CheckpointError: the file cannot be read any more.
        """
        first, last = int(index.min()), int(index.max())
        if last - first < 2 * len(index) + 64:
            block = self._read(first, last - first + 1)
            consecutive = len(index) == len(block) and bool((index == np.arange(first, last + 1)).all())
            data = block if consecutive else np.ascontiguousarray(block[index - first])
        else:
            data = np.concatenate([self._read(int(i), 1) for i in index])
        dtype = _NUMPY.get(self.type)
        return data.view(dtype) if dtype else data

    def _read(self, first: int, count: int) -> NDArray[np.uint8]:
        info = self.file.tensors[self.name]
        row_bytes = info.n_bytes // info.n_rows
        try:
            with self.path.open("rb") as f:
                f.seek(info.offset + first * row_bytes)
                data = np.fromfile(f, dtype=np.uint8, count=count * row_bytes)
        except OSError as e:
            raise CheckpointError(f"{self.path}: {self.name} cannot be read: {e.strerror or e}") from e
        if data.size != count * row_bytes:
            raise CheckpointError(f"{self.path}: the file ends inside {self.name}; it was complete a moment ago")
        return data.reshape(count, row_bytes)


def gguf_tensor(file: GGUFFile, name: str) -> GGUFTensor:
    """A tensor of a file; the file's shard is named in messages."""
    info = file.tensors[name]
    return GGUFTensor(name, file.paths[info.part], info.type, info.shape, file)
