"""A PyTorch checkpoint file (`torch.save` since 1.6: a zip archive) as tensors that are read when they are needed.

The archive stores a small pickle and every storage as an uncompressed member, so a tensor's values lie in one piece at
a known place of the file. PyTorch is not needed for it.
"""

from __future__ import annotations

import math
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pyvllama.conversion.source_tensor import DTYPES, SourceTensor
from pyvllama.conversion.state_dict import StoredTensor, read_state_dict
from pyvllama.errors import CheckpointError

__all__ = ["read_torch_file"]

_MAX_PICKLE_BYTES = 64 << 20
"""A state dict of some thousand tensors takes under one MiB."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, ..., lengths of the name and of the extra field
_NOT_TENSORS = "._extra_state"
"""Suffix of entries that modules keep for themselves."""


def read_torch_file(path: Path) -> dict[str, SourceTensor]:
    """The tensors of a state dict's file, by their own names; no values are read.

    Raises:
        CheckpointError: the file is damaged, truncated or in PyTorch's format before 1.6, its pickle names what a
            state dict does not need, or a tensor is of a type that cannot be converted.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise CheckpointError(f"{path}: two members of the archive bear the same name")
            prefix, pickle = _pickle(archive, members, path)
        size = path.stat().st_size
        with path.open("rb") as f:
            starts = {
                name[len(prefix) :]: (_data_start(f, info, size, path), info.file_size)
                for name, info in members.items()
                if name.startswith(prefix)
            }
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, struct.error) as e:
        raise CheckpointError(
            f"{path} is no PyTorch checkpoint, or truncated (interrupted download?): {e}; "
            "files of PyTorch before 1.6 have to be loaded and saved again with a newer one"
        ) from e
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror or e}") from e
    tensors = {}
    for name, value in read_state_dict(pickle, str(path)).items():
        if name.endswith(_NOT_TENSORS):
            continue
        if not isinstance(value, StoredTensor):
            raise CheckpointError(f"{path}: {name} is of type {type(value).__name__}, not a tensor")
        tensors[name] = _tensor(path, name, value, starts)
    return tensors


def _pickle(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], path: Path) -> tuple[str, bytes]:
    """The archive's folder, with a slash at the end, and the pickle in it."""
    found = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(found) != 1:
        raise CheckpointError(f"{path} is a zip archive, but no PyTorch checkpoint: it holds {len(found)} data.pkl")
    prefix = found[0].removesuffix("data.pkl")
    order = members.get(prefix + "byteorder")
    if order is not None and order.file_size < 16 and archive.read(order) != b"little":
        raise CheckpointError(f"{path} was written on a big-endian machine; only little-endian files are read")
    if members[found[0]].file_size > _MAX_PICKLE_BYTES:
        raise CheckpointError(f"{path}: its data.pkl of {members[found[0]].file_size} bytes is no mere state dict")
    return prefix, archive.read(found[0])


def _data_start(f: BinaryIO, info: zipfile.ZipInfo, size: int, path: Path) -> int:
    """Where a member's data begins in the file; -1 for a compressed one."""
    if info.compress_type != zipfile.ZIP_STORED:
        return -1
    f.seek(info.header_offset)
    signature, n_name, n_extra = _LOCAL_HEADER.unpack(f.read(_LOCAL_HEADER.size))
    start: int = info.header_offset + _LOCAL_HEADER.size + n_name + n_extra
    if signature != b"PK\x03\x04" or start + info.file_size > size:
        raise CheckpointError(f"{path} is truncated or damaged at {info.filename}")
    return start


def _tensor(path: Path, name: str, stored: StoredTensor, starts: dict[str, tuple[int, int]]) -> SourceTensor:
    storage = stored.storage
    if storage.dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: {name} is of type {storage.dtype} (an already quantized checkpoint?); "
            f"supported are {', '.join(DTYPES)}: convert from the original weights"
        )
    ggml_type, numpy_type = DTYPES[storage.dtype]
    item_bytes = np.dtype(numpy_type).itemsize
    start, n_bytes = starts.get(f"data/{storage.key}", (-1, 0))
    if start < 0:
        raise CheckpointError(f"{path}: the values of {name} (data/{storage.key}) are missing, or compressed")
    if not _is_contiguous(stored):
        raise CheckpointError(f"{path}: {name} is not stored in order (a transposed view?); save .contiguous() tensors")
    if (stored.offset + math.prod(stored.shape)) * item_bytes > n_bytes:
        raise CheckpointError(f"{path}: {name} of shape {list(stored.shape)} reaches beyond its {n_bytes} stored bytes")
    return SourceTensor(name, path, ggml_type, stored.shape, start + stored.offset * item_bytes)


def _is_contiguous(stored: StoredTensor) -> bool:
    expected = 1
    for n, stride in zip(reversed(stored.shape), reversed(stored.strides), strict=True):
        if n != 1 and stride != expected:
            return False
        expected *= n
    return True
