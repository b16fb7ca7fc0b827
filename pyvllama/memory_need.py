"""How much memory a chat will need at most, from the headers of a pair's files, and which settings fit a machine.

What is counted is the resident set of the process on Linux, with everything on the CPU. tools/bench/memory.py compares
it with what is measured.
"""

import functools
import sys
from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyvllama._runtime import init_backend, machine_memory, native
from pyvllama.context import KV_TYPES
from pyvllama.errors import ConfigError, FormatError
from pyvllama.gguf_file import GGML_TYPES, GGUFFile
from pyvllama.loading import DEFAULT_N_CTX
from pyvllama.model import CROSS_KV_TYPES
from pyvllama.pair_checks import check_text
from pyvllama.types import Pair

__all__ = ["MemorySettings", "Need", "Sizes", "advice", "available_memory", "memory_need", "read_sizes"]

# Measured: Python 3.11, its packages and llama.cpp's libraries after a chat with the pocket model; and what a token of
# the vocabulary takes, here and in llama.cpp, its merges included.
_PROGRAM_BYTES = 64 << 20
_TOKEN_BYTES = 780
_MARGIN = 1.05  # that a prediction may be wrong by
_F32 = 4


@dataclass(frozen=True)
class MemorySettings:
    """What the need depends on beside the model: options of `pyvllama.load`."""

    n_ctx: int = DEFAULT_N_CTX
    kv_type: str = "f16"
    cross_kv_type: str = "f16"
    n_ubatch: int = 512


@dataclass(frozen=True)
class Sizes:
    """What of a pair's headers decides over memory. Weights in bytes.

    Attributes:
        text_file: all weights of the text model.
        text_copied: those that llama.cpp copies into the layout of its CPU kernels.
        text_mapped: those that it reads in the mapped file; of an embedding table that is nothing else, a few rows are
            read: it is not among them.
        mmproj_copied, mmproj_mapped: as these, those of the cross-attention layers, and copies of the tower's. What
            the tower reads in the mapped file is given back at once.
        tower: scratch buffer of the vision tower for the largest picture.
        n_layer: self-attention layers.
        kv_row: elements of a position's keys and values in one of them.
        n_tokens: of the vocabulary.
        n_embd, n_ff: of the text model.
        n_cross: cross-attention layers.
        cross_row: elements of an image token's keys (and as many of its values) in one of them.
        head: elements of a head.
        image_tokens: of the largest picture.
        image_values: its pixels' red, green and blue values.
    """

    text_file: int
    text_copied: int
    text_mapped: int
    mmproj_copied: int
    mmproj_mapped: int
    tower: int
    n_layer: int
    kv_row: int
    n_tokens: int
    n_embd: int
    n_ff: int
    n_cross: int
    cross_row: int
    head: int
    image_tokens: int
    image_values: int


@dataclass(frozen=True)
class Need:
    """Bytes by what goes on and what they are for, and the settings that they are for.

    Attributes:
        phases: what goes on -> its parts; the largest phase makes the peak.
        settings: these.
        picture: bytes of the picture's keys and values: what one more picture in memory takes.
    """

    phases: Mapping[str, Mapping[str, int]]
    settings: MemorySettings
    picture: int

    @property
    def peak(self) -> str:
        """The phase that takes most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    @property
    def parts(self) -> Mapping[str, int]:
        """What the peak is made of."""
        return self.phases[self.peak]

    @property
    def total(self) -> int:
        """The peak."""
        return sum(self.parts.values())

    def fits(self, available: int) -> bool:
        """Is there room for it, and for being a little wrong?"""
        return self.total * _MARGIN <= available


def read_sizes(pair: Pair, *, repack: bool = True) -> Sizes:
    """From the headers of both files; no weights are read.

    repack: as of `pyvllama.load`.

    Raises:
        FormatError: a file is damaged, or is no file of such a pair.
        ConfigError: PYVLLAMA_CPU_KERNELS names kernels that this CPU cannot run.
    """
    text, mmproj = GGUFFile(pair.text), GGUFFile(pair.mmproj)
    check_text(text)
    if mmproj.metadata.get("clip.projector_type") != "mllama":
        raise FormatError(f"{pair.mmproj}: this is no mmproj file of Llama 3.2 Vision (clip.projector_type = mllama)")
    init_backend()
    eyes = native.Mmproj(pair.mmproj, repack=False)  # maps it
    plan, hparams = eyes.plan(repack=repack), eyes.hparams
    t = _Keys(text)
    n_embd, n_head, n_head_kv = (
        t.count("llama.embedding_length"),
        t.count("llama.attention.head_count"),
        t.count("llama.attention.head_count_kv"),
    )
    head = n_embd // n_head
    kv = sum(int(text.metadata.get(f"llama.attention.{kind}_length", head)) for kind in ("key", "value"))
    embedding = text.tensors.get("token_embd.weight")
    copied, mapped = _text_weights(text, repack)
    return Sizes(
        text_file=sum(tensor.n_bytes for tensor in text.tensors.values()),
        text_copied=copied,
        text_mapped=mapped,
        mmproj_copied=plan["copied_cross"] + plan["copied_tower"],
        mmproj_mapped=plan["mapped_cross"],
        tower=plan["compute"],
        n_layer=t.count("llama.block_count"),
        kv_row=n_head_kv * kv,
        n_tokens=embedding.shape[0] if embedding else 0,
        n_embd=n_embd,
        n_ff=t.count("llama.feed_forward_length"),
        n_cross=len(hparams["cross_attention_layers"]),
        cross_row=hparams["text_n_head_kv"] * head,
        head=head,
        image_tokens=hparams["max_num_tiles"] * hparams["n_positions"],
        image_values=hparams["max_num_tiles"] * 3 * hparams["image_size"] ** 2,
    )


def _text_weights(text: GGUFFile, repack: bool) -> tuple[int, int]:
    """Bytes that llama.cpp copies, and that it reads in the mapped file."""
    repacks = functools.cache(native.cpu_repacks)
    copied = mapped = 0
    for name, tensor in text.tensors.items():
        if name == "token_embd.weight" and "output.weight" in text.tensors:
            continue
        if repack and len(tensor.shape) == 2 and repacks(tensor.type, tensor.shape[1], tensor.shape[0]):
            copied += tensor.n_bytes
        else:
            mapped += tensor.n_bytes
    return copied, mapped


def memory_need(sizes: Sizes, settings: MemorySettings = MemorySettings()) -> Need:
    """The peak of a chat with one picture of the largest size and a prompt that fills a batch.

    Raises:
        ConfigError: an unknown type.
    """
    s = settings
    if s.kv_type not in KV_TYPES:
        raise ConfigError(f"kv_type must be one of {', '.join(KV_TYPES)}, not {s.kv_type!r}")
    if s.cross_kv_type not in CROSS_KV_TYPES:
        raise ConfigError(f"cross_kv_type must be one of {', '.join(CROSS_KV_TYPES)}, not {s.cross_kv_type!r}")
    n_cells = -(-s.n_ctx // 256) * 256  # llama.cpp's step
    n_rows = min(s.n_ubatch, s.n_ctx)
    elements = sizes.image_tokens * sizes.cross_row
    values_type = "f16" if s.cross_kv_type == "q8_0" else s.cross_kv_type  # see image-states.h
    picture = sizes.n_cross * (_bytes(elements, s.cross_kv_type) + _bytes(elements, values_type))
    # Gate, up and their product of an MLP, and what goes into it as the quantized product takes it.
    mlp = n_rows * (_F32 * 3 * sizes.n_ff) + _bytes(n_rows * sizes.n_ff, "q8_0")
    # The layer's input, its norm, the mask; of a cross-attention layer, whose sums are made in place, the norm.
    computing_text = mlp + n_rows * (_F32 * 2 * sizes.n_embd + 2 * n_cells)
    computing_cross = mlp + n_rows * _F32 * sizes.n_embd
    states = sizes.image_tokens * sizes.n_embd
    # Of a layer's keys or values the product and its norm, and the states as ggml's product takes them; where the
    # products are our own (image-states-cpu.h), less.
    computing_kv = 2 * _F32 * elements + _bytes(states, "q8_0")
    computing_picture = _F32 * (states + sizes.image_values) + max(sizes.tower, computing_kv + picture)
    context = {
        f"context of {s.n_ctx} ({s.kv_type})": _bytes(n_cells * sizes.n_layer * sizes.kv_row, s.kv_type),
    }
    program = {"program and vocabulary": _PROGRAM_BYTES + sizes.n_tokens * _TOKEN_BYTES}
    phases = {
        "loading": {"text weights": sizes.text_file, "mmproj weights": sizes.mmproj_copied, **program},
        "encoding a picture": {
            "text weights": sizes.text_copied,
            "mmproj weights": sizes.mmproj_copied,
            **context,
            "computing": computing_picture,
            **program,
        },
        "computing text": {
            "text weights": sizes.text_copied + sizes.text_mapped,
            "mmproj weights": sizes.mmproj_copied + sizes.mmproj_mapped,
            **context,
            f"picture ({s.cross_kv_type})": picture,
            "computing": computing_text + computing_cross,
            **program,
        },
    }
    return Need(phases, s, picture)


def advice(sizes: Sizes, need: Need, available: int) -> list[str]:
    """Command-line options with which it fits; empty if it does already, or never does.

    The context stays as long as it is, if a smaller type of keys and values is enough.
    """
    if need.fits(available):
        return []
    given = need.settings
    smaller = replace(given, kv_type="q8_0") if sizes.head % 32 == 0 else given
    smallest = replace(smaller, cross_kv_type="q8_0") if sizes.head % 32 == 0 else given
    kinds = (given, smaller, smallest)

    def shortened(kind: MemorySettings) -> MemorySettings:
        """With the longest context that fits, in steps of 1024; if none does, the shortest."""
        steps = range(1, given.n_ctx // 1024 + 1)

        def too_long(step: int) -> bool:
            return not memory_need(sizes, replace(kind, n_ctx=1024 * step)).fits(available)

        return replace(kind, n_ctx=1024 * max(bisect_left(steps, True, key=too_long), 1))

    for other in (*kinds, *map(shortened, kinds)):
        if memory_need(sizes, other).fits(available):
            changed = (
                ("--ctx-size", given.n_ctx, other.n_ctx),
                ("--kv-type", given.kv_type, other.kv_type),
                ("--cross-kv-type", given.cross_kv_type, other.cross_kv_type),
            )
            return [f"{name} {new}" for name, old, new in changed if new != old]
    return []


def available_memory() -> int | None:
    """Bytes that programs may still take, the cgroup's limit included; None where the system does not tell."""
    if sys.platform == "darwin":
        memory = machine_memory()
        return memory and memory * 3 // 4  # what others leave, about
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


def _bytes(n_elements: int, kind: str) -> int:
    info = GGML_TYPES[kind]
    return n_elements // info.block_elements * info.block_bytes
