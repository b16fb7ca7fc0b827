"""Servers with the bundled pocket model, on real sockets and without."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from ollama_server import NAME
from ollama_server import serving as ollama_serving
from shell import SMALL, Running, serving, shell, wait_until

from pyvllama.server.app import create_app
from pyvllama.server.settings import Settings


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


@pytest.fixture
def ask() -> Iterator[Callable[..., Any]]:
    """ask(pool=None, **settings) -> a client of `shell`, the application without a model."""
    from starlette.testclient import TestClient

    with contextlib.ExitStack() as stack:

        def make(pool: Any = None, **settings: Any) -> Any:
            app = shell(pool, **settings)
            return stack.enter_context(TestClient(app, base_url="http://localhost:8080", raise_server_exceptions=False))

        yield make


@pytest.fixture
def listen() -> Iterator[Callable[..., Running]]:
    """listen(pool=None, **settings) -> `shell` on a real socket."""
    with contextlib.ExitStack() as stack:

        def make(pool: Any = None, **settings: Any) -> Running:
            app = shell(pool, **{"port": 0, **settings})
            return stack.enter_context(serving(app.state.settings, app=app))

        yield make


# --- Ollama's API ---


@pytest.fixture(scope="module")
def ollama_server() -> Iterator[Running]:
    """A server whose pocket model is called llama3.2-vision; what lies in caches is not seen."""
    with ollama_serving(aliases=(NAME,)) as running:
        yield running


@pytest.fixture
def ollama_client(ollama_server: Running) -> Iterator[ollama.Client]:
    """Ollama's own client of it."""
    with ollama.Client(host=ollama_server.url) as client:
        yield client


@pytest.fixture(scope="session")
def picture(pocket_checkpoint: Path) -> Path:
    """A yellow ring and an orange triangle."""
    return pocket_checkpoint / "samples" / "01_square.png"


@pytest.fixture(scope="session")
def other_picture(pocket_checkpoint: Path) -> Path:
    """A yellow cross, a pink diamond and a pink heart."""
    return pocket_checkpoint / "samples" / "02_wide.png"
