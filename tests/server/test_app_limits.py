"""Bodies over the limit, told beforehand or not."""

import json
import socket

import psutil
import pytest

LIMIT = 10_000


@pytest.fixture
def running(listen):
    return listen(max_body_bytes=LIMIT)


def chunks(n_bytes, size=1000):
    for _ in range(n_bytes // size):
        yield b"x" * size


def test_up_to_the_limit(running):
    for body in (b"x" * LIMIT, chunks(LIMIT)):
        assert running.client.post("/v1/size", content=body).json() == {"n": LIMIT}


@pytest.mark.parametrize("path", ["/v1/size", "/v1/echo", "/api/size", "/api/echo", "/v1/nothing"])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_over_the_limit(running, path, is_chunked):
    """An endpoint that reads the body itself, and one for which FastAPI does."""
    body = chunks(LIMIT + 1000) if is_chunked else b"x" * (LIMIT + 1)
    response = running.client.post(path, content=body, headers={"Content-Type": "application/json"})
    if path == "/v1/nothing" and is_chunked:
        assert response.status_code == 404, "nobody read it"
        return
    assert response.status_code == 413
    error = response.json()["error"]
    message = error if path.startswith("/api") else error["message"]
    assert f"over the limit of {LIMIT} bytes" in message
    assert running.client.post("/v1/size", content=b"").json() == {"n": 0}, "the server goes on"


def test_a_body_that_is_only_announced(running):
    """Refused before a byte of it has come."""
    with socket.create_connection(("127.0.0.1", running.server.port), timeout=10) as sock:
        sock.sendall(b"POST /v1/size HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
        assert sock.recv(4096).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "9" * 30, "9" * 5000, "1, 2", "١"])
def test_lengths_that_are_none(running, length):
    with socket.create_connection(("127.0.0.1", running.server.port), timeout=10) as sock:
        request = f"POST /v1/size HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        sock.sendall(request.encode())
        assert sock.recv(4096)[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 413 ")
    assert running.client.get("/health").status_code == 200


def test_endless_chunks(running):
    """The answer is there while the client still sends; what comes after is thrown away, not kept."""
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", running.server.port), timeout=10) as sock:
        sock.sendall(b"POST /v1/size HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + piece)
        assert sock.recv(4096).startswith(b"HTTP/1.1 413 ")
        before = psutil.Process().memory_info().rss
        for _ in range(1600):  # 100 MiB
            sock.sendall(piece)
        assert psutil.Process().memory_info().rss - before < 20 << 20


def test_deeply_nested_json(running):
    """Refused, whatever the parser makes of it."""
    body = b'{"name": ' + b"[" * 4000 + b"]" * 4000 + b"}"
    response = running.client.post("/v1/echo", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    json.loads(response.content)
