"""A picture's bytes from an http(s) address, within limits that a hostile server cannot stretch.

http.client instead of a larger library, because two promises need the socket itself: one deadline for everything that
is read, and a connection to exactly the address that was checked. Proxies of the environment are not used.
"""

import base64
import functools
import http.client
import io
import ipaddress
import re
import socket
import ssl
import time
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from pyvllama.errors import ImageFetchRefused, ImageTooLarge
from pyvllama.image.limits import ImageLimits

__all__ = ["fetch", "shown_url"]

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = {301, 302, 303, 307, 308}
_CHUNK_BYTES = 64 * 1024
_URL_CHARACTERS = "%/:=&?~+!$,;'@()*[]"  # beyond letters, digits and _.-: what may stay as it is


def shown_url(url: str) -> str:
    """An address for messages: without user name, password and query, which may be secret, and not too long."""
    text = re.sub(r"//[^/@?#]*@", "//", re.sub(r"[?#].*", "", url, flags=re.DOTALL), count=1)
    text = re.sub(r"[\x00-\x20\x7f]", "�", text)
    return text if len(text) <= 100 else f"{text[:60]}…{text[-35:]}"


def fetch(url: str, limits: ImageLimits) -> bytes:
    """Download `url`.

    Raises:
        ImageFetchRefused: if it is no http(s) address, may not be contacted, does not answer in time, or answers with
            anything but a complete 200.
        ImageTooLarge: if it holds more than `limits.max_bytes` bytes.
    """
    deadline = time.monotonic() + limits.timeout_s
    here = url
    for _ in range(limits.max_redirects + 1):
        try:
            answer = _get(here, limits, deadline)
        except TimeoutError as e:
            raise ImageFetchRefused(
                f"{shown_url(here)} did not deliver the picture within {limits.timeout_s:g} seconds"
            ) from e
        except ssl.SSLError as e:
            raise ImageFetchRefused(f"{shown_url(here)} has no trustworthy TLS certificate or protocol: {e}") from e
        except (OSError, ValueError, http.client.HTTPException) as e:  # ValueError: a name that no resolver takes
            reason = str(e) or type(e).__name__
            raise ImageFetchRefused(f"{shown_url(here)} could not be fetched: {reason}") from e
        if isinstance(answer, bytes):
            return answer
        try:
            here = urljoin(here, answer.target)
        except ValueError as e:
            raise ImageFetchRefused(f"{shown_url(here)} redirects to no valid address: {e}") from e
    raise ImageFetchRefused(f"{shown_url(url)} redirects more than {limits.max_redirects} times")


class _Redirect:
    def __init__(self, target: str) -> None:
        self.target = target


class _DeadlineReader(io.RawIOBase):
    """Reads a socket; every wait ends at the same deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        self._sock.settimeout(_remaining(self._deadline))
        return self._sock.recv_into(buffer)


class _Wire:
    """The part of a socket that http.client uses. Its owner closes the socket."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(_remaining(self._deadline))
        self._sock.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineReader(self._sock, self._deadline), _CHUNK_BYTES)

    def close(self) -> None:
        pass


def _remaining(deadline: float) -> float:
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the deadline has passed")
    return seconds


def _get(url: str, limits: ImageLimits, deadline: float) -> bytes | _Redirect:
    """One request, one answer."""
    parts, host, port = _parse(url)
    netloc = (f"[{host}]" if ":" in host else host) + ("" if port == _PORTS[parts.scheme] else f":{port}")
    headers = {
        "Host": netloc,
        "User-Agent": "pyvllama",
        "Accept": "image/png,image/jpeg,image/webp,image/gif,image/bmp",
        "Accept-Encoding": "identity",  # a picture is compressed already, and unpacking is a way around the byte limit
        "Connection": "close",
    }
    if parts.username is not None:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(secret.encode()).decode()
    target = quote(parts.path or "/", safe=_URL_CHARACTERS)
    if parts.query:
        target += "?" + quote(parts.query, safe=_URL_CHARACTERS)

    with _connect(host, port, limits, deadline) as plain, _secured(plain, parts.scheme, host, deadline) as sock:
        connection = http.client.HTTPConnection(host, port)
        connection.sock = _Wire(sock, deadline)
        connection.request("GET", target, headers=headers)
        with connection.getresponse() as response:
            if response.status in _REDIRECTS and (location := response.headers["Location"]):
                return _Redirect(location)
            if response.status != http.client.OK:
                raise ImageFetchRefused(f"{shown_url(url)} answers {response.status} {response.reason}, not a picture")
            return _read_body(response, url, limits)


def _parse(url: str) -> tuple[SplitResult, str, int]:
    """Split an address; returns its parts, the host in ASCII, the port."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna").decode()
    except ValueError as e:  # UnicodeError included
        raise ImageFetchRefused(f"{shown_url(url)} is no valid address: {e}") from e
    if parts.scheme not in _PORTS:
        raise ImageFetchRefused(
            f"{shown_url(url)} is not fetched: only http and https addresses are. Give a file by its path"
        )
    if not host:
        raise ImageFetchRefused(f"{shown_url(url)} is no valid address: it names no host")
    return parts, host, port or _PORTS[parts.scheme]


def _connect(host: str, port: int, limits: ImageLimits, deadline: float) -> socket.socket:
    """Connect to the first address of `host` that may be contacted and answers."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    error: OSError | None = None
    for i, (family, kind, protocol, _, address) in enumerate(found):
        if limits.check_address is not None:
            refusal = limits.check_address(ipaddress.ip_address(str(address[0]).partition("%")[0]))
            if refusal is not None:
                # where the name points to is not told: it may be a name of an inner network
                raise ImageFetchRefused(f"{host} is not contacted: its address {refusal}")
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_remaining(deadline) / (len(found) - i))  # a silent address leaves time for the next one
            sock.connect(address)
        except OSError as e:
            sock.close()
            error = e
        else:
            return sock
    raise error or OSError(f"{host} has no address")


def _secured(sock: socket.socket, scheme: str, host: str, deadline: float) -> socket.socket:
    if scheme == "http":
        return sock
    sock.settimeout(_remaining(deadline))
    return _tls_context().wrap_socket(sock, server_hostname=host)


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """The system's certificate authorities, and certifi's: some Python installations know none of their own."""
    import certifi  # noqa: PLC0415 (10 ms that only https costs)

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _read_body(response: http.client.HTTPResponse, url: str, limits: ImageLimits) -> bytes:
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ImageFetchRefused(f"{shown_url(url)} sends {encoding}-compressed data although none was asked for")
    length = response.length
    too_large = f"{shown_url(url)} holds more than the limit of {limits.max_bytes} bytes: use a smaller picture"
    if length is not None and length > limits.max_bytes:
        raise ImageTooLarge(too_large)
    body = bytearray()
    while chunk := response.read(_CHUNK_BYTES):
        body += chunk
        if len(body) > limits.max_bytes:
            raise ImageTooLarge(too_large)
    if length is not None and len(body) < length:
        raise ImageFetchRefused(f"{shown_url(url)} broke off after {len(body)} of {length} bytes: try again")
    return bytes(body)
