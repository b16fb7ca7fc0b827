"""Files of chats and texts, for calibration and evaluation: read, checked, pictures found.

`.jsonl`: a chat a line, `{"messages": [...]}` in OpenAI's shape (their form for fine-tuning) or the list of messages
itself. Pictures are paths relative to the file, http(s) addresses or data: URIs. Anything else is plain text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyvllama.errors import ConfigError, PromptError
from pyvllama.messages import read_messages, read_tools

__all__ = ["Chat", "Text", "read_chats"]

_MAX_BYTES = 1 << 30
_CHATS_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True, eq=False)
class Chat:
    """A conversation.

    Attributes:
        messages: OpenAI's; pictures on this machine by absolute path.
        tools: OpenAI's function descriptions, or None.
        where: file and line, for messages.
    """

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    where: str


@dataclass(frozen=True, eq=False)
class Text:
    """A plain text, as long as it is.

    Attributes:
        text: not empty.
        where: its file.
    """

    text: str
    where: str


def read_chats(paths: Sequence[str | Path]) -> list[Chat | Text]:
    """Read files; everything that can be checked without a model is.

    Raises:
        ConfigError: no files, or one that does not exist or cannot be read.
        PromptError: a file that is empty, or a line that is no conversation or names a picture that is not there; says
            which file and line.
    """
    if not paths:
        raise ConfigError("no dataset is given: name a .jsonl file of chats or a text file")
    found: list[Chat | Text] = []
    for path in map(Path, paths):
        text = _read(path)
        if path.suffix.lower() in _CHATS_SUFFIXES:
            lines = ((i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip())
            chats = [_chat(line, path.parent, f"{path}:{i}") for i, line in lines]
            if not chats:
                raise PromptError(f'{path} holds no chats: expected lines like {{"messages": [...]}}')
            found += chats
        elif not text.strip():
            raise PromptError(f"{path} is empty")
        else:
            found.append(Text(text, str(path)))
    return found


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path} has {path.stat().st_size} bytes, the limit is {_MAX_BYTES}: use a part of it")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise PromptError(f"{path} is no UTF-8 text (byte {e.start})") from e
    except (OSError, ValueError) as e:
        raise ConfigError(f"{path} cannot be read: {getattr(e, 'strerror', None) or e}") from e


def _chat(line: str, folder: Path, where: str) -> Chat:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise PromptError(f"{where}: this is no JSON: {e}") from e
    tools = None
    if isinstance(value, dict):
        if "messages" not in value:
            raise PromptError(f'{where}: the object has no "messages"')
        value, tools = value["messages"], value.get("tools")
    if not isinstance(value, list):
        raise PromptError(f'{where}: expected {{"messages": [...]}} or a list of messages')
    try:
        read_messages(value)
        tools = read_tools(tools)
        return Chat([_with_paths(m, folder, f"messages[{i}]") for i, m in enumerate(value)], tools, where)
    except PromptError as e:
        raise PromptError(f"{where}: {e}") from e
    except RecursionError as e:
        raise PromptError(f"{where}: the messages are nested too deeply") from e


def _with_paths(message: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """A message whose pictures are found from anywhere."""
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    parts = [_part(part, folder, f"{where}.content[{k}]") for k, part in enumerate(content)]
    return {**message, "content": parts}


def _part(part: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    if part["type"] == "image_url":
        url = part["image_url"]
        url = url["url"] if isinstance(url, Mapping) else url
        return {"type": "image_url", "image_url": {"url": _source(url, folder, where)}}
    if part["type"] == "image":
        if not isinstance(part["image"], str):
            raise PromptError(f"{where}: a picture in a file of chats is a path, an address or a data: URI")
        return {"type": "image_url", "image_url": {"url": _source(part["image"], folder, where)}}
    return dict(part)


def _source(url: str, folder: Path, where: str) -> str:
    try:
        is_address = urlsplit(url).scheme.lower() in ("http", "https", "data", "file", "ftp")
        path = folder / Path(url).expanduser()
        if is_address or path.is_file():
            return url if is_address else str(path.absolute())
    except (OSError, ValueError, RuntimeError):  # a name too long, or with a NUL; a home of nobody
        pass
    raise PromptError(f"{where}: there is no picture file {url[:200]!r} beside the chats")
