"""Stopping: every open stream is finished, or fails in words."""

import json
import threading
import time

import httpx
import pytest
from fastapi import Request
from shell import SMALL, serving, wait_until

from pyvllama.chat_options import ChatOptions
from pyvllama.errors import VllamaError
from pyvllama.server.answer_stream import AnswerStream
from pyvllama.server.app import create_app
from pyvllama.server.settings import Settings

QUESTION = [{"role": "user", "content": "Who are you?"}]


def app_that_talks(**settings):
    """With a route that streams an answer as lines of JSON, the way the APIs do; `tokens` of them."""
    from contextlib import AsyncExitStack

    app = create_app(Settings(**{**SMALL, "port": 0, **settings}))

    @app.get("/v1/talk")
    async def talk(request: Request, tokens: int = 8):
        stack = AsyncExitStack()
        served = await stack.enter_async_context(app.state.pool.use(None))
        ends = {str(t): -100 for t in served.model.tokenizer.eog}
        wanted = {"temperature": 0, "max_tokens": tokens, "logit_bias": ends}
        options = ChatOptions.from_options(served.model.sampling_defaults, wanted)
        answer = await stack.enter_async_context(await served.chat(QUESTION, options))

        async def lines():
            try:
                async for delta in answer:
                    yield json.dumps({"text": delta.text, "end": delta.finish_reason}).encode() + b"\n"
            except VllamaError as e:
                yield json.dumps({"error": str(e)}).encode() + b"\n"

        return AnswerStream(lines(), stack, "application/x-ndjson")

    return app


class Listener(threading.Thread):
    """A client that reads a stream to its end."""

    def __init__(self, url, tokens):
        super().__init__()
        self.url, self.tokens, self.lines, self.failure = url, tokens, [], None
        self.has_begun = False
        self.start()

    def run(self):
        try:
            with httpx.stream("GET", self.url + f"/v1/talk?tokens={self.tokens}", timeout=60) as response:
                self.has_begun = True
                for line in response.iter_lines():
                    self.lines.append(json.loads(line))
        except httpx.HTTPError as e:
            self.failure = e


@pytest.fixture
def talking(request):
    app = app_that_talks(**request.param)
    with serving(app.state.settings, app=app) as running:
        yield running


def stop(running):
    start = time.monotonic()
    running.server.stop()
    running.thread.join(30)
    assert not running.thread.is_alive()
    return time.monotonic() - start


@pytest.mark.parametrize("talking", [{"grace_s": 30.0}], indirect=True)
def test_answers_that_run_are_finished(talking):
    clients = [Listener(talking.url, 200) for _ in range(4)]
    wait_until(lambda: all(c.lines for c in clients))
    clients += [Listener(talking.url, 2) for _ in range(2)]  # they may wait for a slot
    wait_until(lambda: all(c.has_begun for c in clients))
    assert stop(talking) < 25
    for client in clients:
        client.join(5)
        assert client.failure is None
        assert client.lines[-1]["end"] == "length"


@pytest.mark.parametrize("talking", [{"grace_s": 0.3}], indirect=True)
def test_answers_that_take_too_long_fail_in_words(talking):
    clients = [Listener(talking.url, 100_000) for _ in range(6)]  # two of them wait for a slot
    wait_until(lambda: all(c.has_begun for c in clients) and sum(bool(c.lines) for c in clients) >= 4)
    assert stop(talking) < 5
    for client in clients:
        client.join(5)
        assert client.failure is None, "the stream has an end"
        assert "error" in client.lines[-1], client.lines[-1:]


@pytest.mark.parametrize("talking", [{"grace_s": 30.0}], indirect=True)
def test_an_idle_server_stops_at_once(talking):
    talking.client.get("/health")  # and its connection is kept open by the client
    assert stop(talking) < 2


@pytest.mark.parametrize("talking", [{"grace_s": 30.0}], indirect=True)
def test_nobody_new_comes_in(talking):
    client = Listener(talking.url, 400)
    wait_until(lambda: client.lines)
    talking.server.stop()

    def is_refused():
        try:
            return not httpx.get(talking.url + "/health", timeout=1)
        except httpx.HTTPError:
            return True

    wait_until(is_refused, 3)
    client.join(30)
    assert client.lines[-1]["end"] == "length"
