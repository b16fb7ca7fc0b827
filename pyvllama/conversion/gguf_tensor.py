"""A tensor of a GGUF file as a source of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.conversion.checkpoint import Tensor
from pyvllama.conversion.transforms import Index
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
        """[len(index), n_per_row] of floats (bfloat16 as uint16); of a quantized type uint8 [len(index), row bytes]."""
        raw = self.file.raw(self.name)
        first, last = int(index.min()), int(index.max())
        consecutive = len(index) == last - first + 1 and bool((index == np.arange(first, last + 1)).all())
        data: NDArray[Any] = np.ascontiguousarray(raw[first : last + 1] if consecutive else raw[index])
        dtype = _NUMPY.get(self.type)
        return data.view(dtype) if dtype else data


def gguf_tensor(file: GGUFFile, name: str) -> GGUFTensor:
    """A tensor of a file; the file's shard is named in messages."""
    info = file.tensors[name]
    return GGUFTensor(name, file.paths[info.part], info.type, info.shape, file)
