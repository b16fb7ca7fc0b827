"""Many of Ollama's clients at a time, and clients that go away."""

import asyncio
import json

import httpx
import ollama
import pytest
from ollama_server import GREEDY, N_CTX, NAME, ask, n_open, serving
from shell import wait_until


def test_many_at_a_time(ollama_server, samples):
    """By the asynchronous client."""
    asked = [(sample["path"], qa) for sample in samples[:4] for qa in sample["qa"][:3]]

    async def all_of_them():
        async with ollama.AsyncClient(host=ollama_server.url) as ollama_client:

            async def one(path, question):
                return (await ollama_client.chat(NAME, [ask(question, path)], options=GREEDY)).message.content

            async def streamed(path, question):
                pieces = await ollama_client.generate(NAME, question, images=[path], options=GREEDY, stream=True)
                return "".join([piece.response async for piece in pieces])

            calls = [(one, streamed)[i % 2](path, qa["question"]) for i, (path, qa) in enumerate(asked)]
            return await asyncio.gather(*calls)

    answers = asyncio.run(all_of_them())
    assert answers == [qa["expected"] for _, qa in asked]


@pytest.fixture(scope="module")
def endless():
    """A server whose answers only end with the context."""
    with serving(aliases=(NAME,)) as running:
        httpx.post(f"{running.url}/api/chat", json={"model": NAME})
        served = running.app.state.pool.loaded()[0].served
        served.model.tokenizer.__dict__["eog"] = frozenset()
        yield running


@pytest.mark.parametrize("path", ["chat", "generate"])
def test_a_client_that_goes_away_from_a_stream(endless, path):
    before = endless.app.state.pool.loaded()[0].served.engine.n_steps[0]
    body = {"model": NAME, "prompt": "Hello!", "messages": [ask("Hello!")]}
    with httpx.stream("POST", f"{endless.url}/api/{path}", json=body) as response:
        lines = response.iter_lines()
        assert not json.loads(next(lines))["done"]
        assert n_open(endless) == 1
    wait_until(lambda: n_open(endless) == 0)
    engine = endless.app.state.pool.loaded()[0].served.engine
    wait_until(lambda: engine.n_active == 0)
    assert engine.n_steps[0] - before < N_CTX / 2  # it was stopped, and did not end


def test_a_client_that_does_not_wait_for_the_whole(endless, caplog):
    caplog.set_level("INFO", logger="pyvllama.server")
    body = {"model": NAME, "messages": [ask("Hello!")], "stream": False, "options": {"num_predict": 1900}}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{endless.url}/api/chat", json=body, timeout=httpx.Timeout(10, read=0.2))
    wait_until(lambda: n_open(endless) == 0)
    wait_until(lambda: [r for r in caplog.records if r.getMessage() == "request"])
    (line,) = [r.fields for r in caplog.records if r.getMessage() == "request"]
    assert line["status"] in (499, 503)  # it was stopped, and did not end


def test_the_end_of_the_context(endless):
    with ollama.Client(host=endless.url) as ollama_client:
        answer = ollama_client.generate(NAME, "Hello!", options={**GREEDY, "num_predict": -1})
    assert answer.done_reason == "length"
    assert answer.prompt_eval_count + answer.eval_count >= N_CTX


def test_too_many_requests(endless):
    served = endless.app.state.pool.loaded()[0].served
    before, served._max_open = served._max_open, 1
    try:
        body = {"model": NAME, "messages": [ask("Hello!")]}
        with httpx.stream("POST", f"{endless.url}/api/chat", json=body) as response:
            lines = response.iter_lines()
            next(lines)
            refused = httpx.post(f"{endless.url}/api/chat", json=body)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "try again later" in refused.json()["error"]
    finally:
        wait_until(lambda: n_open(endless) == 0)
        served._max_open = before
