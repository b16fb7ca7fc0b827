"""Server-sent events."""

import json
import logging
from collections.abc import AsyncIterator, Iterable
from typing import Any

from pyvllama.errors import VllamaError
from pyvllama.server.openai.errors import error_object

__all__ = ["DONE", "PING", "PING_S", "SSE", "event", "log_unless_ours", "or_error", "with_usage_null"]

SSE = "text/event-stream"
PING_S = 10.0
"""Silence after which a comment is sent: an image may take minutes, some proxies and clients wait for one at most."""

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

_log = logging.getLogger("pyvllama")


def event(data: Any, name: str | None = None) -> bytes:
    """One event; JSON data is one line."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def or_error(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events; if something goes wrong on the way, one that says so is the last."""
    try:
        async for piece in events:
            yield piece
    except Exception as e:
        log_unless_ours(e)
        yield event({"error": error_object(e)})


def log_unless_ours(error: Exception) -> None:
    """What the client is not told, the log has."""
    if not isinstance(error, VllamaError):
        _log.error("a stream failed", exc_info=error)


def with_usage_null(objects: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's mark of a stream whose last object has the usage."""
    return [{**found, "usage": None} for found in objects]
