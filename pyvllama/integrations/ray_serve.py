"""Replicas of the server behind one address, by Ray Serve: for more clients than one machine answers.

::

    serve run pyvllama.integrations.ray_serve:build model=/models/Llama-3.2-11B-Vision-Instruct-Q4_K_M.gguf replicas=2

or in Python ``serve.run(application(Settings(model=...), n_replicas=2))``. Needs the extra `ray`.

A replica holds a model, the chats that it saw last (their keys and values) and their pictures, encoded. A chat that
comes back to the replica that it began on is therefore answered sooner. So a small deployment in front reads what a
request is about and names a session; Ray Serve's consistent hashing sends one session to one replica, to another one
only while that is full or gone. The session is the header `x-session-id`, or else the beginning of the conversation:
all up to the first user message, pictures included, which stays the same from turn to turn.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import fields, replace
from typing import Any

from fastapi import FastAPI, Request
from ray import serve
from ray.serve.config import RequestRouterConfig
from starlette.middleware import Middleware
from starlette.responses import StreamingResponse
from starlette.types import Message

from pyvllama.errors import ConfigError
from pyvllama.server.api_keys import ApiKeys
from pyvllama.server.app import cors, create_app
from pyvllama.server.body_limit import BodyLimit
from pyvllama.server.settings import Settings

__all__ = ["application", "build", "session_of"]

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_SESSION = "x-session-id"
_PROMPT_CHARACTERS = 256  # of a prompt without a template: its beginning
_METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]


def application(
    settings: Settings,
    n_replicas: int = 2,
    *,
    n_cpus: float = 1.0,
    n_gpus: float = 0.0,
) -> serve.Application:
    """What `serve.run` takes.

    Args:
        settings: of each replica; the model's files must be there on each machine. Host and port are Ray Serve's own.
        n_replicas: copies of the model.
        n_cpus, n_gpus: what a replica reserves, in Ray's words; `settings.n_threads` should be n_cpus.
    """
    # the address is the proxy's affair, and a host check that it does not ask for would refuse its name
    inner = settings if settings.allowed_hosts else replace(settings, host="0.0.0.0")
    replicas = serve.deployment(
        name="pyvllama",
        num_replicas=n_replicas,
        max_ongoing_requests=settings.parallel + settings.max_queue + 8,  # the engine's own queue answers 429 first
        ray_actor_options={"num_cpus": n_cpus, "num_gpus": n_gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=_ROUTER, request_router_kwargs={"num_fallback_replicas": 1}
        ),
        health_check_period_s=10,
        graceful_shutdown_timeout_s=settings.grace_s + 5,
    )(_Replica).bind(inner)
    front = FastAPI(
        openapi_url=None,
        middleware=[  # from the outside in; strangers send no bodies
            *cors(settings),
            Middleware(ApiKeys, keys=settings.api_keys),
            Middleware(BodyLimit, max_bytes=settings.max_body_bytes),
        ],
    )

    @serve.deployment(name="pyvllama-front", max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0})
    @serve.ingress(front)
    class Front:
        """Names the session and passes on; knows no model."""

        def __init__(self, handle: Any) -> None:
            self._handle = handle

        @front.api_route("/{path:path}", methods=_METHODS)
        async def pass_on(self, request: Request) -> StreamingResponse:
            body = await request.body()
            session = session_of(request.headers.get(_SESSION), body)
            handle = (
                self._handle.options(stream=True, session_id=session) if session else self._handle.options(stream=True)
            )
            answer = handle.answer.remote(_plain(request.scope), body)
            start = await anext(answer)
            return _Passed(answer, start)

    return Front.bind(replicas)  # type: ignore[attr-defined]


def build(arguments: Mapping[str, str]) -> serve.Application:
    """For `serve run`: `model`, `replicas`, `cpus`, `gpus`, and fields of `Settings` such as n_ctx=8192, as in JSON.

    Raises:
        ConfigError: there is no such argument, or not with such a value.
    """
    given = {name: _value(text) for name, text in arguments.items()}
    n_replicas, n_cpus, n_gpus = given.pop("replicas", 2), given.pop("cpus", 1), given.pop("gpus", 0)
    if type(n_replicas) is not int or n_replicas < 1:
        raise ConfigError(f"replicas must be a whole number above 0, not {n_replicas!r}")
    for name, n in (("cpus", n_cpus), ("gpus", n_gpus)):
        if type(n) not in (int, float) or n < 0:
            raise ConfigError(f"{name} must be a number, 0 or more, not {n!r}")
    if unknown := given.keys() - {field.name for field in fields(Settings)}:
        raise ConfigError(f"there is no setting {', '.join(sorted(unknown))}; see pyvllama.server.settings.Settings")
    return application(Settings(**given), n_replicas, n_cpus=n_cpus, n_gpus=n_gpus)


def _value(text: str) -> Any:
    """A JSON value, such as 8192 or true; what is none is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def session_of(header: str | None, body: bytes) -> str | None:
    """What decides over the replica: the header, or a digest of a conversation's beginning; None: any will do."""
    if header:
        return header
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict):
        return None
    beginning: Any = None
    messages = request.get("messages") or request.get("input")
    if isinstance(messages, list):
        roles = [m.get("role") if isinstance(m, dict) else None for m in messages]
        beginning = messages[: roles.index("user") + 1] if "user" in roles else messages
    else:
        text = messages or request.get("prompt")
        beginning = text[:_PROMPT_CHARACTERS] if isinstance(text, str) else None
    if not beginning:
        return None
    what = json.dumps([request.get("model"), beginning, request.get("images")], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()


def _plain(scope: Mapping[str, Any]) -> dict[str, Any]:
    """What of an ASGI scope travels between processes."""
    names = (
        "type",
        "http_version",
        "method",
        "scheme",
        "path",
        "raw_path",
        "query_string",
        "headers",
        "client",
        "server",
    )
    return {"asgi": {"version": "3.0"}, "root_path": ""} | {name: scope.get(name) for name in names}


class _Passed(StreamingResponse):
    """What a replica answers, as it comes."""

    def __init__(self, answer: Any, start: Message) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            async for message in answer:
                yield message.get("body", b"")

        super().__init__(pieces(), start["status"])
        self.raw_headers = list(start["headers"])


class _Replica:
    """The whole server's application in a replica, called by ASGI messages instead of a socket."""

    def __init__(self, settings: Settings) -> None:
        self._app = create_app(settings)
        self._stack = AsyncExitStack()
        self._started: asyncio.Task[None] | None = None

    async def _start(self) -> None:
        await self._stack.enter_async_context(self._app.router.lifespan_context(self._app))
        ready, failed = (asyncio.create_task(e.wait()) for e in (self._app.state.ready, self._app.state.failed))
        await asyncio.wait((ready, failed), return_when=asyncio.FIRST_COMPLETED)
        for task in (ready, failed):
            task.cancel()

    async def check_health(self) -> None:
        """Ray Serve asks now and then; the first time it waits until the model is loaded."""
        if self._started is None:
            self._started = asyncio.create_task(self._start())
        await asyncio.shield(self._started)
        if self._app.state.failure is not None:
            raise self._app.state.failure

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
        """The ASGI messages of a response; whoever stops taking them is a client that has gone."""
        await self.check_health()
        sent: asyncio.Queue[Message | None] = asyncio.Queue(64)
        gone = asyncio.Event()
        asked = False

        async def receive() -> Message:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app(scope, receive, sent.put)
            finally:
                await sent.put(None)

        task = asyncio.create_task(run())
        try:
            while (message := await sent.get()) is not None:
                yield message
            await task  # whatever broke it
        finally:
            gone.set()
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
