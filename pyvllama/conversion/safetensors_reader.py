"""A safetensors file, in NumPy alone: its header now, its values when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pyvllama.conversion.source_tensor import DTYPES, INTEGERS, SourceTensor
from pyvllama.conversion.text_files import json_object
from pyvllama.errors import CheckpointError

__all__ = ["read_safetensors", "unsupported_type"]

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
_STORED = DTYPES | INTEGERS


def read_safetensors(path: Path) -> Iterator[SourceTensor]:
    """The tensors of a file, every offset checked against the file's size.

    Raises:
        CheckpointError: the file is damaged or truncated, or a tensor is of a type that cannot be converted.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            prefix = f.read(8)
            n = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or n > min(size - 8, _MAX_HEADER_BYTES):
                raise CheckpointError(f"{path} is no safetensors file, or truncated: its header does not fit into it")
            header = json_object(path, f.read(n))
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror or e}") from e
    start = 8 + n
    for name, entry in header.items():
        if name != "__metadata__":
            yield _entry(path, name, entry, start, size)


def _entry(path: Path, name: str, entry: Any, start: int, size: int) -> SourceTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        valid = all(type(x) is int and x >= 0 for x in (*shape, begin, end)) and isinstance(dtype, str)
    except (TypeError, KeyError, ValueError):
        valid = False
    if not valid:
        raise CheckpointError(f"{path}: the header's entry of {name!r} is damaged")
    if dtype not in _STORED:
        raise unsupported_type(path, name, dtype)
    ggml_type, numpy_type = _STORED[dtype]
    if end - begin != math.prod(shape) * np.dtype(numpy_type).itemsize:
        raise CheckpointError(f"{path}: {name} of shape {list(shape)} does not fill its {end - begin} bytes")
    if start + end > size:
        raise CheckpointError(
            f"{path} is truncated: {name} ends at byte {start + end}, but the file has {size} (interrupted download?)"
        )
    return SourceTensor(name, path, ggml_type, shape, start + begin)


def unsupported_type(path: Path, name: str, dtype: str) -> CheckpointError:
    """The error for a tensor whose values cannot be used.

    Args:
        path: its file.
        name: as the file spells it.
        dtype: as the file spells it.
    """
    return CheckpointError(
        f"{path}: {name} is of type {dtype} (an already quantized checkpoint?); supported are {', '.join(DTYPES)}, "
        "and what bitsandbytes quantizes: convert from the original weights"
    )
