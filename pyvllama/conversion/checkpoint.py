"""A Hugging Face checkpoint directory: its JSON files, and its tensors without loading them.

safetensors files are read here, in NumPy alone (bfloat16 included), by plain reads of row ranges: what is not asked for
takes no memory, and a file cut short meanwhile is an error and no SIGBUS.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyvllama.conversion.tensor_map import canonical_name, is_ignored
from pyvllama.conversion.transforms import Index
from pyvllama.errors import CheckpointError, ModelNotFound

__all__ = ["DTYPES", "Checkpoint", "SourceTensor", "Tensor", "json_object", "listing", "read_text", "to_f32"]

DTYPES = {"F32": ("f32", "<f4"), "F16": ("f16", "<f2"), "BF16": ("bf16", "<u2")}
"""safetensors' dtype -> (ggml's name, NumPy's; bfloat16 as its 16 bits)."""

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True)
class Tensor(ABC):
    """A tensor that is read row by row, when it is asked for."""

    name: str
    """As the file spells it."""
    path: Path
    """The file, or the first of them; for messages."""
    type: str
    """'f32', 'f16' or 'bf16'."""
    shape: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """First dimension; a vector or a scalar is one row."""
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def n_per_row(self) -> int:
        """Elements behind the first dimension."""
        return math.prod(self.shape) // max(1, self.n_rows)

    @abstractmethod
    def rows(self, index: Index) -> NDArray[Any]:
        """Read rows: [len(index), n_per_row] in the file's own type (bfloat16 as uint16).

        Raises:
            CheckpointError: the file cannot be read any more.
        """


@dataclass(frozen=True)
class SourceTensor(Tensor):
    """A tensor whose values lie in one piece, row after row, in a file."""

    offset: int
    """Bytes from the start of the file."""

    def rows(self, index: Index) -> NDArray[Any]:
        """See `Tensor.rows`."""
        first, last = int(index.min()), int(index.max())
        if last - first < 2 * len(index) + 64:
            block = self._read(first, last - first + 1)
            if len(index) == len(block) and bool((index == np.arange(first, last + 1)).all()):
                return block
            return np.ascontiguousarray(block[index - first])
        return np.concatenate([self._read(int(i), 1) for i in index])

    def _read(self, first: int, count: int) -> NDArray[Any]:
        dtype = np.dtype(_NUMPY[self.type])
        row_bytes = self.n_per_row * dtype.itemsize
        try:
            with self.path.open("rb") as f:
                f.seek(self.offset + first * row_bytes)
                data = np.fromfile(f, dtype=dtype, count=count * self.n_per_row)
        except OSError as e:
            raise CheckpointError(f"{self.path}: {self.name} cannot be read: {e.strerror or e}") from e
        if data.size != count * self.n_per_row:
            raise CheckpointError(f"{self.path}: the file ends inside {self.name}; it was complete a moment ago")
        return data.reshape(count, self.n_per_row)


_NUMPY = dict(DTYPES.values())


def to_f32(values: NDArray[Any]) -> NDArray[np.float32]:
    """Rows as `SourceTensor.rows` gives them (bfloat16 as uint16) as float32, exactly."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


class Checkpoint:
    """A checkpoint directory, opened and found complete in itself.

    Attributes:
        path: the directory.
        tensors: canonical (Hub) name -> Tensor.

    Raises:
        ModelNotFound: no such directory, or no config.json in it.
        CheckpointError: missing or damaged shards, unreadable JSON, tensor types that cannot be converted.
    """

    config_file = "config.json"
    """Where the sizes come from; for messages."""
    tensors: Mapping[str, Tensor]

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ModelNotFound(f"{self.path} is no directory; expected one that holds an HF checkpoint")
        if not (self.path / "config.json").is_file():
            raise ModelNotFound(f"{self.path} holds no config.json: this is no HF checkpoint")
        self.tensors = self._open_shards()

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file of the directory.

        Raises:
            CheckpointError: the file is missing, or holds no JSON object.
        """
        if (found := self.optional_json(name)) is None:
            raise CheckpointError(f"{self.path} lacks {name}; copy it from where the checkpoint came from")
        return found

    def optional_json(self, name: str) -> dict[str, Any] | None:
        """Same; None if there is no such file."""
        path = self.path / name
        if not path.is_file():
            return None
        return json_object(path, read_text(path))

    def optional_text(self, name: str) -> str | None:
        """A text file of the directory, or None."""
        path = self.path / name
        return read_text(path) if path.is_file() else None

    def check(self, expected: Mapping[str, Sequence[int]], unused: frozenset[str] = frozenset()) -> None:
        """Compare the tensors with what the model must have.

        Args:
            expected: canonical name -> shape.
            unused: canonical names that may be there and are left out.

        Raises:
            CheckpointError: one message with all missing, all unknown and all wrongly shaped tensors.
        """
        found = {name for name in self.tensors if not is_ignored(name)}
        problems = [f"missing: {name}" for name in expected if name not in found]
        problems += [f"unknown: {self.tensors[name].name}" for name in sorted(found - set(expected) - unused)]
        problems += [
            f"{t.name}: shape {list(t.shape)}, but {self.config_file} asks for {list(shape)}"
            for name, shape in expected.items()
            if (t := self.tensors.get(name)) is not None and t.shape != tuple(shape)
        ]
        if problems:
            raise CheckpointError(
                f"{self.path} does not hold the tensors of its {self.config_file}:\n{listing(problems)}"
            )

    def _open_shards(self) -> dict[str, SourceTensor]:
        tensors: dict[str, SourceTensor] = {}
        shards, indexed = self._shards()
        for shard in shards:
            for tensor in _read_header(self.path / shard):
                name = canonical_name(tensor.name)
                if name in tensors:
                    other = tensors[name]
                    raise CheckpointError(
                        f"{self.path}: {tensor.name} in {shard} and {other.name} in {other.path.name} are one tensor"
                    )
                tensors[name] = tensor
        lost = [f"{name} (in {shard})" for name, shard in indexed.items() if canonical_name(name) not in tensors]
        if lost:
            raise CheckpointError(f"{self.path / _INDEX} lists tensors that its shards do not hold:\n{listing(lost)}")
        return tensors

    def _shards(self) -> tuple[list[str], dict[str, str]]:
        """File names of the shards, and the index's tensor -> shard (empty without an index)."""
        indexed: dict[str, str] = {}
        if (index := self.optional_json(_INDEX)) is not None:
            indexed = index.get("weight_map", {})
            if not isinstance(indexed, dict) or not all(isinstance(x, str) for x in indexed.values()) or not indexed:
                raise CheckpointError(f"{self.path / _INDEX}: weight_map is no object of file names")
            shards = sorted(set(indexed.values()))
        elif (self.path / _SINGLE).is_file():
            shards = [_SINGLE]
        else:
            shards = self._numbered_shards()
        if outside := [s for s in shards if Path(s).name != s or s in (".", "..")]:
            raise CheckpointError(f"{self.path / _INDEX} names files outside of the directory: {', '.join(outside)}")
        if missing := [s for s in shards if not (self.path / s).is_file()]:
            raise CheckpointError(
                f"{self.path} lacks {len(missing)} of {len(shards)} shards (interrupted download?):\n{listing(missing)}"
            )
        return shards, indexed

    def _numbered_shards(self) -> list[str]:
        found = sorted(p.name for p in self.path.glob("*.safetensors"))
        totals = {int(m[2]) for name in found if (m := _SHARD.fullmatch(name))}
        if len(totals) != 1:
            hint = " (pytorch_model*.bin is not read; save as safetensors)" if [*self.path.glob("*.bin")] else ""
            raise CheckpointError(f"{self.path} holds neither {_INDEX} nor {_SINGLE} nor numbered shards{hint}")
        total = totals.pop()
        return [f"model-{i:05d}-of-{total:05d}.safetensors" for i in range(1, total + 1)]


def listing(lines: Sequence[str], limit: int = 30) -> str:
    """An indented list for an error message, cut after `limit` lines."""
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join(f"  {line}" for line in [*lines[:limit], *more])


def read_text(path: Path) -> str:
    """A UTF-8 file; a CheckpointError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CheckpointError(f"{path} cannot be read: {e}") from e


def json_object(path: Path, text: str | bytes) -> dict[str, Any]:
    """The JSON object that `text` is; a CheckpointError that names `path` where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} holds no valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, but it must be a JSON object")
    return value


def _read_header(path: Path) -> Iterator[SourceTensor]:
    """The tensors of a safetensors file, every offset checked against the file's size."""
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
    if dtype not in DTYPES:
        raise CheckpointError(
            f"{path}: {name} is of type {dtype} (an already quantized checkpoint?); "
            f"supported are {', '.join(DTYPES)}: convert from the original weights"
        )
    ggml_type, numpy_type = DTYPES[dtype]
    if end - begin != math.prod(shape) * np.dtype(numpy_type).itemsize:
        raise CheckpointError(f"{path}: {name} of shape {list(shape)} does not fill its {end - begin} bytes")
    if start + end > size:
        raise CheckpointError(
            f"{path} is truncated: {name} ends at byte {start + end}, but the file has {size} (interrupted download?)"
        )
    return SourceTensor(name, path, ggml_type, shape, start + begin)
