"""Server-sent events."""

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, aclosing
from typing import Any

from pydantic_core import to_json

from pyvllama.errors import VllamaError
from pyvllama.server.answer_stream import AnswerStream
from pyvllama.server.openai.errors import error_object

__all__ = ["DONE", "PING", "PING_S", "begin_stream", "event", "log_unless_ours", "or_error", "with_usage_null"]

PING_S = 10.0
"""Silence after which a comment is sent: an image may take minutes, some proxies and clients wait for one at most."""

PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"

logger = logging.getLogger("pyvllama.server")


def event(data: Any, name: str | None = None) -> bytes:
    """One event; JSON data is one line."""
    head = f"event: {name}\n".encode() if name else b""
    return b"%bdata: %b\n\n" % (head, to_json(data))  # several times faster than json.dumps: one for each token


def begin_stream(events: AsyncGenerator[bytes, None], stack: AsyncExitStack) -> AnswerStream:
    """A response of these events. It takes over what the stack holds, and closes it after them."""
    stack.push_async_callback(events.aclose)
    return AnswerStream(events, stack.pop_all(), "text/event-stream")


async def or_error(events: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """The events; if something goes wrong on the way, one that says so is the last. Closes them with itself."""
    async with aclosing(events):
        try:
            async for piece in events:
                yield piece
        except Exception as e:
            log_unless_ours(e)
            yield event({"error": error_object(e)})


def log_unless_ours(error: Exception) -> None:
    """What the client is not told, the log has."""
    if not isinstance(error, VllamaError):
        logger.error("a stream failed", exc_info=error)


def with_usage_null(objects: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI's mark of a stream whose last object has the usage."""
    return [{**found, "usage": None} for found in objects]
