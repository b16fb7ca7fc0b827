"""A conversation as one JSON file that works alone.

::

    {"format": "pyvllama chat", "version": 1, "model": "...", "saved": "2026-01-31T12:00:00+00:00",
     "options": {"temperature": 0.2},
     "messages": [{"role": "system", "content": "..."},
                  {"role": "user", "content": [{"type": "image", "sha256": "..."}, {"type": "text", "text": "..."}]},
                  {"role": "assistant", "content": "..."}],
     "pending": ["..."],
     "images": {"<sha256>": {"name": "photo.jpg", "data": "data:image/png;base64,..."}}}

A picture is stored once, as PNG, under the digest of its pixels (`pixel_digest`): what is loaded is what was seen, to
the last bit, wherever the file has gone.
"""

import base64
import io
import json
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pyvllama.cli.chat.conversation import Conversation, Question, Turn
from pyvllama.cli.chat.picture import Picture
from pyvllama.errors import ConfigError, ImageError, PromptError, VllamaError
from pyvllama.image.limits import ImageLimits
from pyvllama.image.source import load_image

__all__ = ["load_transcript", "save_transcript"]

_FORMAT = "pyvllama chat"
_VERSION = 1
_MAX_BYTES = 1 << 30
_LIMITS = ImageLimits(max_bytes=_MAX_BYTES, allow_files=False)  # PNG may be larger than the file it is from


def save_transcript(conversation: Conversation, path: Path, model: str) -> None:
    """Write a conversation; an older transcript of that name is replaced, no other file is.

    Args:
        conversation: what is to be kept.
        path: the file.
        model: the model's name, for the reader.

    Raises:
        ConfigError: there is another kind of file, or it cannot be written.
    """
    path = _expanded(path)
    if path.exists() and not _is_transcript(path):
        raise ConfigError(f"{path} exists and is no transcript: choose another name")
    pictures = {p.digest: p for p in (*conversation.pictures(), *conversation.pending)}
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "model": model,
        "saved": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "options": conversation.options,
        "messages": _messages(conversation),
        "pending": [p.digest for p in conversation.pending],
        "images": {digest: {"name": p.name, "data": _png(p)} for digest, p in pictures.items()},
    }
    work = path.with_name(f".{path.name[:100]}-{secrets.token_hex(4)}")
    try:
        with work.open("x", encoding="utf-8") as f:
            json.dump(content, f, ensure_ascii=False, indent=1)
            f.flush()
            os.fsync(f.fileno())
        work.replace(path)
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} cannot be written: {getattr(e, 'strerror', None) or e}") from e
    finally:
        with suppress(OSError, ValueError):
            work.unlink(missing_ok=True)


def load_transcript(path: Path, check_options: Callable[[Mapping[str, Any]], None]) -> tuple[Conversation, str]:
    """Read a conversation.

    Args:
        path: the file.
        check_options: raises ConfigError if sampling options are not right.

    Returns:
        The conversation and the name of the model it was had with.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
        PromptError: it is no transcript; says what is wrong in it.
    """
    path = _expanded(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size} bytes, the limit is {_MAX_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path} cannot be read: {getattr(e, 'strerror', None) or 'it is no UTF-8 text'}") from e
    except (ValueError, RecursionError) as e:
        raise PromptError(f"{path} is no transcript: {e}") from e
    try:
        return _Reader(value, check_options).read()
    except VllamaError as e:
        raise PromptError(f"{path}: {e}") from e


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except (OSError, RuntimeError) as e:
        raise ConfigError(f"{path} names no file: {e}") from e


def _is_transcript(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as f:
            head = f.read(200)
    except (OSError, ValueError):
        return False
    return not head or f'"format": "{_FORMAT}"' in head


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    if conversation.system:
        result.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        content: str | list[dict[str, str]] = turn.question.text
        if turn.question.pictures:
            images = [{"type": "image", "sha256": p.digest} for p in turn.question.pictures]
            content = [*images, {"type": "text", "text": turn.question.text}]
        result += [{"role": "user", "content": content}, {"role": "assistant", "content": turn.answer}]
    return result


def _png(picture: Picture) -> str:
    file = io.BytesIO()
    picture.image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


class _Reader:
    """Reads what may have been written by anybody."""

    def __init__(self, value: object, check_options: Callable[[Mapping[str, Any]], None]) -> None:
        self._value = _mapping(value, "the file")
        self._check_options = check_options
        self._pictures: dict[str, Picture] = {}

    def read(self) -> tuple[Conversation, str]:
        value = self._value
        if value.get("format") != _FORMAT:
            raise PromptError(f'this is no transcript: "format" is not {_FORMAT!r}')
        if value.get("version") != _VERSION:
            raise PromptError(f'"version" is {value.get("version")!r}, only {_VERSION} is known: update pyvllama')
        options = _mapping(value.get("options", {}), '"options"')
        self._check_options(options)
        for digest, entry in _mapping(value.get("images", {}), '"images"').items():
            self._pictures[digest] = _picture(digest, entry)
        result = Conversation(options=dict(options))
        messages = _list(value.get("messages"), '"messages"')
        system = bool(messages) and isinstance(messages[0], Mapping) and messages[0].get("role") == "system"
        if system:
            result.system = self._question(messages[0], "messages[0]", "system").text or None
        turns = messages[1:] if system else messages
        for i in range(0, len(turns), 2):
            where = [f"messages[{i + k + system}]" for k in (0, 1)]
            question = self._question(turns[i], where[0], "user")
            if i + 1 == len(turns):
                raise PromptError(f"{where[0]} has no answer")
            result.turns.append(Turn(question, self._question(turns[i + 1], where[1], "assistant").text))
        result.pending = [self._known(digest, '"pending"') for digest in _list(value.get("pending", []), '"pending"')]
        return result, str(value.get("model", ""))

    def _question(self, message: object, where: str, role: str) -> Question:
        """A message of any role; only a user's may have pictures."""
        message = _mapping(message, where)
        if message.get("role") != role:
            raise PromptError(f'{where} should have the role "{role}", not {message.get("role")!r}')
        content = message.get("content")
        if isinstance(content, str):
            return Question(content)
        texts, pictures = [], []
        for part in _list(content, f"{where}.content"):
            part = _mapping(part, f"{where}.content")  # noqa: PLW2901
            if part.get("type") == "text" and isinstance(part.get("text"), str):
                texts.append(part["text"])
            elif part.get("type") == "image" and role == "user":
                pictures.append(self._known(part.get("sha256"), where))
            else:
                raise PromptError(f"{where}.content has a part of the unknown type {part.get('type')!r}")
        return Question("".join(texts), tuple(pictures))

    def _known(self, digest: object, where: str) -> Picture:
        if not isinstance(digest, str) or digest not in self._pictures:
            raise PromptError(f'{where} names a picture that is not under "images": {str(digest)[:80]!r}')
        return self._pictures[digest]


def _picture(digest: str, entry: object) -> Picture:
    where = f"images[{digest[:80]!r}]"
    entry = _mapping(entry, where)
    data = entry.get("data")
    if not isinstance(data, str) or not data.startswith("data:"):
        raise PromptError(f"{where} has no data: URI")  # nothing is fetched on behalf of a file
    try:
        image = load_image(data, limits=_LIMITS)
    except ImageError as e:
        raise PromptError(f"{where}: {e}") from e
    picture = Picture(image, str(entry.get("name") or "a picture"))
    if picture.digest != digest:
        raise PromptError(f"{where} is another picture: its pixels have the digest {picture.digest}")
    return picture


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise PromptError(f"{where} should be a JSON object")
    return value


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise PromptError(f"{where} should be a JSON array")
    return value
