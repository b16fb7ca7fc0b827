"""How much memory a pair will need, from the headers of its files alone, and which settings fit a machine."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvllama.context import KV_TYPES
from pyvllama.errors import ConfigError, FormatError
from pyvllama.gguf_file import GGML_TYPES, GGUFFile
from pyvllama.loading import DEFAULT_IMAGE_CACHE_BYTES, DEFAULT_N_CTX
from pyvllama.pair_checks import check_text
from pyvllama.types import Pair

__all__ = ["Need", "Sizes", "advice", "available_memory", "memory_need", "read_sizes"]

_PROGRAM_BYTES = 200 << 20  # Python, its packages, llama.cpp's libraries
_MARGIN = 1.05


@dataclass(frozen=True)
class Sizes:
    """What of a pair's headers decides over memory.

    Attributes:
        weights: bytes of both files' tensors.
        n_layer: self-attention layers.
        kv_row: elements of a position's keys and values in one of them.
        n_vocab, n_embd: of the text model.
        cross_row: elements of an image token's keys and values, all cross-attention layers together.
        image_tokens: of the largest picture.
        tower_row: floats a position of the picture that the vision tower holds at a time, at most.
    """

    weights: tuple[int, int]
    n_layer: int
    kv_row: int
    n_vocab: int
    n_embd: int
    cross_row: int
    image_tokens: int
    tower_row: int


@dataclass(frozen=True)
class Need:
    """Bytes by what they are for, and the settings that they are for."""

    parts: Mapping[str, int]
    n_ctx: int
    kv_type: str
    image_cache_bytes: int

    @property
    def total(self) -> int:
        """All of them, and a little more."""
        return int(sum(self.parts.values()) * _MARGIN)


def read_sizes(pair: Pair) -> Sizes:
    """From the headers of both files.

    Raises:
        FormatError: a file is damaged, or is no file of such a pair.
    """
    text, mmproj = GGUFFile(pair.text), GGUFFile(pair.mmproj)
    check_text(text)
    if mmproj.metadata.get("clip.projector_type") != "mllama":
        raise FormatError(f"{pair.mmproj}: this is no mmproj file of Llama 3.2 Vision (clip.projector_type = mllama)")
    t, v = _Keys(text), _Keys(mmproj)
    n_embd, n_head, n_head_kv = (
        t.count("llama.embedding_length"),
        t.count("llama.attention.head_count"),
        t.count("llama.attention.head_count_kv"),
    )
    head = n_embd // n_head
    kv = sum(int(text.metadata.get(f"llama.attention.{kind}_length", head)) for kind in ("key", "value"))
    patches = (v.count("clip.vision.image_size") // v.count("clip.vision.patch_size")) ** 2 + 1
    layers = mmproj.metadata.get("clip.mllama.cross_attention_layers")
    kept = mmproj.metadata.get("clip.mllama.intermediate_layers_indices")
    n_kept = len(kept) if isinstance(kept, list) else 0
    width, inner = v.count("clip.vision.embedding_length"), v.count("clip.vision.feed_forward_length")
    return Sizes(
        weights=(_n_bytes(text), _n_bytes(mmproj)),
        n_layer=t.count("llama.block_count"),
        kv_row=n_head_kv * kv,
        n_vocab=text.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in text.tensors else 0,
        n_embd=n_embd,
        cross_row=(len(layers) if isinstance(layers, list) else 0) * 2 * n_head_kv * head,
        image_tokens=v.count("clip.mllama.max_num_tiles") * patches,
        # states, norms, q, k, v and what attention makes of them; the MLP before and after its activation; the states
        # that are kept for the output; the output
        tower_row=8 * width + 2 * inner + (n_kept + 1) * width + n_embd,
    )


def memory_need(
    sizes: Sizes,
    *,
    n_ctx: int = DEFAULT_N_CTX,
    kv_type: str = "f16",
    n_ubatch: int = 512,
    image_cache_bytes: int = DEFAULT_IMAGE_CACHE_BYTES,
) -> Need:
    """An estimate, on the high side: for weights the files' sizes, as if no part of them stayed on the disk.

    Raises:
        ConfigError: an unknown type.
    """
    if kv_type not in KV_TYPES:
        raise ConfigError(f"kv_type must be one of {', '.join(KV_TYPES)}, not {kv_type!r}")
    picture = _bytes(sizes.image_tokens * sizes.cross_row, "f16")
    n_rows = min(n_ubatch, n_ctx)
    parts = {
        "text weights": sizes.weights[0],
        "mmproj weights": sizes.weights[1],
        f"context of {n_ctx} ({kv_type})": _bytes(-(-n_ctx // 256) * 256 * sizes.n_layer * sizes.kv_row, kv_type),
        "pictures (one, or the cache)": max(picture, image_cache_bytes),
        "computing text": n_rows * 4 * (sizes.n_vocab + 24 * sizes.n_embd),
        "computing a picture": sizes.image_tokens * 4 * sizes.tower_row,
        "program": _PROGRAM_BYTES,
    }
    return Need(parts, n_ctx, kv_type, image_cache_bytes)


def advice(sizes: Sizes, need: Need, available: int) -> list[str]:
    """Command-line options with which it fits; empty if it does already, or never does.

    The context stays as long as it is, if a smaller type of its keys and values is enough.
    """
    if need.total <= available:
        return []
    shorter = range(need.n_ctx // 1024 * 1024, 0, -1024)
    for kv_type, lengths in (("q8_0", (need.n_ctx,)), (need.kv_type, shorter), ("q8_0", shorter)):
        for n_ctx in lengths:
            other = memory_need(sizes, n_ctx=n_ctx, kv_type=kv_type, image_cache_bytes=need.image_cache_bytes)
            if other.total <= available:
                options = [f"--ctx-size {n_ctx}"] if n_ctx != need.n_ctx else []
                return options + ([f"--kv-type {kv_type}"] if kv_type != need.kv_type else [])
    return []


def available_memory() -> int | None:
    """Bytes that programs may still take, the cgroup's limit included; None where the system does not tell."""
    if sys.platform == "darwin":
        with suppress(OSError, ValueError):
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 3 // 4  # what others leave, about
        return None
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))) * 1024)
    for limit, used in _CGROUPS:
        with suppress(OSError, ValueError):  # "max" is no number: no limit
            found.append(max(int(Path(limit).read_text()) - int(Path(used).read_text()), 0))
    return min(found) if found else None


_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


class _Keys:
    """Counts in a file's metadata."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file

    def count(self, key: str) -> int:
        value: Any = self._file.metadata.get(key)
        if type(value) is not int or not 0 < value < 1 << 24:
            raise FormatError(f"{self._file.path}: {key} is {value!r}, expected a number above 0")
        return value


def _n_bytes(file: GGUFFile) -> int:
    return sum(tensor.n_bytes for tensor in file.tensors.values())


def _bytes(n_elements: int, kind: str) -> int:
    info = GGML_TYPES[kind]
    return n_elements // info.block_elements * info.block_bytes
