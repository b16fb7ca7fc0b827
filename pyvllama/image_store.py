"""Encoded images on disk: a picture that any process has encoded before is read instead of encoded again.

A directory with a file for each picture, which holds the keys and values of all cross-attention layers as they lie in
memory: 210 MB for four tiles of the 11B model. Processes share it without locks: files appear by renaming, each is
believed only if its checksums hold, and whichever cannot be used counts as not there and is written anew.
"""

import contextlib
import functools
import hashlib
import json
import logging
import platform
import re
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from pyvllama._runtime import llama_cpp, native
from pyvllama.errors import ConfigError, FormatError
from pyvllama.model import Model
from pyvllama.sealed_file import SealedFile, Section, sealed_size, write_sealed

__all__ = ["ImageStore", "n_image_parts", "read_states", "states_sections"]

_log = logging.getLogger("pyvllama")

_MAGIC = b"PVLIMAGE"
_FORMAT = 1
_NAME = re.compile(r"[0-9a-f]{64}\.states")
_UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.states\..*\.tmp")
_ABANDONED_S = 3600  # an unfinished file this old belongs to a process that died


def states_sections(states: Any) -> list[Section]:
    """The parts of an image's ImageStates, to be written."""
    return [(states.part_bytes(i), functools.partial(states.part, i)) for i in range(states.n_parts)]


def read_states(file: SealedFile, first: int, n_tokens: object, model: Model) -> Any:
    """ImageStates from the sections of a file.

    Args:
        file: where they are.
        first: the section of the first part.
        n_tokens: what the file says of the image.
        model: one with the image_fingerprint of that which made them.

    Raises:
        FormatError: they are no image of this model, or damaged. BackendError: no memory.
    """
    n_positions, n_tiles, n_elements = model.image_shape
    n_parts = n_image_parts(model)
    if type(n_tokens) is not int or n_tokens not in range(n_positions, n_tiles * n_positions + 1, n_positions):
        raise file.error(f"an image of {n_tokens!r} tokens, which this model knows not")
    sizes = tuple(_n_bytes(kind, n_tokens * n_elements) for kind in model.mmproj.part_types)
    if file.sizes[first : first + n_parts] != sizes:  # before they are read
        raise file.error(f"an image of {n_tokens} tokens is no image of this model")
    return model.mmproj.restore(n_tokens, [file.section(first + i) for i in range(n_parts)])


def _n_bytes(type_name: str, n_elements: int) -> int:
    block, n_bytes = native.type_size(type_name)
    return int(n_elements // block * n_bytes)


def n_image_parts(model: Model) -> int:
    """Sections of an image: keys and values of each cross-attention layer."""
    return 2 * len(model.hparams["cross_attention_layers"])


class ImageStore:
    """ImageStates in a directory, least recently used first out. Safe with other threads and processes on it.

    Args:
        model: what encodes. A picture is found again by a model of the same weights, preprocessing, cross_kv_type and
            device, under the same releases of the software that computes: only then are all bits the same.
        directory: made if it is missing, for its owner alone.
        max_bytes: size of all files; 0 keeps none.

    Raises:
        ConfigError: the directory cannot be made, or a negative size.
    """

    def __init__(self, model: Model, directory: str | Path, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ConfigError(f"image_cache_disk_bytes must be at least 0, not {max_bytes}")
        self._model = model
        self._directory = Path(directory).expanduser()
        self._max_bytes = max_bytes
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as e:
            raise ConfigError(f"the image cache {directory} cannot be made: {e.strerror or e}") from e
        self._maker = json.dumps([_FORMAT, model.image_fingerprint, *_software(model)]).encode()

    def path(self, key: bytes) -> Path:
        """Where a picture is kept.

        Args:
            key: digest of its pixels, see `VisionCache.key`.
        """
        return self._directory / f"{hashlib.sha256(self._maker + key).hexdigest()}.states"

    def get(self, key: bytes) -> Any | None:
        """The picture's ImageStates, or None if they are not there or cannot be used.

        Raises:
            BackendError: no memory for them on the device.
        """
        path = self.path(key)
        try:
            with SealedFile(path, _MAGIC) as file:
                if file.header.get("name") != path.name:
                    raise file.error("this is the file of another picture")
                if len(file.sizes) != n_image_parts(self._model):
                    raise file.error("this is no image of this model")
                states = read_states(file, 0, file.header.get("n_tokens"), self._model)
        except FileNotFoundError:
            return None
        except (OSError, FormatError) as e:
            _log.warning("an entry of the image cache is not used, the picture is encoded again: %s", e)
            return None
        with contextlib.suppress(OSError):
            path.touch()  # for those who look for the least recently used
        return states

    def put(self, key: bytes, states: Any) -> None:
        """Keep a picture; what then is over the size goes. A disk that is full or read-only is only logged."""
        path = self.path(key)
        header = {"name": path.name, "n_tokens": states.n_tokens}
        sections = states_sections(states)
        n_bytes = sealed_size(_MAGIC, header, sections)
        if n_bytes > self._max_bytes:
            return
        try:
            self._make_room(n_bytes, path)
            write_sealed(path, _MAGIC, header, sections, durable=False)
        except OSError as e:
            _log.warning("the picture is not kept in the image cache %s: %s", self._directory, e.strerror or e)

    def _make_room(self, n_bytes: int, path: Path) -> None:
        """Remove the least recently used entries until there is room for n_bytes under that name."""
        entries = []
        for entry in self._directory.iterdir():
            with contextlib.suppress(OSError):  # another process was faster, or it is not ours to remove
                info = entry.lstat()
                if _NAME.fullmatch(entry.name) and entry != path:
                    entries.append((info.st_mtime_ns, info.st_size, entry))
                elif _UNFINISHED.fullmatch(entry.name) and time.time() - info.st_mtime > _ABANDONED_S:
                    entry.unlink()
        held = sum(size for _, size, _ in entries)
        for _, size, entry in sorted(entries):
            if held + n_bytes <= self._max_bytes:
                return
            with contextlib.suppress(OSError):
                entry.unlink()
            held -= size


def _software(model: Model) -> tuple[str, ...]:
    """What else decides about the last bits of an encoded image."""
    features = llama_cpp.llama_print_system_info().decode(errors="replace")
    return (
        metadata.version("pyvllama"),
        metadata.version("pillow"),  # resizes
        native.llama_cpp_commit,
        platform.machine(),
        features,  # of the CPU, which choose the kernels
        model.mmproj.device,
        f"repack={model.repack}",
    )
