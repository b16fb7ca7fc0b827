"""Streamed chats: the chunks, what stands in the last of them, pings, errors on the way, clients that go away."""

import json
import time
from contextlib import contextmanager

import openai
import pytest
from openai.types.chat import ChatCompletionChunk
from openai_talk import RINGS, WEATHER, connect, endless, n_open, picture, said
from shell import wait_until

from pyvllama.errors import BackendError

TOOL = {"type": "function", "function": WEATHER}


@pytest.fixture(scope="module")
def client(server):
    with connect(server) as client:
        yield client


@pytest.fixture(scope="module")
def question(pocket_checkpoint):
    return [said(picture(pocket_checkpoint / "samples" / "01_square.png"), "Describe the image.")]


def stream(client, messages, **options):
    options = {"model": "", "messages": messages, "temperature": 0, **options}
    return client.chat.completions.create(stream=True, **options)


def lines_of(server, messages, **options):
    body = {"messages": messages, "temperature": 0, "stream": True, **options}
    answer = server.client.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.text.split("\n\n")


# --- chunks ---


def test_a_stream_is_the_plain_answer_in_pieces(client, question):
    chunks = list(stream(client, question))
    for chunk in chunks:
        assert ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
        assert (chunk.id, chunk.model, chunk.object) == (chunks[0].id, "pocket-vllama", "chat.completion.chunk")
        assert chunk.usage is None, "nobody asked"
    first, *middle, last = (chunk.choices[0] for chunk in chunks)
    assert (first.delta.role, first.delta.content) == ("assistant", "")
    assert len(middle) > 10
    assert "".join(choice.delta.content for choice in middle) == RINGS
    assert {choice.finish_reason for choice in (first, *middle)} == {None}
    assert (last.finish_reason, last.delta.content) == ("stop", None)
    assert chunks[-1].timings["predicted_n"] > 10
    assert not [chunk for chunk in chunks[:-1] if hasattr(chunk, "timings")]


def test_usage_stands_in_a_chunk_of_its_own_if_it_is_wanted(client, server, question):
    *chunks, last = stream(client, question, stream_options={"include_usage": True})
    plain = client.chat.completions.create(model="", messages=question, temperature=0)
    assert last.choices == []
    assert last.usage.completion_tokens == plain.usage.completion_tokens
    assert last.usage.prompt_tokens == plain.usage.prompt_tokens
    assert last.timings["predicted_n"] == last.usage.completion_tokens
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert not [chunk for chunk in chunks if hasattr(chunk, "timings")]
    lines = lines_of(server, question, stream_options={"include_usage": True})
    *data, done, nothing = lines
    assert (done, nothing) == ("data: [DONE]", "")
    parsed = [json.loads(line.removeprefix("data: ")) for line in data]
    assert [chunk["usage"] for chunk in parsed[:-1]] == [None] * (len(parsed) - 1), "OpenAI says null in all others"


def test_without_usage_there_is_no_word_of_it(server, question):
    lines = lines_of(server, question, stream_options={"include_usage": False})
    assert lines[-2:] == ["data: [DONE]", ""]
    assert not [line for line in lines if "usage" in line]


def test_several_answers_are_mixed_but_each_is_whole(client, question):
    chunks = list(stream(client, question, n=3))
    for i in range(3):
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == i]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in mine) == RINGS
        assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["stop"]
    order = [chunk.choices[0].index for chunk in chunks]
    assert order != sorted(order), "as they come"
    assert [chunk for chunk in chunks if hasattr(chunk, "timings")] == [chunks[-1]]
    plain = client.chat.completions.create(model="", messages=question, temperature=0, n=3)
    assert chunks[-1].timings["predicted_n"] == plain.usage.completion_tokens


def test_log_probabilities_come_with_their_pieces(client):
    whole = client.chat.completions.create(
        model="", messages=[said("Hello!")], temperature=0, logprobs=True, top_logprobs=2
    )
    streamed = [
        entry
        for chunk in stream(client, [said("Hello!")], logprobs=True, top_logprobs=2)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    entries = whole.choices[0].logprobs.content
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]
    assert [entry.logprob for entry in streamed] == pytest.approx([e.logprob for e in entries], abs=1e-2)


def test_a_streamed_call_comes_whole(client):
    chunks = list(stream(client, [said("Weather?")], tools=[TOOL], tool_choice="required", temperature=1, seed=2))
    calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    (call,) = calls
    assert (call.index, call.function.name) == (0, "weather")
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Oslo")
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def test_the_clients_own_stream_helper(client, question):
    with client.chat.completions.stream(model="", messages=question, temperature=0) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == RINGS


# --- silence ---


def test_pings_keep_a_silent_stream_alive(client, server, monkeypatch, pocket_checkpoint):
    """A picture takes its time: something is sent meanwhile, and clients do not mind it."""
    from pyvllama.server.openai import chat

    monkeypatch.setattr(chat, "PING_S", 0.05)
    images = server.app.state.pool.loaded()[0].served.images
    encode = images.encode

    def slow(*args):
        time.sleep(0.5)
        return encode(*args)

    monkeypatch.setattr(images, "encode", slow)
    messages = [said(picture(pocket_checkpoint / "samples" / "04_strip_4to1.png"), "What colour is the diamond?")]
    lines = lines_of(server, messages)
    assert lines.count(": ping") >= 3
    assert [line for line in lines if not line.startswith(("data: ", ": ping"))] == [""]
    text = "".join(choice.delta.content or "" for chunk in stream(client, messages) for choice in chunk.choices)
    assert text == "The diamond is black."


# --- errors on the way ---


@contextmanager
def failing(monkeypatch, server, error):
    """The server cannot encode pictures any more."""
    images = server.app.state.pool.loaded()[0].served.images

    def encode(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(images, "encode", encode)
        yield


def test_an_error_after_the_headers_is_the_last_event(client, server, monkeypatch, question):
    with failing(monkeypatch, server, BackendError("out of memory")):
        with pytest.raises(openai.APIError, match="out of memory"):
            list(stream(client, question))
        lines = lines_of(server, question)
    assert json.loads(lines[-2].removeprefix("data: ")) == {
        "error": {"message": "out of memory", "type": "server_error", "param": None, "code": None}
    }
    assert "data: [DONE]" not in lines


def test_a_deadline_ends_a_stream_and_an_answer(make_server):
    slow = make_server(deadline_s=0.3, parallel=1, n_ctx=8192)
    with connect(slow) as client:
        options = {"max_tokens": 8000, **endless(slow)}
        with pytest.raises(openai.APIError, match="was not complete after"):
            list(stream(client, [said("Hello!")], **options))
        with pytest.raises(openai.InternalServerError, match="was not complete after") as caught:
            client.chat.completions.create(model="", messages=[said("Hello!")], temperature=0, **options)
        assert (caught.value.status_code, caught.value.code) == (504, "timeout")
        wait_until(lambda: n_open(slow) == 0)


def test_what_is_wrong_with_a_request_shows_before_the_headers(client):
    with pytest.raises(openai.BadRequestError, match="comma"):
        stream(client, [said({"type": "image_url", "image_url": {"url": "data:x"}}, "?")])


# --- clients that go away ---


@pytest.mark.parametrize("n_read", [1, 5])
def test_a_client_that_goes_away_is_not_answered_any_more(server, client, n_read):
    """Its slot is free soon, and others are answered."""
    events = stream(client, [said("Hello!")], max_tokens=1900, **endless(server))
    for _ in range(n_read):
        next(iter(events))
    assert n_open(server) == 1
    events.close()
    wait_until(lambda: n_open(server) == 0)
    assert client.chat.completions.create(model="", messages=[said("Hello!")], temperature=0).choices


def test_a_client_that_goes_away_before_its_whole_answer(server, monkeypatch):
    """Also while tokens come without a pause."""
    served, ended = server.app.state.pool.loaded()[0].served, []
    monkeypatch.setattr(served, "on_answered", ended.append)
    step = served.engine._batcher.step
    monkeypatch.setattr(served.engine._batcher, "step", lambda: (time.sleep(0.005), step()))
    with connect(server, timeout=0.3) as impatient, pytest.raises(openai.APITimeoutError):
        impatient.chat.completions.create(
            model="", messages=[said("Hello!")], max_tokens=1900, temperature=0, **endless(server)
        )
    wait_until(lambda: n_open(server) == 0)
    (answer,) = ended
    assert answer.usage.completion_tokens < 1000


def test_too_many_are_told_when_to_come_again(make_server):
    small = make_server(parallel=1, max_queue=0)
    with connect(small) as client:
        busy = stream(client, [said("Hello!")], max_tokens=1900, **endless(small))
        next(iter(busy))
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="", messages=[said("Hello!")])
        assert caught.value.code == "rate_limit_exceeded"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        busy.close()
        wait_until(lambda: n_open(small) == 0)
        assert client.chat.completions.create(model="", messages=[said("Hello!")]).choices
