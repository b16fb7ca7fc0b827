"""A GGUF file taken apart, to be changed and put together again, rightly or wrongly. For tests only.

Independent of the package's reader and of PyPI `gguf`, neither of which lets a wrong file be written.
"""

import itertools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
SCALARS = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "?", U64: "Q", I64: "q", F64: "d"}
TYPE_F32, TYPE_F16 = 0, 1


def scalar(kind: int, value: float) -> bytes:
    return struct.pack("<" + SCALARS[kind], value)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def array(kind: int, items: list[bytes], claimed: int | None = None) -> bytes:
    """Payload of an array value; claimed: the number of items it says it has."""
    return struct.pack("<IQ", kind, len(items) if claimed is None else claimed) + b"".join(items)


@dataclass
class Key:
    name: str
    kind: int
    payload: bytes


@dataclass
class Tensor:
    """dims in ggml's order, fastest first. offset: to write another one than where the data lie."""

    name: str
    dims: list[int]
    kind: int
    data: bytes
    offset: int | None = None


@dataclass
class Gguf:
    """Everything of a file. The claims, where given, replace the true counts in the header."""

    keys: list[Key]
    tensors: list[Tensor]
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    n_tensors_claimed: int | None = None
    n_keys_claimed: int | None = None
    tail: bytes = field(default=b"")

    def key(self, name: str) -> Key:
        return next(key for key in self.keys if key.name == name)

    def tensor(self, name: str) -> Tensor:
        return next(tensor for tensor in self.tensors if tensor.name == name)

    def set(self, name: str, kind: int, payload: bytes) -> None:
        """Replace the key of that name, or add it."""
        self.keys = [key for key in self.keys if key.name != name] + [Key(name, kind, payload)]

    def drop_key(self, name: str) -> None:
        self.keys.remove(self.key(name))

    def header(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors_claimed is None else self.n_tensors_claimed
        n_keys = len(self.keys) if self.n_keys_claimed is None else self.n_keys_claimed
        out = [self.magic, struct.pack("<IQQ", self.version, n_tensors, n_keys)]
        out += [string(key.name) + struct.pack("<I", key.kind) + key.payload for key in self.keys]
        at = 0
        for tensor in self.tensors:
            offset = at if tensor.offset is None else tensor.offset
            out.append(string(tensor.name) + struct.pack("<I", len(tensor.dims)))
            out.append(struct.pack(f"<{len(tensor.dims)}Q", *tensor.dims) + struct.pack("<IQ", tensor.kind, offset))
            at += -(-len(tensor.data) // self.alignment) * self.alignment
        return b"".join(out)

    def to_bytes(self) -> bytes:
        def padded(raw: bytes) -> bytes:
            return raw + bytes(-len(raw) % self.alignment)

        return padded(self.header()) + b"".join(padded(tensor.data) for tensor in self.tensors) + self.tail


def read(path: Path) -> Gguf:
    """Take a correct file apart; a tensor's data includes the padding after it."""
    raw = path.read_bytes()
    at = 4

    def take(fmt: str) -> tuple[int, ...]:
        nonlocal at
        values = struct.unpack_from("<" + fmt, raw, at)
        at += struct.calcsize("<" + fmt)
        return values

    def text() -> str:
        nonlocal at
        (n,) = take("Q")
        at += n
        return raw[at - n : at].decode()

    def payload(kind: int) -> bytes:
        nonlocal at
        start = at
        if kind == STRING:
            text()
        elif kind == ARRAY:
            inner, n = take("IQ")
            if inner in SCALARS:
                at += n * struct.calcsize("<" + SCALARS[inner])
            else:
                for _ in range(n):
                    payload(inner)
        else:
            take(SCALARS[kind])
        return raw[start:at]

    version, n_tensors, n_keys = take("IQQ")
    keys = []
    for _ in range(n_keys):
        name, (kind,) = text(), take("I")
        keys.append(Key(name, kind, payload(kind)))
    entries = []
    for _ in range(n_tensors):
        name, (n_dims,) = text(), take("I")
        dims = list(take(f"{n_dims}Q"))
        entries.append((name, dims, *take("IQ")))
    data_start = -(-at // 32) * 32
    starts = sorted({offset for *_, offset in entries} | {len(raw) - data_start})
    ends = dict(itertools.pairwise(starts))
    tensors = [
        Tensor(name, dims, kind, raw[data_start + offset : data_start + ends[offset]])
        for name, dims, kind, offset in entries
    ]
    return Gguf(keys, tensors, version=version)


def rewrite(source: Path, target: Path, change: Callable[[Gguf], None]) -> Path:
    """Write a changed copy."""
    gguf = read(source)
    change(gguf)
    target.write_bytes(gguf.to_bytes())
    return target
