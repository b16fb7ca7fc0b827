"""Read a GGUF file: metadata, tensor directory, tensor data. Knows nothing of any model, except for `pairing_hash`.

Every count, length and offset of the file is checked before it is used: a file from a stranger raises FormatError and
nothing else. Shapes are in NumPy order (slowest dimension first), the reverse of what the file holds.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.errors import FormatError, ModelNotFound

__all__ = ["GGML_TYPES", "GGUFFile", "TensorInfo", "TypeInfo", "pairing_hash", "row_bytes"]


@dataclass(frozen=True)
class TypeInfo:
    """One of ggml's tensor types: its number in files, elements of a block, bytes of a block."""

    number: int
    block_elements: int
    block_bytes: int


GGML_TYPES: dict[str, TypeInfo] = {
    name: TypeInfo(number, elements, n_bytes)
    for name, number, elements, n_bytes in (
        ("f32", 0, 1, 4),
        ("f16", 1, 1, 2),
        ("q4_0", 2, 32, 18),
        ("q4_1", 3, 32, 20),
        ("q5_0", 6, 32, 22),
        ("q5_1", 7, 32, 24),
        ("q8_0", 8, 32, 34),
        ("q8_1", 9, 32, 36),
        ("q2_K", 10, 256, 84),
        ("q3_K", 11, 256, 110),
        ("q4_K", 12, 256, 144),
        ("q5_K", 13, 256, 176),
        ("q6_K", 14, 256, 210),
        ("q8_K", 15, 256, 292),
        ("iq2_xxs", 16, 256, 66),
        ("iq2_xs", 17, 256, 74),
        ("iq3_xxs", 18, 256, 98),
        ("iq1_s", 19, 256, 50),
        ("iq4_nl", 20, 32, 18),
        ("iq3_s", 21, 256, 110),
        ("iq2_s", 22, 256, 82),
        ("iq4_xs", 23, 256, 136),
        ("i8", 24, 1, 1),
        ("i16", 25, 1, 2),
        ("i32", 26, 1, 4),
        ("i64", 27, 1, 8),
        ("f64", 28, 1, 8),
        ("iq1_m", 29, 256, 56),
        ("bf16", 30, 1, 2),
        ("tq1_0", 34, 256, 54),
        ("tq2_0", 35, 256, 66),
        ("mxfp4", 39, 32, 17),
        ("nvfp4", 40, 64, 36),
        ("q1_0", 41, 128, 18),
        ("q2_0", 42, 64, 18),
    )
}
"""ggml's types by ggml's own spelling, as in the pinned llama.cpp (a test compares them)."""

_TYPE_NAMES = {info.number: name for name, info in GGML_TYPES.items()}

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""GGUF's value types by number, as struct formats."""
_BOOL, _STRING, _ARRAY = 7, 8, 9
_KINDS = dict(zip(_SCALARS, ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "u64", "i64", "f64"), strict=True))

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMS = 4
_MAX_NAME_BYTES = 63
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True)
class TensorInfo:
    """An entry of the tensor directory."""

    name: str
    shape: tuple[int, ...]
    """NumPy order."""
    type: str
    """ggml's name, e.g. 'q4_K'."""
    offset: int
    """Bytes from the start of the file (of its shard)."""
    n_bytes: int
    part: int = 0
    """Which shard it lies in."""

    @property
    def n_rows(self) -> int:
        """Rows along the fastest dimension, all other dimensions flattened."""
        return math.prod(self.shape[:-1])


def row_bytes(ggml_type: str, n_per_row: int) -> int:
    """Bytes of a row of `n_per_row` elements.

    Raises:
        ValueError: the row is no whole number of blocks.
    """
    info = GGML_TYPES[ggml_type]
    blocks, rest = divmod(n_per_row, info.block_elements)
    if rest:
        raise ValueError(f"{n_per_row} elements are no whole number of {ggml_type} blocks of {info.block_elements}")
    return blocks * info.block_bytes


class GGUFFile:
    """An open GGUF file: directory in memory, tensor data mapped. Immutable, so free to share between threads.

    The first shard of a split file (`NAME-00001-of-00003.gguf`) opens the others too.

    Args:
        path: the file.
        alone: take a shard for itself.

    Attributes:
        path: the file, or its first shard.
        paths: all shards, or the file alone.
        metadata: key -> int, float, bool, str or list of these.
        kinds: key -> the type of its value: 'u32', 'str', 'f32[]', ...
        tensors: name -> TensorInfo, in the file's order.

    Raises:
        ModelNotFound: there is no such file, or a shard is missing.
        FormatError: it is damaged, truncated, or not a GGUF.
    """

    def __init__(self, path: str | Path, *, alone: bool = False) -> None:
        self.path = Path(path)
        first = _Shard(self.path)
        self.metadata = first.metadata
        self.kinds = first.kinds
        self.tensors = first.tensors
        self.paths = [self.path] if alone else _shard_paths(self.path, first.metadata)
        self._data = [first.data]
        for no, other in enumerate(self.paths[1:], 1):
            if not other.is_file():
                raise ModelNotFound(f"{other} is missing: {self.path.name} is split into {len(self.paths)} files")
            shard = _Shard(other)
            if shard.metadata.get("split.no") != no or shard.metadata.get("split.count") != len(self.paths):
                raise FormatError(f"{other}: this is not shard {no + 1} of {len(self.paths)} of {self.path.name}")
            if twice := shard.tensors.keys() & self.tensors.keys():
                raise FormatError(f"{other}: tensor {min(twice)!r} is in an earlier shard too")
            self.tensors |= {name: replace(t, part=no) for name, t in shard.tensors.items()}
            self._data.append(shard.data)
        n_tensors = self.metadata.get("split.tensors.count", len(self.tensors))
        if len(self.paths) > 1 and n_tensors != len(self.tensors):
            raise FormatError(f"{self.path}: its shards hold {len(self.tensors)} tensors, not {n_tensors}")

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, mapped: uint8 [n_rows, bytes of a row]."""
        info = self._info(name)
        return self._data[info.part][info.offset : info.offset + info.n_bytes].reshape(info.n_rows, -1)

    def f32(self, name: str) -> NDArray[np.float32]:
        """A tensor as float32 in its own shape, dequantized if need be."""
        info = self._info(name)
        raw = self.raw(name)
        if info.type == "f32":
            values = raw.view("<f4").astype(np.float32)
        elif info.type == "f16":
            values = raw.view("<f2").astype(np.float32)
        elif info.type == "bf16":
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            from pyvllama._runtime import native  # noqa: PLC0415  (loads llama.cpp; reading a directory needs none)

            try:
                values = native.dequantize(np.ascontiguousarray(raw), info.type)
            except ValueError as e:
                raise FormatError(f"{self.path}: tensor {name}: {e}") from e
        return values.reshape(info.shape)

    def _info(self, name: str) -> TensorInfo:
        if (info := self.tensors.get(name)) is None:
            raise FormatError(f"{self.path}: there is no tensor {name!r}")
        return info


_SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


def _shard_paths(path: Path, metadata: dict[str, Any]) -> list[Path]:
    """All files of a split one, by llama.cpp's rule for their names; the file alone if it is not split."""
    count = metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return [path]
    match = _SHARD_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise FormatError(f"{path}: one of {count} shards must be called NAME-00001-of-{count:05d}.gguf")
    if metadata.get("split.no") != 0:
        raise FormatError(f"{path}: this is shard {match[2]}; name the first, {match[1]}-00001-of-{match[3]}.gguf")
    return [path.with_name(f"{match[1]}-{i + 1:05d}-of-{match[3]}.gguf") for i in range(count)]


class _Shard:
    """One file: its directory and its mapped bytes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._size = path.stat().st_size
            if not path.is_file():
                raise ModelNotFound(f"{path} is not a file")
            if self._size == 0:
                raise FormatError(f"{path}: the file is empty")
            self.data: NDArray[np.uint8] = np.memmap(path, dtype=np.uint8, mode="r")
        except FileNotFoundError as e:
            raise ModelNotFound(f"{path} does not exist") from e
        except OSError as e:
            raise FormatError(f"{path} cannot be read: {e.strerror or e}") from e
        self.metadata: dict[str, Any] = {}
        self.kinds: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo] = {}
        self._read_directory(_Cursor(path, self.data.data))

    def _read_directory(self, c: _Cursor) -> None:
        if (magic := c.take(4)) != _MAGIC:
            raise c.error(f"it begins with {magic!r}, not with {_MAGIC!r}: this is no GGUF file")
        version = c.scalar("<I")
        if version not in _VERSIONS:
            hint = " (a big-endian file?)" if version & 0xFFFF == 0 else ""
            raise c.error(f"GGUF version {version} is not supported{hint}; supported are {_VERSIONS}")
        n_tensors, n_keys = c.scalar("<Q"), c.scalar("<Q")
        # a key takes at least 13 bytes, a tensor at least 32: an absurd count must not start a long loop
        if n_tensors * 32 + n_keys * 13 > self._size:
            raise c.error(f"{n_tensors} tensors and {n_keys} keys do not fit into {self._size} bytes")
        for _ in range(n_keys):
            key = c.string("a key")
            if not key:
                raise c.error("a key has no name")
            if key in self.metadata:
                raise c.error(f"key {key!r} occurs twice")
            self.metadata[key], self.kinds[key] = c.value(key)
        alignment = self.metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise c.error(f"general.alignment = {alignment!r} is no power of two")
        entries = [self._read_tensor(c, alignment) for _ in range(n_tensors)]
        self._place_tensors(c, entries, -(-c.at // alignment) * alignment)

    def _read_tensor(self, c: _Cursor, alignment: int) -> TensorInfo:
        name = c.string("a tensor name")
        if len(name.encode()) > _MAX_NAME_BYTES:
            raise c.error(f"tensor name {name[:80]!r} is longer than {_MAX_NAME_BYTES} bytes")
        n_dims = c.scalar("<I")
        if not 1 <= n_dims <= _MAX_DIMS:
            raise c.error(f"tensor {name!r} has {n_dims} dimensions, not 1 to {_MAX_DIMS}")
        shape = tuple(c.scalar("<Q") for _ in range(n_dims))[::-1]
        number, offset = c.scalar("<I"), c.scalar("<Q")
        if (ggml_type := _TYPE_NAMES.get(number)) is None:
            raise c.error(f"tensor {name!r} has the unknown type {number}")
        if min(shape) < 1 or math.prod(shape) >= 2**63:
            raise c.error(f"tensor {name!r} has the impossible shape {shape}")
        try:
            n_bytes = row_bytes(ggml_type, shape[-1]) * math.prod(shape[:-1])
        except ValueError as e:
            raise c.error(f"tensor {name!r} of shape {shape}: {e}") from e
        if offset % alignment:
            raise c.error(f"tensor {name!r} begins at {offset}, which is no multiple of {alignment}")
        return TensorInfo(name, shape, ggml_type, offset, n_bytes)

    def _place_tensors(self, c: _Cursor, entries: list[TensorInfo], data_start: int) -> None:
        """Make offsets absolute; refuse what lies outside the file or on another tensor."""
        for e in entries:
            if e.name in self.tensors:
                raise c.error(f"tensor {e.name!r} occurs twice")
            start = data_start + e.offset
            if start + e.n_bytes > self._size:
                raise c.error(
                    f"tensor {e.name!r} ends at byte {start + e.n_bytes}, but the file has {self._size}: "
                    "it is truncated; copy or download it again"
                )
            self.tensors[e.name] = TensorInfo(e.name, e.shape, e.type, start, e.n_bytes)
        ordered = sorted(self.tensors.values(), key=lambda t: t.offset)
        for a, b in pairwise(ordered):
            if a.offset + a.n_bytes > b.offset:
                raise c.error(f"tensors {a.name!r} and {b.name!r} overlap")


class _Cursor:
    """A bounds-checked reading position."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.data = data
        self.at = 0

    def error(self, message: str) -> FormatError:
        return FormatError(f"{self.path}: {message}")

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.at:
            raise self.error(f"the file ends at byte {len(self.data)}, {n} more bytes were expected at {self.at}")
        self.at += n
        return bytes(self.data[self.at - n : self.at])

    def scalar(self, fmt: str) -> Any:
        return struct.unpack(fmt, self.take(struct.calcsize(fmt)))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.scalar("<Q"))
        try:
            return raw.decode()
        except UnicodeDecodeError as e:
            raise self.error(f"{what} is not UTF-8: {raw[:80]!r}") from e

    def value(self, key: str) -> tuple[Any, str]:
        """A key's value and the name of its type."""
        kind = self.scalar("<I")
        if kind == _STRING:
            return self.take(self.scalar("<Q")).decode(errors="replace"), "str"
        if kind == _ARRAY:
            kind, count = self.scalar("<I"), self.scalar("<Q")
            if kind == _STRING:
                return self._strings(count), "str[]"
            return self._numbers(key, kind, count), _KINDS.get(kind, "") + "[]"
        return self._numbers(key, kind, 1)[0], _KINDS[kind]

    def _numbers(self, key: str, kind: int, count: int) -> list[Any]:
        if (fmt := _SCALARS.get(kind)) is None:
            raise self.error(f"key {key!r} has a value of the unknown type {kind}")
        if count == 0:
            return []
        raw = self.take(count * struct.calcsize(fmt))
        values: list[Any] = np.frombuffer(raw, dtype=np.uint8 if kind == _BOOL else np.dtype(fmt)).tolist()
        if kind == _BOOL:
            if not set(values) <= {0, 1}:
                raise self.error(f"key {key!r} has a bool that is neither 0 nor 1")
            values = [v == 1 for v in values]
        return values

    def _strings(self, count: int) -> list[str]:
        """An array of strings, in one tight loop: vocabularies have 128 thousand tokens, merges twice as many."""
        data, at, end = self.data, self.at, len(self.data)
        if count * 8 > end - at:
            raise self.error(f"an array of {count} strings does not fit into the file")
        length_at = struct.Struct("<Q").unpack_from
        values = []
        for _ in range(count):
            if at + 8 > end:
                raise self.error(f"the file ends at byte {end}, inside an array of {count} strings")
            stop = at + 8 + length_at(data, at)[0]
            if stop > end:
                raise self.error(f"the file ends at byte {end}, inside an array of {count} strings")
            values.append(str(data[at + 8 : stop], "utf-8", "replace"))
            at = stop
        self.at = at
        return values


def pairing_hash(file: GGUFFile) -> str:
    """Identify the weights of a text GGUF whatever its quantization: SHA-256, in hex, over its norm weights.

    Norms stay F32 in every quantization. Order: blk.0.attn_norm, blk.0.ffn_norm, blk.1.attn_norm, ..., output_norm;
    F32 little-endian bytes.

    Raises:
        FormatError: a norm is missing or not F32.
    """
    n_layer = file.metadata.get("llama.block_count")
    if not isinstance(n_layer, int) or n_layer > len(file.tensors):
        raise FormatError(f"{file.path}: llama.block_count is {n_layer!r}: this is no Llama text model")
    names = [f"blk.{il}.{kind}.weight" for il in range(n_layer) for kind in ("attn_norm", "ffn_norm")]
    digest = hashlib.sha256()
    for name in (*names, "output_norm.weight"):
        raw = file.raw(name)
        if (ggml_type := file.tensors[name].type) != "f32":
            raise FormatError(f"{file.path}: {name} is {ggml_type}, not f32 as llama.cpp writes norms")
        digest.update(raw.tobytes())
    return digest.hexdigest()
