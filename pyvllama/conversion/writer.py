"""Write a GGUF file as a stream: under a temporary name, flushed to the disk, read again, and only then renamed.

At most one slice of rows is in memory at a time.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
from numpy.typing import NDArray

from pyvllama.errors import ConfigError, FormatError
from pyvllama.gguf_file import GGML_TYPES, GGUFFile, row_bytes

__all__ = ["Metadata", "TensorSpec", "file_crc", "publish", "verify_gguf", "write_gguf", "writing"]

Metadata = Mapping[str, tuple[str, Any]]
"""Key -> (type, value); types are u8 to u64, i8 to i64, f32, f64, bool, str, and with [] behind them arrays."""

_VALUE_TYPES = {
    "u8": gguf.GGUFValueType.UINT8,
    "i8": gguf.GGUFValueType.INT8,
    "u16": gguf.GGUFValueType.UINT16,
    "i16": gguf.GGUFValueType.INT16,
    "u32": gguf.GGUFValueType.UINT32,
    "i32": gguf.GGUFValueType.INT32,
    "u64": gguf.GGUFValueType.UINT64,
    "i64": gguf.GGUFValueType.INT64,
    "f32": gguf.GGUFValueType.FLOAT32,
    "f64": gguf.GGUFValueType.FLOAT64,
    "bool": gguf.GGUFValueType.BOOL,
    "str": gguf.GGUFValueType.STRING,
}
_READ_BYTES = 1 << 24


@dataclass(frozen=True)
class TensorSpec:
    """A tensor as the file's directory will list it."""

    name: str
    shape: tuple[int, ...]
    """NumPy order."""
    type: str
    """ggml's name."""

    @property
    def n_bytes(self) -> int:
        """Size of the data."""
        return row_bytes(self.type, self.shape[-1]) * int(np.prod(self.shape[:-1], dtype=np.int64))


def write_gguf(
    path: Path,
    metadata: Metadata,
    tensors: Sequence[TensorSpec],
    data: Iterable[tuple[str, Iterator[NDArray[Any]]]],
) -> dict[str, int]:
    """Write a whole file and flush it to the disk.

    Args:
        path: the file, overwritten if it exists.
        metadata: all keys, a model's `general.architecture` among them.
        tensors: the directory.
        data: (name, slices of the tensor's data in order) for each tensor, in the directory's order.

    Returns:
        CRC-32 of each tensor's data.

    Raises:
        ConfigError: the disk is full or the file cannot be written.
    """
    # an importance matrix has no architecture: then none is written
    writer = gguf.GGUFWriter(None, metadata.get("general.architecture", ("str", ""))[1])
    for key, (kind, value) in metadata.items():
        if kind.endswith("[]"):
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=_VALUE_TYPES[kind[:-2]])
        elif key != "general.architecture":  # the constructor has written it
            writer.add_key_value(key, value, _VALUE_TYPES[kind])
    for t in tensors:
        number = gguf.GGMLQuantizationType(GGML_TYPES[t.type].number)
        writer.add_tensor_info(t.name, t.shape, np.dtype(np.float32), t.n_bytes, raw_dtype=number)
    with writing(path):
        try:
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            return _write_data(writer, tensors, data)
        finally:
            with suppress(OSError):  # closing flushes; on a full disk the first error is the one to report
                writer.close()


def _write_data(
    writer: Any, tensors: Sequence[TensorSpec], data: Iterable[tuple[str, Iterator[NDArray[Any]]]]
) -> dict[str, int]:
    out: BinaryIO = writer.fout[0]
    writer.write_padding(out, out.tell())
    checksums: dict[str, int] = {}
    for spec, (name, slices) in zip(tensors, data, strict=True):
        crc, n_bytes = 0, 0
        for part in slices:
            view = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            out.write(view.data)
            crc, n_bytes = zlib.crc32(view.data, crc), n_bytes + view.nbytes
        if name != spec.name or n_bytes != spec.n_bytes:
            raise RuntimeError(f"{name}: {n_bytes} bytes of data where {spec.n_bytes} of {spec.name} were announced")
        writer.write_padding(out, n_bytes)
        checksums[name] = crc
    out.flush()
    os.fsync(out.fileno())
    return checksums


def verify_gguf(path: Path, metadata: Metadata, tensors: Sequence[TensorSpec], checksums: Mapping[str, int]) -> None:
    """Read a file again and compare it with what was meant to be written, down to every byte of the tensors.

    Raises:
        FormatError: they differ (a failing disk, or a mistake of ours).
    """
    file = GGUFFile(path, alone=True)
    found = [(t.name, t.shape, t.type, t.n_bytes) for t in file.tensors.values()]
    if found != [(t.name, t.shape, t.type, t.n_bytes) for t in tensors]:
        raise FormatError(f"{path}: the tensors read back are not those written")
    for key, (kind, value) in metadata.items():
        if not _same(kind, value, file.metadata.get(key)):
            raise FormatError(f"{path}: key {key} read back as {file.metadata.get(key)!r:.200}, not {value!r:.200}")
    if len(file.metadata) != len(metadata):
        raise FormatError(f"{path}: {len(file.metadata)} keys read back, {len(metadata)} written")
    with path.open("rb") as f:
        for t in file.tensors.values():
            if file_crc(f, t.offset, t.n_bytes) != checksums[t.name]:
                raise FormatError(f"{path}: tensor {t.name} read back is not what was written: is the disk failing?")


def _same(kind: str, written: Any, read: Any) -> bool:
    if kind.startswith("f32"):
        return np.array_equal(np.asarray(written, np.float32), np.asarray(read, np.float32))
    return bool(list(written) == read if kind.endswith("[]") else written == read)


def file_crc(f: BinaryIO, offset: int, n_bytes: int) -> int:
    """CRC-32 of a part of an open file."""
    f.seek(offset)
    crc = 0
    while n_bytes > 0:
        part = f.read(min(n_bytes, _READ_BYTES))
        if not part:
            break
        crc, n_bytes = zlib.crc32(part, crc), n_bytes - len(part)
    return crc


def publish(files: Mapping[Path, Path]) -> None:
    """Give finished temporary files their final names, all or none as far as the file system allows.

    Args:
        files: temporary path -> final path, in one directory.

    Raises:
        ConfigError: a file cannot be renamed.
    """
    done: list[Path] = []
    existed = {final for final in files.values() if final.exists()}
    for temporary, final in files.items():
        with writing(final):
            try:
                temporary.replace(final)
                done.append(final)
            except OSError:
                for path in done:
                    if path not in existed:
                        path.unlink(missing_ok=True)
                raise
    for directory in {final.parent for final in files.values()}:
        _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    with suppress(OSError):  # not possible everywhere (Windows), and the data itself is on the disk
        fd = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What fails of the system's while a file is written, as a ConfigError that names the file."""
    try:
        yield
    except OSError as e:
        full = e.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
        hint = "the disk is full; free some space or choose another directory" if full else e.strerror or str(e)
        raise ConfigError(f"{path} cannot be written: {hint}") from e
