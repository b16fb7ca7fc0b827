"""A session in a file: the KV cache, what stands at each position, and the images, so that it goes on elsewhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyvllama._runtime import native
from pyvllama.errors import ConfigError, ContextOverflow, FormatError
from pyvllama.image_store import n_image_parts, read_states, states_sections
from pyvllama.kv_state import check_kv_state, kv_state_bytes
from pyvllama.sealed_file import SealedFile, Section, write_sealed
from pyvllama.session import Cell, Session
from pyvllama.vision_cache import VisionCache

__all__ = ["load_session", "save_session"]

_MAGIC = b"PVLSESSN"
_FORMAT = 1


def _identity(session: Session) -> dict[str, Any]:
    """What must be equal for a saved session to go on: key of the header -> (value)."""
    model = session.context.model
    return {
        "format": _FORMAT,
        "llama_cpp": native.llama_cpp_commit,
        "text": model.text_fingerprint,
        "images": model.image_fingerprint,
        "kv_type": session.context.kv_type,
    }


_DIFFERENCES = {  # key of the header -> what it means that it differs
    "format": "it was saved by another release of pyvllama, in a format that this one does not know",
    "llama_cpp": "it was saved with another release of llama.cpp",
    "text": "it was saved with another text model, or the same in another quantization",
    "images": "it was saved with another mmproj, other preprocessing, another cross_kv_type, or on another kind of "
    "device",
    "kv_type": "it was saved with another kv_type",
}


def save_session(path: str | Path, session: Session, images: VisionCache) -> None:
    """Write a session to a file, which only its owner can read.

    Args:
        path: replaced at once if it exists, when all is written.
        session: not in use elsewhere meanwhile.
        images: the cache that its images are from.

    Raises:
        ConfigError: the file cannot be written.
        BackendError: the KV cache or an image cannot be read.
    """
    cells = session.cells
    pictures: dict[str, dict[str, Any]] = {}
    sections: list[Section] = []
    for position, cell in enumerate(cells):
        if cell.image is None:
            continue
        key = images.key_of(cell.image).hex()
        if key not in pictures:  # else the same picture again, perhaps encoded anew: to the same bits
            pictures[key] = {"key": key, "n_tokens": cell.image.n_tokens, "positions": []}
            sections += states_sections(cell.image)
        pictures[key]["positions"].append(position)
    tokens = np.array([cell.token for cell in cells], "<i4").view(np.uint8)
    state = session.kv_state()
    header = {
        **_identity(session),
        "n_ctx": session.context.n_ctx,
        "n_cells": len(cells),
        "pictures": list(pictures.values()),
    }
    fixed: list[Section] = [(tokens.nbytes, lambda: tokens), (state.nbytes, lambda: state)]
    try:
        write_sealed(Path(path), _MAGIC, header, [*fixed, *sections], durable=True)
    except OSError as e:
        raise ConfigError(f"the session cannot be saved to {path}: {e.strerror or e}") from e


def load_session(path: str | Path, session: Session, images: VisionCache) -> int:
    """Put a saved session in place of what a session holds.

    Args:
        path: what `save_session` wrote, perhaps on another machine.
        session: of the same model; not in use elsewhere meanwhile. A file that is refused leaves it as it is, unless
            llama.cpp itself refuses the KV cache: then it is empty.
        images: gets the pictures, so that they need not be encoded again.

    Returns:
        Number of positions.

    Raises:
        FormatError: the file is no session, damaged, or of another model; says what differs.
        ContextOverflow: it has more positions than the context.
        BackendError: no memory.
    """
    try:
        with SealedFile(Path(path), _MAGIC) as file:
            return _load(file, session, images)
    except OSError as e:
        raise FormatError(f"{path}: no session can be read there: {e.strerror or e}") from e


def _load(file: SealedFile, session: Session, images: VisionCache) -> int:
    header, context = file.header, session.context
    model = context.model
    for name, value in _identity(session).items():
        if header.get(name) != value:
            raise file.error(f"this session cannot go on here: {_DIFFERENCES[name]}{_values(header.get(name), value)}")
    n = header.get("n_cells")
    if type(n) is not int or n < 0:
        raise file.error("its header says no number of positions")
    if n > context.n_ctx:
        raise ContextOverflow(
            f"{file.path}: the session has {n} positions, the context {context.n_ctx}: load the model with a larger "
            "n_ctx (--ctx-size)"
        )
    pictures = _pictures(file, n)
    n_parts = n_image_parts(model)
    kv_bytes = kv_state_bytes(n, int(model.hparams["text_n_layer_self"]), _kv_layer_bytes(session))
    if len(file.sizes) != 2 + n_parts * len(pictures) or file.sizes[:2] != (4 * n, kv_bytes):
        raise file.error(f"its sections are not those of {n} positions with {len(pictures)} pictures")
    tokens = file.section(0).view("<i4")
    known = max(model.tokenizer.n_tokens, model.image_token + 1)
    if np.any(tokens < 0) or np.any(tokens >= known):
        raise file.error(f"it has tokens that are none of the {known} of this model")
    state = file.section(1)
    try:
        check_kv_state(state, n)
    except FormatError as e:
        raise file.error(str(e)) from e
    at: dict[int, Any] = {}
    loaded = []
    for i, (key, n_tokens, positions) in enumerate(pictures):
        states = read_states(file, 2 + i * n_parts, n_tokens, model)
        loaded.append((key, states, positions))
    for key, states, positions in loaded:  # all are whole
        at |= dict.fromkeys(positions, images.put(key, states))
    if not session.restore([Cell(int(token), at.get(i)) for i, token in enumerate(tokens)], state):
        raise file.error(
            "llama.cpp refuses its KV cache: it was saved with flash_attn otherwise, or it is damaged; the session is "
            "empty now"
        )
    return n


def _values(found: object, expected: object) -> str:
    """Both, if they are short enough to tell a person something."""
    return f" ({found!r}, here it is {expected!r})" if len(repr(found)) + len(repr(expected)) < 40 else ""


def _kv_layer_bytes(session: Session) -> int:
    n_elements, n_bytes = native.type_size(session.context.kv_type)
    return sum(row // n_elements * n_bytes for row in session.context.model.kv_row_elements)


def _pictures(file: SealedFile, n_cells: int) -> list[tuple[bytes, object, Sequence[int]]]:
    """(key, image tokens as the file says, positions) of each picture.

    Raises:
        FormatError: they are not described as `save_session` does.
    """
    listed = file.header.get("pictures")
    if not isinstance(listed, list) or not all(isinstance(picture, dict) for picture in listed):
        raise file.error("its header names no pictures")
    found: list[tuple[bytes, object, Sequence[int]]] = []
    taken: set[int] = set()
    for picture in listed:
        key, positions = picture.get("key"), picture.get("positions")
        if not isinstance(key, str) or len(key) != 64 or not set(key) <= set("0123456789abcdef"):
            raise file.error("a picture has no key")
        if not isinstance(positions, list) or not positions:
            raise file.error("a picture has no positions")
        if any(type(p) is not int or not 0 <= p < n_cells for p in positions) or taken.intersection(positions):
            raise file.error(f"a picture is at positions that are not of the session or another's: {positions[:8]}")
        taken.update(positions)
        found.append((bytes.fromhex(key), picture.get("n_tokens"), positions))
    if len({key for key, _, _ in found}) != len(found):
        raise file.error("the same picture twice")
    return found
