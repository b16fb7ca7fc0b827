"""No request is larger than the server wants, whether it tells its size beforehand or not."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pyvllama.server.error_response import error_response

__all__ = ["BodyLimit"]


class BodyLimit:
    """ASGI middleware: 413 for bodies over `max_bytes`, by their Content-Length or, chunked, while they come in."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        too_large = f"the request's body is over the limit of {self._max_bytes} bytes: use smaller or fewer pictures"
        lengths = Headers(scope=scope).getlist("content-length")
        if any(not n.isascii() or not n.isdigit() for n in lengths):
            await error_response(scope["path"], 400, "Content-Length is no number")(scope, receive, send)
            return
        if any(int(n) > self._max_bytes for n in lengths if len(n) < 20) or any(len(n) >= 20 for n in lengths):
            await error_response(scope["path"], 413, too_large)(scope, receive, send)
            return
        n_bytes = 0

        async def counted() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > self._max_bytes:
                raise HTTPException(413, too_large)  # passes through whatever reads the body, to the error handler
            return message

        await self.app(scope, counted, send)
