"""Small files of text and JSON, and lists for messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyvllama.errors import CheckpointError

__all__ = ["json_object", "listing", "read_text"]


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


def json_object(path: Path | str, text: str | bytes) -> dict[str, Any]:
    """The JSON object that `text` is; a CheckpointError that names `path` where it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path} holds no valid JSON: {e}") from e
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, but it must be a JSON object")
    return value
