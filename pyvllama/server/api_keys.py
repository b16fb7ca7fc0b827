"""Who may use the server: those who know a key."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pyvllama.server.error_response import error_response

__all__ = ["OPEN_PATHS", "OPEN_PREFIXES", "ApiKeys"]

OPEN_PATHS = frozenset({"/", "/health", "/v1/health"})
"""What is answered without a key: health, and the page, which asks for the key itself and holds no secrets."""
OPEN_PREFIXES = ("/page/",)
"""The page's static files."""


class ApiKeys:
    """ASGI middleware: `Authorization: Bearer KEY` or `x-api-key: KEY`, else 401.

    Comparing takes the same time for every wrong key: digests of equal length are compared, always with all keys.

    Args:
        app: what is behind it.
        keys: each opens everything; without any, nothing is asked.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self.app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or not self._digests or is_open(scope) or self._is_known(_given(scope)):
            await self.app(scope, receive, send)
            return
        response = error_response(
            scope["path"],
            401,
            "an API key is needed: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await response(scope, receive, send)

    def _is_known(self, given: bytes) -> bool:
        digest = _digest(given)
        found = False
        for key in self._digests:
            found |= hmac.compare_digest(digest, key)
        return found


def is_open(scope: Scope) -> bool:
    """Whether a request may be made without a key: reading the page or the health."""
    path = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (path in OPEN_PATHS or path.startswith(OPEN_PREFIXES))


def _given(scope: Scope) -> bytes:
    headers = Headers(scope=scope)
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = headers.get("x-api-key", "")
    return key.strip().encode("latin-1")  # as the headers were decoded


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
