"""safetensors files of any types, and checkpoints with other tensors in them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import factories
import numpy as np

NUMPY = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I8": "i1", "I32": "<i4", "I64": "<i8"}

Stored = tuple[str, np.ndarray]
"""(safetensors' dtype, the values; of BF16 their bits as uint16)."""


def write(path: Path, tensors: Mapping[str, Stored]) -> Path:
    """A safetensors file."""
    header, offset, blobs = {}, 0, []
    for name, (dtype, values) in tensors.items():
        blobs.append(np.ascontiguousarray(values, NUMPY[dtype]).tobytes())
        end = offset + len(blobs[-1])
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))
    return path


def read(path: Path) -> dict[str, Stored]:
    """All tensors of a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first = start + entry["data_offsets"][0]
            values = np.frombuffer(data, NUMPY[entry["dtype"]], math.prod(entry["shape"]), first)
            tensors[name] = entry["dtype"], values.reshape(entry["shape"])
    return tensors


def f32(stored: Stored) -> np.ndarray:
    """The values as float32."""
    dtype, values = stored
    if dtype == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def rewrite(checkpoint: Path, out_dir: Path, change) -> Path:
    """A checkpoint of one file with other tensors: change(name -> Stored) -> the new ones."""
    out_dir.mkdir(parents=True, exist_ok=True)
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (out_dir / file.name).write_bytes(file.read_bytes())
    write(out_dir / "model.safetensors", change(read(checkpoint / "model.safetensors")))
    return out_dir


def plain(values: np.ndarray, dtype: str = "F32") -> Stored:
    """float32 values, stored as a type."""
    return dtype, factories.STORED[dtype](values)
