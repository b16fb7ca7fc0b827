"""Servers for tests, and the application around an empty pool: what the shell does shows without a model."""

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from fastapi import Request
from pydantic import BaseModel
from starlette.responses import StreamingResponse

from pyvllama.chat_options import ChatOptions
from pyvllama.errors import ImageTooLarge, VllamaError
from pyvllama.server.answer_stream import AnswerStream
from pyvllama.server.app import create_app
from pyvllama.server.http_server import HttpServer, bind
from pyvllama.server.request_log import log_fields
from pyvllama.server.settings import Settings

SMALL = {"n_ctx": 2048, "n_threads": 1, "parallel": 4, "grace_s": 5.0}
READY_S = 180.0


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
def serving(settings: Settings, pool: Any = None, app: Any = None) -> Iterator[Running]:
    """A server until the end of the block, its model loaded if it can be."""
    app = app or create_app(settings, pool)
    with bind(settings.host, settings.port) as sock:
        server = HttpServer(app, sock)
        url = f"http://127.0.0.1:{server.port}"
        failure: list[BaseException] = []

        def run() -> None:
            try:
                server.listen()
            except BaseException as e:
                failure.append(e)

        thread = threading.Thread(target=run, name="server", daemon=True)
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


class EmptyPool:
    """Loads nothing, at once, or when `gate` is set, or fails."""

    def __init__(self, failure: VllamaError | None = None, gate: asyncio.Event | None = None) -> None:
        self.failure, self.gate, self.closed_with = failure, gate, None

    @asynccontextmanager
    async def use(self, name: str | None, **options: Any) -> Any:
        if self.gate is not None:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        yield self

    def loaded(self) -> list[Any]:
        return []

    async def close(self, grace_s: float = 0.0) -> None:
        self.closed_with = grace_s


class Body(BaseModel):
    name: str
    numbers: list[int] = []


def shell(pool: Any = None, **settings: Any) -> Any:
    """The application, with routes of both APIs that echo, fail, and stream."""
    app = create_app(Settings(**settings), pool or EmptyPool())

    async def echo(request: Request, body: Body) -> Any:
        log_fields(request.scope)["model"] = "echo"
        return body.model_dump()

    async def size(request: Request) -> Any:
        return {"n": len(await request.body())}

    async def broken() -> Any:
        raise RuntimeError("the secret of the house")

    async def refuses() -> Any:
        raise ImageTooLarge("the picture is over the limit")

    async def stream(fail: bool = False) -> Any:
        async def pieces() -> Any:
            yield "one\n"
            if fail:
                raise RuntimeError("in the middle")
            yield "two\n"

        return StreamingResponse(pieces())

    for prefix in ("/v1", "/api"):
        app.post(f"{prefix}/echo")(echo)
        app.post(f"{prefix}/size")(size)
        app.get(f"{prefix}/broken")(broken)
        app.get(f"{prefix}/refuses")(refuses)
        app.get(f"{prefix}/stream")(stream)
    return app


def app_that_talks(**settings: Any) -> Any:
    """With a route that streams an answer as lines of JSON, the way the APIs do; `tokens` of them."""
    app = create_app(Settings(**{**SMALL, "port": 0, **settings}))

    @app.get("/v1/talk")
    async def talk(tokens: int = 8, picture: str = "") -> Any:
        stack = AsyncExitStack()
        served = await stack.enter_async_context(app.state.pool.use(None))
        parts = [{"type": "image_url", "image_url": {"url": picture}}] if picture else []
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "What is in the picture?"}]}]
        ends = {str(t): -100 for t in served.model.tokenizer.eog}
        wanted = {"temperature": 0, "max_tokens": tokens, "logit_bias": ends}
        options = ChatOptions.from_options(served.model.sampling_defaults, wanted)
        answer = await stack.enter_async_context(await served.chat(messages, options, limits=app.state.image_limits))

        async def lines():
            try:
                async for delta in answer:
                    yield json.dumps({"text": delta.text, "end": delta.finish_reason}).encode() + b"\n"
            except VllamaError as e:
                yield json.dumps({"error": str(e)}).encode() + b"\n"

        return AnswerStream(lines(), stack, "application/x-ndjson")

    return app
