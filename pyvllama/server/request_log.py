"""One line for each request, with an id that the client sees too. What clients say is not in it."""

import contextlib
import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyvllama.server.error_response import error_response
from pyvllama.server.metrics import Metrics

__all__ = ["LogFormatter", "RequestLog", "log_fields", "set_up_logging"]

logger = logging.getLogger("pyvllama.server")

_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f\x7f-\x9f]+")
_FIELDS = "pyvllama.log"
_CLIENT_GONE = 499  # nginx's number for a client that left before it was answered
_MAX_TEXT = 2000  # of a string in a logged prompt


def log_fields(scope: Scope) -> dict[str, Any]:
    """Where a handler puts what should stand in its request's line: `log_fields(request.scope)["model"] = ...`."""
    found: dict[str, Any] = scope.setdefault(_FIELDS, {})
    return found


class RequestLog:
    """ASGI middleware, the outermost: request id, log line, counters, and an answer where the code behind it broke.

    A client may choose the id by `X-Request-Id` (up to 128 letters, digits and ._:/+=-); every response bears it.

    Args:
        app: what is behind it.
        metrics: counts requests by route and status.
        log_prompts: whether JSON bodies are logged, long strings (pictures) left out.
        max_bytes: bodies that are longer are not logged.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, log_prompts: bool = False, max_bytes: int = 1 << 24) -> None:
        self.app, self._metrics = app, metrics
        self._log_prompts, self._max_bytes = log_prompts, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._max_bytes if self._log_prompts else 0)
        scope.setdefault("state", {})["request_id"] = exchange.id
        failure: BaseException | None = None
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:  # nobody is left to be told
            pass
        except Exception as e:
            failure = e
            logger.exception("request %s failed", exchange.id, extra={"fields": {"id": exchange.id}})
            if exchange.status is not None:
                raise  # what was begun cannot be mended: the server breaks the connection off
            response = error_response(scope["path"], 500, f"the server failed; its log tells more ({exchange.id})")
            await response(scope, receive, exchange.send)
        finally:
            status = exchange.status or _CLIENT_GONE
            self._metrics.count_request(scope["method"], _route(scope), status, exchange.seconds)
            logger.info("request", extra={"fields": exchange.as_fields(status, failure)})


class _Exchange:
    """A request on its way: its id, what it cost, and the ASGI channels that note it."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_prompt_bytes: int) -> None:
        given = Headers(scope=scope).get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        self.status: int | None = None
        self._scope, self._receive, self._send = scope, receive, send
        self._began, self._first = time.monotonic(), 0.0
        self._n_in = self._n_out = 0
        self._max_prompt_bytes, self._prompt = max_prompt_bytes, bytearray()

    async def receive(self) -> Message:
        message = await self._receive()
        body = message.get("body", b"")
        self._n_in += len(body)
        if self._n_in <= self._max_prompt_bytes:
            self._prompt += body
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-Id"] = self.id
        elif message["type"] == "http.response.body":
            self._first = self._first or time.monotonic()
            self._n_out += len(message.get("body", b""))
        await self._send(message)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def as_fields(self, status: int, failure: BaseException | None) -> dict[str, Any]:
        """What the line says. No query: it may hold what is secret."""
        client = self._scope.get("client")
        fields = {
            "id": self.id,
            "client": client[0] if client else None,
            "method": self._scope["method"],
            "path": self._scope["path"],
            "status": status,
            "ms": round(1000 * self.seconds, 1),
            "first_ms": round(1000 * (self._first - self._began), 1) if self._first else None,
            "bytes_in": self._n_in,
            "bytes_out": self._n_out,
            "error": type(failure).__name__ if failure else None,
            **log_fields(self._scope),
        }
        if 0 < self._n_in <= self._max_prompt_bytes:
            with contextlib.suppress(ValueError, RecursionError):
                fields["request"] = _shortened(json.loads(self._prompt))
        return {k: v for k, v in fields.items() if v is not None}


def _route(scope: Scope) -> str:
    """The path as the application declares it: few of them, whatever clients ask for."""
    return str(getattr(scope.get("route"), "path", None) or "other")


def _shortened(value: Any) -> Any:
    if isinstance(value, str):
        is_picture = value.startswith("data:") or len(value) > _MAX_TEXT
        return f"<{len(value)} characters>" if is_picture else value
    if isinstance(value, list):
        return [_shortened(v) for v in value]
    if isinstance(value, dict):
        return {k: _shortened(v) for k, v in value.items()}
    return value


class LogFormatter(logging.Formatter):
    """A record as one line: `key=value` pairs or a JSON object; `fields` of the record are added."""

    def __init__(self, form: str = "text") -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback is one of its values."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        fields = {"time": now, "level": record.levelname.lower(), "event": record.getMessage()}
        fields |= getattr(record, "fields", {})
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str) if self._form == "json" else _logfmt(fields)


def _logfmt(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={_quoted(v)}" for k, v in fields.items())


def _quoted(value: Any) -> str:
    """A value as it is, or in quotation marks where it could be taken for something else: no value makes a line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def set_up_logging(form: str, level: int = logging.INFO) -> None:
    """Send the server's log to stderr, in this form; for programs, since a library leaves logging alone."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter(form))
    for name, lowest in (("pyvllama.server", level), ("uvicorn.error", max(level, logging.WARNING))):
        log = logging.getLogger(name)
        log.handlers[:], log.propagate = [handler], False
        log.setLevel(lowest)
