"""A file of large arrays that is believed only if all of it is as it was written.

Layout, numbers little-endian::

    magic               8 bytes, the kind of file
    header size         uint32
    header              JSON object in UTF-8; its "sections" are the sizes of what follows, in bytes
    SHA-256             of magic, size and header
    section, SHA-256    once for each

Written under a name of its own and renamed, so that no reader ever sees a part of one. Readable by its owner alone:
what is in there tells of pictures and conversations.
"""

import contextlib
import hashlib
import json
import os
import stat
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pyvllama.errors import FormatError

__all__ = ["SealedFile", "Section", "sealed_size", "write_sealed"]

Section = tuple[int, Callable[[], npt.NDArray[np.uint8]]]
"""A section to be written: its size in bytes, and what gives its bytes, called once."""

_MAX_HEADER_BYTES = 16 << 20
_DIGEST_BYTES = 32
_PREFIX = struct.Struct("<8sI")


def _header(magic: bytes, header: Mapping[str, Any], sections: Sequence[Section]) -> bytes:
    text = json.dumps({**header, "sections": [n for n, _ in sections]}, ensure_ascii=False).encode()
    head = _PREFIX.pack(magic, len(text)) + text
    return head + hashlib.sha256(head).digest()


def sealed_size(magic: bytes, header: Mapping[str, Any], sections: Sequence[Section]) -> int:
    """Bytes that the file will have."""
    return len(_header(magic, header, sections)) + sum(n + _DIGEST_BYTES for n, _ in sections)


def write_sealed(
    path: Path, magic: bytes, header: Mapping[str, Any], sections: Sequence[Section], *, durable: bool
) -> None:
    """Write a file, in place of one of that name if there is one.

    Args:
        path: in an existing directory. Until it is complete the file is called `.NAME.XXXXXXXX.tmp` there.
        magic: 8 bytes.
        header: what JSON can hold; not "sections".
        sections: one is in memory at a time.
        durable: whether it must survive a power cut; costs the time that the disk takes.

    Raises:
        OSError: as the system says; nothing is left of the new file, and the old one is as it was.
    """
    descriptor, work = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as f:
            f.write(_header(magic, header, sections))
            for n_bytes, read in sections:
                data = read()
                if data.nbytes != n_bytes:
                    raise ValueError(f"a section of {n_bytes} bytes has {data.nbytes}")
                f.write(data.data)
                f.write(hashlib.sha256(data.data).digest())
            if durable:
                f.flush()
                os.fsync(f.fileno())
        Path(work).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(work).unlink()
        raise


class SealedFile:
    """A file that `write_sealed` wrote, opened. A context manager. Not thread-safe.

    Args:
        path: the file. Links are followed; what is no regular file is refused.
        magic: the kind that it must be.

    Attributes:
        header: the JSON object.
        sizes: of the sections, in bytes.

    Raises:
        FormatError: it is of another kind, damaged or cut off.
        OSError: it cannot be opened or read.
    """

    def __init__(self, path: Path, magic: bytes) -> None:
        self.path = path
        # O_NONBLOCK: opening a pipe must not wait for its writer
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            os.close(descriptor)
            raise self.error("this is no regular file")
        self._file: BinaryIO = os.fdopen(descriptor, "rb", buffering=0)
        try:
            self._read_header(magic, info.st_size)
        except BaseException:
            self._file.close()
            raise

    def _read_header(self, magic: bytes, file_size: int) -> None:
        prefix = self._take(min(_PREFIX.size, file_size))
        if prefix[: len(magic)] != magic:
            raise self.error("this is a file of another kind")
        if len(prefix) < _PREFIX.size:
            raise self.error("it is cut off")
        _, n = _PREFIX.unpack(prefix)
        if n > min(_MAX_HEADER_BYTES, file_size):
            raise self.error("it is damaged or cut off: its header is longer than it can be")
        text = self._take(n)
        if hashlib.sha256(prefix + text).digest() != self._take(_DIGEST_BYTES):
            raise self.error("it is damaged: its header has another checksum")
        try:
            header = json.loads(text)
        except (ValueError, RecursionError) as e:
            raise self.error("its header is no JSON") from e
        sizes = header.get("sections") if isinstance(header, dict) else None
        if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
            raise self.error("its header names no sections")
        whole = _PREFIX.size + n + _DIGEST_BYTES + sum(size + _DIGEST_BYTES for size in sizes)
        if whole != file_size:
            raise self.error(f"it has {file_size} bytes and should have {whole}: it is damaged or cut off")
        self.header: dict[str, Any] = header
        self.sizes: tuple[int, ...] = tuple(sizes)
        self._start = _PREFIX.size + n + _DIGEST_BYTES

    def section(self, i: int) -> npt.NDArray[np.uint8]:
        """uint8 [n_bytes]: the i-th section.

        Raises:
            FormatError: it is damaged. OSError: it cannot be read.
        """
        self._file.seek(self._start + sum(size + _DIGEST_BYTES for size in self.sizes[:i]))
        data = np.empty(self.sizes[i], np.uint8)
        self._fill(data)
        if hashlib.sha256(data.data).digest() != self._take(_DIGEST_BYTES):
            raise self.error(f"it is damaged: section {i} has another checksum")
        return data

    def error(self, said: str) -> FormatError:
        """An error that names the file."""
        return FormatError(f"{self.path}: {said}")

    def _take(self, n: int) -> bytes:
        data = np.empty(n, np.uint8)
        self._fill(data)
        return data.tobytes()

    def _fill(self, data: npt.NDArray[np.uint8]) -> None:
        view, done = data.data, 0
        while done < len(view):
            n = self._file.readinto(view[done:])  # type: ignore[attr-defined]
            if not n:
                raise self.error("it is cut off")
            done += n

    def __enter__(self) -> "SealedFile":
        return self

    def __exit__(self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()
