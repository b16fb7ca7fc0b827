"""Keeps strange web pages out: a browser on this machine reaches a server on localhost, whatever page it shows.

Two ways are closed. **A foreign page that asks directly** sends its `Origin`: it is answered 403 unless that origin is
allowed. (A request without a preflight, a form's say, would otherwise be carried out, only its answer kept from the
page.) **DNS rebinding**: the page's own name is made to point to 127.0.0.1; for the browser it then asks its own server
and the Origin check sees nothing strange. But the `Host` header still bears the strange name: only names of this
server are answered. IP addresses always are, since rebinding needs a name.
"""

import ipaddress
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from pyvllama.server.error_response import error_response
from pyvllama.server.settings import Settings

__all__ = ["HostCheck", "OriginCheck", "host_name"]


class HostCheck:
    """ASGI middleware: 403 for a `Host` header with a name that is not the server's.

    Checked where the server listens on this machine only, and wherever `allowed_hosts` are given. (Elsewhere its names
    are not known; there an API key keeps strangers out.)
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        names = {"localhost", settings.host, *settings.allowed_hosts}
        self._names = frozenset(name.strip("[]").lower().rstrip(".") for name in names)
        self._checks = settings.is_loopback or bool(settings.allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or not self._checks or self._is_ours(Headers(scope=scope).getlist("host")):
            await self.app(scope, receive, send)
            return
        response = error_response(
            scope["path"],
            403,
            "this server is not known by the name in the Host header; if it should be, start it with "
            "--allowed-host NAME (this check keeps web pages from reaching it by DNS rebinding)",
            code="host_not_allowed",
        )
        await response(scope, receive, send)

    def _is_ours(self, hosts: list[str]) -> bool:
        if not hosts:  # HTTP/1.0; no browser
            return True
        name = host_name(hosts[0])
        if len(hosts) > 1 or name is None:
            return False
        return name in self._names or name.endswith(".localhost") or _is_address(name)


class OriginCheck:
    """ASGI middleware: 403 for requests of web pages of another origin, unless it is in `cors_origins`.

    The server's own page has the origin that its Host header says.
    """

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self.app = app
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or self._may(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        response = error_response(
            scope["path"],
            403,
            "web pages of this origin may not use the server; to allow them start it with --cors-origin ORIGIN",
            code="origin_not_allowed",
        )
        await response(scope, receive, send)

    def _may(self, headers: Headers) -> bool:
        if "*" in self._origins:
            return True
        host = headers.get("host", "").lower()
        own = {f"{scheme}://{host}" for scheme in ("http", "https")}
        return all(o in self._origins or o.lower() in own for o in headers.getlist("origin"))


def host_name(host: str) -> str | None:
    """The name or address in a Host header, in small letters; None if it is none."""
    name, colon, port = host.strip().lower().rpartition(":")
    if not colon or (name.count(":") and not name.endswith("]")):  # no port: a bare name, or [::1]
        name, port = host.strip().lower(), "0"
    if not port.isascii() or not port.isdigit():
        return None
    if name.startswith("[") and name.endswith("]"):
        return name[1:-1] if _is_address(name[1:-1]) else None
    return name.rstrip(".") or None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
