"""A large GGUF file as several: llama.cpp's shards, `NAME-00001-of-00003.gguf`.

The first shard has all keys. Each has `split.no`, `split.count` and `split.tensors.count`; whoever opens the first
finds the others by their names (llama.cpp's src/llama-model-loader.cpp, tools/gguf-split).
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from pyvllama.conversion.output import OutputFile, OutputTensor
from pyvllama.errors import ConfigError

__all__ = ["parse_size", "shard_path", "split_file"]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_MAX_SHARDS = 99_999


def parse_size(text: str) -> int:
    """Bytes from '2G', '500M' or '50GB', in powers of ten as the Hub and gguf-split count.

    Raises:
        ConfigError: it is no size.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (n_bytes := int(float(match[1]) * _UNITS[match[2].upper()])) < 1:
        raise ConfigError(f"{text!r} is no size; expected a number with M or G behind it, such as 2G")
    return n_bytes


def shard_path(path: Path, no: int, count: int) -> Path:
    """The name of shard `no` (from 0) of a file that would be called `path`."""
    return path.with_name(f"{path.stem}-{no + 1:05d}-of-{count:05d}{path.suffix}")


def split_file(file: OutputFile, max_bytes: int) -> list[OutputFile]:
    """The shards of a file, each with at most `max_bytes` of tensors (or one tensor); the file itself if one is enough.

    Raises:
        ConfigError: there would be too many.
    """
    shards: list[list[OutputTensor]] = [[]]
    size = 0
    for t in file.tensors:
        if shards[-1] and size + t.spec.n_bytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(t)
        size += t.spec.n_bytes
    if len(shards) == 1:
        return [file]
    if len(shards) > _MAX_SHARDS:
        raise ConfigError(f"{file.path.name} would have {len(shards)} shards of {max_bytes} bytes; choose larger ones")
    architecture = {"general.architecture": file.metadata["general.architecture"]}
    return [
        replace(
            file,
            path=shard_path(file.path, no, len(shards)),
            metadata={
                **(architecture if no else file.metadata),
                "split.no": ("u16", no),
                "split.count": ("u16", len(shards)),
                "split.tensors.count": ("i32", len(file.tensors)),
            },
            tensors=tuple(tensors),
        )
        for no, tensors in enumerate(shards)
    ]
