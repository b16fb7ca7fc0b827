"""A tensor of a GGUF file as a source of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from pyvllama.conversion.source_tensor import Tensor, gather_rows, read_rows
from pyvllama.conversion.transforms import Index
from pyvllama.gguf_file import GGUFFile

__all__ = ["GGUFTensor", "gguf_tensor"]

_NUMPY = {"f32": "<f4", "f16": "<f2", "bf16": "<u2"}


@dataclass(frozen=True)
class GGUFTensor(Tensor):
    """Its type may be any of ggml's; a row of a quantized one is bytes."""

    file: GGUFFile

    def rows(self, index: Index) -> NDArray[Any]:
        """[len(index), n_per_row] of floats (bfloat16 as uint16); of a quantized type uint8 [len(index), row bytes].

        Read and not mapped: what has been used takes no memory.

        Raises:
            CheckpointError: the file cannot be read any more.
        """
        info = self.file.tensors[self.name]
        row_bytes = info.n_bytes // self.n_rows
        data = gather_rows(index, lambda first, count: read_rows(self, info.offset, row_bytes, first, count))
        dtype = _NUMPY.get(self.type)
        return data.view(dtype) if dtype else data


def gguf_tensor(file: GGUFFile, name: str) -> GGUFTensor:
    """A tensor of a file; the file's shard is named in messages."""
    info = file.tensors[name]
    return GGUFTensor(name, file.paths[info.part], info.type, info.shape, file)
