"""What the name of a GGUF file says: `<base>-<TYPE>.gguf`, of a split file `<base>-<TYPE>-00001-of-00003.gguf`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

__all__ = ["IMATRIX_PREFIX", "LORA_SUFFIX", "MMPROJ_PREFIX", "FileName", "is_text_name", "parse_file_name", "shards_of"]

MMPROJ_PREFIX = "mmproj-"
IMATRIX_PREFIX = "imatrix-"
LORA_SUFFIX = "-lora"
"""llama.cpp's, in any case, of files such as `NAME-F16-LoRA.gguf`."""

_TYPE = re.compile(r"[-.](F32|F16|BF16|I?Q\d\w*|TQ\d\w*|MXFP4\w*)$", re.IGNORECASE)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})$", re.IGNORECASE)
_NO_TEXT = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")  # llama.cpp's gguf_filename_is_model


@dataclass(frozen=True)
class FileName:
    """The parts of a file's name."""

    base: str
    """Without folder, `mmproj-`, type, shard and `.gguf`."""
    type: str | None
    """Upper case, or None if the name says none."""
    shard: int = 1
    n_shards: int = 1


def parse_file_name(path: str | PurePath) -> FileName:
    """Take the name of a GGUF file apart; every name has parts."""
    name = PurePath(path).name
    stem = name[: -len(".gguf")] if name.lower().endswith(".gguf") else name
    shard, n_shards = 1, 1
    if match := _SHARD.search(stem):
        shard, n_shards, stem = int(match[1]), int(match[2]), stem[: match.start()]
    kind = _TYPE.search(stem)
    base = (stem[: kind.start()] if kind else stem).removeprefix(MMPROJ_PREFIX)
    return FileName(base, kind[1].upper() if kind else None, shard, n_shards)


def is_text_name(path: str | PurePath) -> bool:
    """Whether a path names a text model, or the first file of one: llama.cpp's rule."""
    name = PurePath(path).name
    return name.endswith(".gguf") and not any(w in name for w in _NO_TEXT) and parse_file_name(name).shard == 1


def shards_of(first: str, names: Iterable[str]) -> tuple[str, ...]:
    """All files of a split model, in order; of one that is not split, the file itself.

    Args:
        first: path of its first file.
        names: paths of the files that there are. What is missing there is not in the result.
    """
    parts = parse_file_name(first)
    if parts.n_shards == 1:
        return (first,)
    there = set(names)
    head = first[: -len("-00001-of-00001.gguf")]
    all_of_them = (f"{head}-{i:05}-of-{parts.n_shards:05}.gguf" for i in range(1, parts.n_shards + 1))
    return tuple(name for name in all_of_them if name in there)
