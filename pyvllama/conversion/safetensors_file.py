"""Write safetensors files: as a stream, flushed to the disk, and read again.

A file is the length of its header (u64), the header (JSON: name -> dtype, shape, place) and the tensors, without gaps.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pyvllama.conversion.checkpoint import DTYPES, Checkpoint, SourceTensor
from pyvllama.conversion.output import Meter, OutputTensor
from pyvllama.conversion.writer import file_crc, writing
from pyvllama.errors import FormatError

__all__ = ["INDEX_NAME", "arrange_files", "header_bytes", "index_json", "verify_tensors", "write_safetensors"]

INDEX_NAME = "model.safetensors.index.json"
_HEADER_ALIGNMENT = 8
_DTYPE_NAMES = {ggml: name for name, (ggml, _) in DTYPES.items()}

Files = Mapping[str, Sequence[OutputTensor]]
"""File name -> its tensors, in order."""


def arrange_files(tensors: Sequence[OutputTensor], max_bytes: int) -> dict[str, list[OutputTensor]]:
    """Cut tensors into files of at most `max_bytes` (or one tensor), named as transformers names them.

    Within a file the wider types stand in front, so that every tensor begins at a multiple of its element's size.
    """
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for t in tensors:
        if shards[-1] and size + t.spec.n_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(t)
        size += t.spec.n_bytes
    count = len(shards)
    names = (
        ["model.safetensors"] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    )
    return {name: sorted(shard, key=lambda t: t.spec.type != "f32") for name, shard in zip(names, shards, strict=True)}


def index_json(files: Files) -> dict[str, object]:
    """What `model.safetensors.index.json` says of them."""
    weight_map = {t.spec.name: name for name, tensors in files.items() for t in tensors}
    total = sum(t.spec.n_bytes for tensors in files.values() for t in tensors)
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def header_bytes(tensors: Sequence[OutputTensor]) -> bytes:
    """All that stands before the tensors."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers refuses files that do not say it
    at = 0
    for t in tensors:
        end = at + t.spec.n_bytes
        header[t.spec.name] = {
            "dtype": _DTYPE_NAMES[t.spec.type],
            "shape": list(t.spec.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_safetensors(path: Path, tensors: Sequence[OutputTensor], n_threads: int, meter: Meter) -> dict[str, int]:
    """Write a whole file and flush it to the disk.

    Args:
        path: the file, overwritten if it exists.
        tensors: of types f32, f16 and bf16, in the order of the file.
        n_threads: for converting.
        meter: is told of every slice.

    Returns:
        CRC-32 of each tensor's data.

    Raises:
        CheckpointError: the source holds numbers that are not finite.
        ConfigError: the disk is full or the file cannot be written.
        Cancelled: the meter says so.
    """
    checksums: dict[str, int] = {}
    with writing(path), path.open("wb") as f:
        f.write(header_bytes(tensors))
        for t in tensors:
            crc, n_bytes = 0, 0
            for part in t.slices(n_threads):
                view = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
                f.write(view.data)
                crc, n_bytes = zlib.crc32(view.data, crc), n_bytes + view.nbytes
                meter.add(view.nbytes, t.spec.name)
            if n_bytes != t.spec.n_bytes:
                raise RuntimeError(f"{t.spec.name}: {n_bytes} bytes of data where {t.spec.n_bytes} were announced")
            checksums[t.spec.name] = crc
        f.flush()
        os.fsync(f.fileno())
    return checksums


def verify_tensors(checkpoint: Checkpoint, files: Files, checksums: Mapping[str, int]) -> None:
    """Compare a checkpoint's tensors with what was meant to be written, down to every byte.

    Raises:
        FormatError: they differ (a failing disk, or a mistake of ours).
    """
    meant = {t.spec.name: (name, t.spec) for name, tensors in files.items() for t in tensors}
    found = {t.name: t for t in checkpoint.tensors.values() if isinstance(t, SourceTensor)}
    if {t.name: (t.path.name, t.shape, t.type) for t in found.values()} != {
        name: (file, spec.shape, spec.type) for name, (file, spec) in meant.items()
    }:
        raise FormatError(f"{checkpoint.path}: the tensors read back are not those written")
    for name, (file, spec) in meant.items():
        with (checkpoint.path / file).open("rb") as f:
            if file_crc(f, found[name].offset, spec.n_bytes) != checksums[name]:
                raise FormatError(f"{file}: {name} read back is not what was written: is the disk failing?")
