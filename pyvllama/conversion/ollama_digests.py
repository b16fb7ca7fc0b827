"""Checks the SHA-256 of Ollama's blobs while they are copied, so that nobody waits for it before or after."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from pyvllama.conversion.ollama_store import Blob
from pyvllama.conversion.output import OutputFile, OutputTensor
from pyvllama.conversion.typed_rows import Slices

__all__ = ["with_digests_checked"]

_HASH_BYTES = 1 << 22
"""Hashed at a time."""


def with_digests_checked(blobs: Sequence[Blob], files: Sequence[OutputFile]) -> list[OutputFile]:
    """The same files, whose writing fails if a blob is not what its name says.

    Hashing goes along with the tensors written, and is done before the last of them is.

    Args:
        blobs: what the files are made of.
        files: as they will be written, in that order.

    Raises:
        CheckpointError: (while writing) a blob is damaged.
    """
    tensors = [t for file in files for t in file.tensors]
    check = _Check(blobs, sum(file.n_bytes for file in files))

    def checked(t: OutputTensor) -> OutputTensor:
        return replace(t, slices=_followed(t.slices, check, first=t is tensors[0], last=t is tensors[-1]))

    return [replace(file, tensors=tuple(map(checked, file.tensors))) for file in files]


class _Check:
    """Hashes blobs little by little."""

    def __init__(self, blobs: Sequence[Blob], n_bytes: int) -> None:
        self.blobs = blobs
        self.ratio = sum(blob.size for blob in blobs) / max(1, n_bytes)
        """Bytes to hash for each byte written."""
        self.steps: Iterator[None] = iter(())
        self.due = 0.0

    def begin(self) -> None:
        self.steps, self.due = self._steps(), 0.0

    def follow(self, n_bytes: int) -> None:
        """Hash what is due after so many more bytes written."""
        self.due += n_bytes * self.ratio
        while self.due >= _HASH_BYTES:
            self.due -= _HASH_BYTES
            next(self.steps, None)

    def finish(self) -> None:
        for _ in self.steps:
            pass

    def _steps(self) -> Iterator[None]:
        for blob in self.blobs:
            sha = hashlib.sha256()
            for part in blob.parts(_HASH_BYTES):
                sha.update(part)
                yield
            blob.compare(sha.hexdigest())


def _followed(slices: Slices, check: _Check, *, first: bool, last: bool) -> Slices:
    def checked(n_threads: int) -> Iterator[NDArray[Any]]:
        if first:
            check.begin()
        for data in slices(n_threads):
            yield data
            check.follow(data.nbytes)
        if last:
            check.finish()

    return checked
