"""Servers with the bundled pocket model, on real sockets and without."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from pyvllama.server.app import create_app
from pyvllama.server.http_server import HttpServer, bind
from pyvllama.server.settings import Settings

SMALL = {"n_ctx": 2048, "n_threads": 1, "parallel": 4, "grace_s": 5.0}
READY_S = 60.0


@dataclass(frozen=True)
class Running:
    """A server in a thread of this process.

    Attributes:
        url: http://127.0.0.1:port
        app: its application, with `app.state.pool` and the like.
        server: its HttpServer; `server.stop()` begins to stop it.
        thread: where it runs.
        client: an httpx.Client with its address.
    """

    url: str
    app: Any
    server: HttpServer
    thread: threading.Thread
    client: httpx.Client


@contextlib.contextmanager
def serving(settings: Settings, pool: Any = None) -> Iterator[Running]:
    """A server until the end of the block, its model loaded if it can be."""
    app = create_app(settings, pool)
    with bind(settings.host, settings.port) as sock:
        server = HttpServer(app, sock)
        url = f"http://127.0.0.1:{server.port}"
        failure: list[BaseException] = []

        def run() -> None:
            try:
                server.listen()
            except BaseException as e:
                failure.append(e)

        thread = threading.Thread(target=run, name="server")
        thread.start()
        try:
            with httpx.Client(base_url=url, timeout=READY_S) as client:
                wait_until(lambda: app.state.ready.is_set() or failure)
                if failure:
                    raise failure[0]
                yield Running(url, app, server, thread, client)
        finally:
            server.stop()
            thread.join(settings.grace_s + 20)
            assert not thread.is_alive()


def wait_until(condition: Callable[[], object], seconds: float = READY_S) -> None:
    """Until it holds; fails when that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    """One server for all tests that only ask it: pocket model, 4 slots, no keys."""
    with serving(Settings(port=0, **SMALL)) as running:
        yield running


@pytest.fixture
def make_server() -> Iterator[Callable[..., Running]]:
    """make_server(pool=None, **settings) -> a server of its own, stopped after the test."""
    with contextlib.ExitStack() as stack:

        def make(pool: Any = None, **settings: Any) -> Running:
            return stack.enter_context(serving(Settings(**{**SMALL, "port": 0, **settings}), pool))

        yield make


@pytest.fixture(scope="session")
def app_client() -> Iterator[Any]:
    """An httpx client that calls the application directly; a stream arrives there in one piece."""
    from starlette.testclient import TestClient

    app = create_app(Settings(**SMALL))
    with TestClient(app, base_url="http://localhost") as client:
        wait_until(app.state.ready.is_set)
        yield client


@pytest.fixture
def make_client() -> Iterator[Callable[..., Any]]:
    """make_client(pool=None, **settings) -> the same, of an application of its own, not waiting for the model."""
    from starlette.testclient import TestClient

    with contextlib.ExitStack() as stack:

        def make(pool: Any = None, **settings: Any) -> Any:
            app = create_app(Settings(**{**SMALL, **settings}), pool)
            return stack.enter_context(TestClient(app, base_url="http://localhost"))

        yield make
