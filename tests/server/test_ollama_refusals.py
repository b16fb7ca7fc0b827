"""What Ollama's API refuses, and how; what it is not asked without leave."""

import base64
import json
from pathlib import Path

import httpx
import ollama
import pytest
from ollama_server import ANSWER, GREEDY, N_CTX, NAME, ask, n_open, refusal, serving
from shell import wait_until

from pyvllama.errors import BackendError


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_models(ollama_client, stream):
    for name in ("nope", "nope:latest", "../../etc/passwd", str(Path(__file__)), "hf.co/somebody/else", "llama3.2"):
        words = (404, f'model "{name}" not found, try pulling it first')
        assert refusal(ollama_client.chat, name, [ask("Hi")], stream=stream) == words
        assert refusal(ollama_client.generate, name, "Hi", stream=stream) == words
    for call in (ollama_client.show, ollama_client.chat, ollama_client.generate):
        assert refusal(call, "nope") == (404, 'model "nope" not found, try pulling it first')
    assert refusal(ollama_client.chat, "nope", keep_alive=0)[0] == 404


@pytest.mark.parametrize("stream", [False, True])
def test_requests_that_cannot_be_answered(ollama_client, stream):
    """Before anything is streamed: with a status."""
    bad = base64.b64encode(b"no picture at all").decode()
    for call, words in [
        (lambda: ollama_client.chat(NAME, [ask("Hi", bad)], stream=stream), "it is text"),
        (lambda: ollama_client.generate(NAME, "Hi", images=[bad], stream=stream), "it is text"),
        (lambda: ollama_client.chat(NAME, [ask("Hi", bad, bad)], stream=stream), "image 1 of 2: the image given as 17"),
        (lambda: ollama_client.chat(NAME, [ask("")], stream=stream), "needs text or an image"),
        (lambda: ollama_client.generate(NAME, "Hi " * 3000, stream=stream), str(N_CTX)),
        (lambda: ollama_client.generate(NAME, "Hi", suffix="!", stream=stream), "does not support insert"),
        (lambda: ollama_client.generate(NAME, "Hi", template="{{ .Prompt }}", stream=stream), "raw: true"),
        (lambda: ollama_client.generate(NAME, "Hi", raw=True, system="x", stream=stream), "raw mode does not support"),
        (lambda: ollama_client.generate(NAME, "<|image|>", raw=True, stream=stream), "1 image tokens for 0 pictures"),
        (lambda: ollama_client.generate(NAME, "Hi", context=[10**9], stream=stream), "there is no token 1000000000"),
        (lambda: ollama_client.generate(NAME, "Hi", context=[-1], stream=stream), "there is no token -1"),
        (
            lambda: ollama_client.chat(NAME, [ask("Hi")], format={"type": "no such"}, stream=stream),
            "cannot be made a grammar",
        ),
        (lambda: ollama_client.chat(NAME, [ask("Hi")], keep_alive="soon", stream=stream), "keep_alive"),
        (lambda: ollama_client.chat(NAME, [ask("Hi")], top_logprobs=21, logprobs=True, stream=stream), "top_logprobs"),
        (lambda: ollama_client.chat(NAME, [{"role": "robot", "content": "Hi"}], stream=stream), "messages[0].role"),
        (lambda: ollama_client.chat(NAME, [ask("Hi")], options={"seed": "x"}, stream=stream), "options.seed"),
    ]:
        status, error = refusal(lambda call=call, **_: call(), stream=stream)
        assert (status, words in error) == (400, True), error


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "must be a JSON object"),
        (b"{", 400, "the body is no valid JSON"),
        (b"[]", 400, "must be a JSON object"),
        (b"{}", 400, "is required"),
        (b'{"model": ""}', 400, "model is required"),
        (b'{"model": 1}', 400, "model: should be a valid string"),
        (b'{"model": "x", "messages": ' + b"[" * 100000 + b"}", 400, "parsing the body"),
        (b'\xff\xfe{"model"', 400, "the body is no valid JSON"),
        (b'{"model": "\\ud800"}', 404, "not found, try pulling it first"),
    ],
)
@pytest.mark.parametrize("path", ["chat", "generate", "show"])
def test_broken_requests(ollama_server, path, content, status, words):
    response = httpx.post(f"{ollama_server.url}/api/{path}", content=content)
    body = response.json()
    assert (response.status_code, list(body)) == (status, ["error"])
    assert words in body["error"]


@pytest.mark.parametrize("path", ["chat", "generate"])
def test_a_number_that_is_none(ollama_server, path):
    content = b'{"model": "x", "options": {"temperature": NaN}}'
    response = httpx.post(f"{ollama_server.url}/api/{path}", content=content)
    assert response.status_code == 400
    assert "options.temperature" in response.json()["error"]


def test_what_is_not_there(ollama_server):
    for method, path in [
        ("POST", "/api/embed"), ("POST", "/api/embeddings"), ("POST", "/api/create"), ("POST", "/api/copy"),
        ("POST", "/api/push"), ("POST", "/api/blobs/sha256:0"),
    ]:  # fmt: skip
        response = httpx.request(method, f"{ollama_server.url}{path}", json={"model": NAME})
        assert response.status_code == 501
        assert "is not supported: " in response.json()["error"]
    assert httpx.head(f"{ollama_server.url}/api/blobs/sha256:0").status_code == 501


def test_management_needs_leave(ollama_client):
    for call in (ollama_client.pull, ollama_client.delete):
        status, error = refusal(call, "somebody/Repo")
        assert status == 403
        assert "start it with --ollama" in error
    assert refusal(ollama_client.delete, NAME)[0] == 403
    assert ollama_client.pull(NAME).status == "success"  # it is here: apps pull before they ask
    assert [step.status for step in ollama_client.pull(NAME, stream=True)] == ["success"]


def test_a_body_is_json_whatever_it_is_called(ollama_server):
    body = json.dumps({"model": NAME, "messages": []})
    for kind in (None, "application/x-www-form-urlencoded", "text/plain;charset=UTF-8", "application/json"):
        headers = {} if kind is None else {"Content-Type": kind}
        response = httpx.post(f"{ollama_server.url}/api/chat", content=body, headers=headers)
        assert response.json()["done_reason"] == "load"


def test_the_log_says_what_an_answer_did_cost(ollama_client, caplog):
    caplog.set_level("INFO", logger="pyvllama.server")
    ollama_client.chat(NAME, [ask("Hello!")], options={"num_ctx": 131072})
    list(ollama_client.generate(NAME, "Hello!", options={"num_ctx": 1024}, stream=True))
    wait_until(lambda: len([r for r in caplog.records if r.getMessage() == "request"]) == 2)
    first, second = (r.fields for r in caplog.records if r.getMessage() == "request")
    assert (first["path"], first["model"], first["num_ctx_ignored"]) == ("/api/chat", NAME, 131072)
    assert (second["path"], second["model"]) == ("/api/generate", NAME)
    assert "num_ctx_ignored" not in second
    assert first["predicted_n"] > 0
    assert second["predicted_n"] > 0
    assert "Hello" not in str((first, second))


def test_behind_a_key(picture):
    with (
        serving(aliases=(NAME,), api_keys=("secret",)) as running,
        ollama.Client(host=running.url, headers={"Authorization": "Bearer secret"}) as known,
        ollama.Client(host=running.url) as stranger,
    ):
        assert known.chat(NAME, [ask("Describe the image.", picture)], options=GREEDY).message.content == ANSWER
        status, error = refusal(stranger.chat, NAME, [ask("Hi")])
        assert (status, "API key" in error) == (401, True)


def test_foreign_web_pages_are_kept_out(ollama_server):
    """A form needs no preflight, and its body would be taken for JSON."""
    headers = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
    response = httpx.post(f"{ollama_server.url}/api/chat", content=json.dumps({"model": NAME}), headers=headers)
    assert response.status_code == 403
    assert "origin" in response.json()["error"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (BackendError("the machine is on fire"), "the machine is on fire"),
        (RuntimeError("a secret of the server"), "the server failed; its log tells more"),
    ],
)
def test_an_error_on_the_way_is_the_last_line(ollama_client, ollama_server, monkeypatch, caplog, error, words):
    from pyvllama.server.answer import Answer

    real = Answer.batches

    async def failing(self, idle_s=None):
        async for batch in real(self, idle_s):
            yield batch
            raise error

    monkeypatch.setattr(Answer, "batches", failing)
    pieces = []
    with pytest.raises(ollama.ResponseError, match=words):
        for piece in ollama_client.chat(NAME, [ask("Hello!")], stream=True):
            pieces += [piece]
    assert pieces
    assert ("a secret of the server" in caplog.text) == isinstance(error, RuntimeError)
    status, said = refusal(ollama_client.chat, NAME, [ask("Hello!")])
    assert (status, said.partition(" (")[0]) == (500, words)  # without the request's id
    monkeypatch.undo()
    wait_until(lambda: n_open(ollama_server) == 0)
