"""The page's router beside a chat API that answers what the tests want: words in the last message say how.

Speaks `/v1/chat/completions` as the real server does: server-sent events, `usage` and `timings` in the last chunk.
"""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from pyvllama.server.page import router

SLOW_WORDS = 400
TIMINGS = {
    "image_encode_ms": 38.2,
    "image_cached": 0,
    "prompt_n": 24,
    "prompt_ms": 31.0,
    "prompt_per_second": 774.2,
    "predicted_n": 9,
    "predicted_ms": 43.0,
    "predicted_per_second": 209.3,
}


@dataclass
class Fake:
    """A server of this module, and what it was told.

    Attributes:
        bodies: of all chat requests.
        n_cut: streams that the client has left.
        models: what /v1/models lists.
        key: the API key that is asked for, if any.
        says: answers by the last message's text; others are answered with an echo.
    """

    bodies: list[dict[str, Any]] = field(default_factory=list)
    n_cut: int = 0
    models: list[str] = field(default_factory=lambda: ["fake-vision", "other-model"])
    key: str | None = None
    says: dict[str, str] = field(default_factory=dict)


def last_text(body: dict[str, Any]) -> str:
    content = body["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def fake_app(fake: Fake) -> FastAPI:
    app = FastAPI()
    app.include_router(router)

    def refusal(request: Request) -> JSONResponse | None:
        if fake.key and request.headers.get("authorization") != f"Bearer {fake.key}":
            return error(401, "an API key is needed")
        return None

    @app.get("/v1/models")
    async def list_models(request: Request) -> Any:
        return refusal(request) or {"object": "list", "data": [{"id": name, "object": "model"} for name in fake.models]}

    @app.get("/props")
    async def props(request: Request) -> Any:
        params = {"temperature": 0.6, "top_p": 0.9, "top_k": 0, "seed": 2**32 - 1, "n_predict": -1}
        return refusal(request) or {"default_generation_settings": {"n_ctx": 2048, "params": params}}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        if refused := refusal(request):
            return refused
        body = await request.json()
        fake.bodies.append(body)
        text = last_text(body)
        if "busy" in text:
            return error(429, "too many requests wait", {"Retry-After": "7"})
        if "too large" in text:
            return error(413, "the body is larger than 100 bytes")
        if "wrong" in text:
            return error(400, "messages[0] is <b>wrong</b>")
        if "queue" in text:
            await asyncio.sleep(2.5)
        return StreamingResponse(stream(fake, body, text), media_type="text/event-stream")

    return app


def error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "error", "param": None, "code": None}}, status, headers)


async def stream(fake: Fake, body: dict[str, Any], text: str) -> AsyncIterator[bytes]:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body.get("model")}

    def event(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return f"data: {json.dumps({**head, 'choices': [choice], 'usage': None, **more})}\n\n".encode()

    answer = fake.says.get(text, f"You said: {text}")
    if "slow" in text:
        answer = " ".join(f"word{i}" for i in range(SLOW_WORDS))
    pause = 0.03 if "slow" in text else 0.002
    try:
        yield event({"role": "assistant", "content": ""})
        yield b": a comment\n\n"
        if "think" in text:
            await asyncio.sleep(2.2)
        for i in range(0, len(answer), 6):
            yield event({"content": answer[i : i + 6]})
            await asyncio.sleep(pause)
            if "drop" in text and i > 6:
                return
            if "fails" in text and i > 6:
                yield b'data: {"error": {"message": "the computation failed", "type": "server_error"}}\n\n'
                return
        yield event({}, "length" if "long" in text else "stop")
        usage = {"prompt_tokens": 24, "completion_tokens": 9, "total_tokens": 33}
        cached = {"image_encode_ms": 0.0, "image_cached": 1} if "cached" in text else {}
        last = {**head, "choices": [], "usage": usage, "timings": {**TIMINGS, **cached}}
        yield f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode()
    except (asyncio.CancelledError, GeneratorExit):
        fake.n_cut += 1
        raise


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """The application at an address of this machine, until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + 20
            while not server.started:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield url
        finally:
            server.should_exit = True
            thread.join(30)
