"""`/v1/responses` asked by the official client, and the order of its events."""

import json

import openai
import pytest
from openai.types.responses import Response
from openai_talk import RINGS, SHAPE, WEATHER, connect, endless, n_open
from shell import wait_until
from talk import data_uri

from pyvllama.errors import BackendError
from pyvllama.server.openai.response_events import ResponseEvents

TOOL = {"type": "function", "strict": True, **WEATHER}
HELLO = "Hello! Please show me an image."


@pytest.fixture(scope="module")
def client(server):
    with connect(server) as client:
        yield client


@pytest.fixture(scope="module")
def seen(pocket_checkpoint):
    def part(name="01_square.png"):
        return {
            "type": "input_image",
            "detail": "auto",
            "image_url": data_uri(pocket_checkpoint / "samples" / name),
        }

    return part


def respond(client, said, **options):
    return client.responses.create(**{"model": "", "input": said, "temperature": 0, **options})


def message(*content, role="user"):
    parts = [{"type": "input_text", "text": c} if isinstance(c, str) else c for c in content]
    return {"role": role, "content": parts}


# --- answers ---


def test_a_response_is_what_the_client_takes_it_for(client):
    got = respond(client, "Hello!", metadata={"a": "b"})
    assert isinstance(got, Response)
    assert Response.model_validate(got.model_dump(warnings=False))
    assert got.output_text == HELLO
    assert (got.object, got.status, got.model, got.id[:5]) == ("response", "completed", "pocket-vllama", "resp_")
    assert (got.error, got.incomplete_details, got.previous_response_id) == (None, None, None)
    assert (got.metadata, got.store, got.temperature) == ({"a": "b"}, False, 0)
    assert got.completed_at >= got.created_at > 1_600_000_000
    (item,) = got.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert got.usage.total_tokens == got.usage.input_tokens + got.usage.output_tokens
    chat = client.chat.completions.create(
        model="", messages=[{"role": "user", "content": "Hello!"}], temperature=0
    ).usage
    assert (got.usage.input_tokens, got.usage.output_tokens) == (chat.prompt_tokens, chat.completion_tokens)
    assert got.timings["predicted_n"] == got.usage.output_tokens


def test_pictures_instructions_and_several_turns(client, seen, server):
    question = message(seen(), "Describe the image.")
    first = respond(client, [question], instructions="You see shapes.")
    assert first.output_text == RINGS
    assert first.instructions == "You see shapes."
    turns = [
        question,
        *[item.model_dump(exclude_none=True) for item in first.output],
        {"type": "message", "role": "user", "content": "What colour is the ring?"},
    ]
    second = respond(client, turns, instructions="You see shapes.")
    assert second.output_text == "The ring is yellow."
    assert second.usage.input_tokens_details.cached_tokens > 15
    chat = client.chat.completions.create(
        model="",
        messages=[
            {"role": "system", "content": "You see shapes."},
            {"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": seen()["image_url"]}},
                {"type": "text", "text": "Describe the image."},
            ]},
        ],
        temperature=0,
    )  # fmt: skip
    assert chat.usage.prompt_tokens == first.usage.input_tokens, "it is the same prompt"


def test_an_answer_that_is_cut_short(client, server):
    got = respond(client, "Hello!", max_output_tokens=3)
    assert (got.status, got.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (got.output[0].status, got.usage.output_tokens) == ("incomplete", 3)
    assert HELLO.startswith(got.output_text)


def test_json_of_a_schema(client, seen):
    form = {"format": {"type": "json_schema", "name": "shape", "strict": True, "schema": SHAPE}}
    got = respond(client, [message(seen(), "What is this?")], text=form, temperature=2)
    value = json.loads(got.output_text)
    assert value.keys() == {"colour", "round"}
    assert value["colour"] in ("red", "yellow")
    assert got.text.format.type == "json_schema"


def test_the_clients_own_parser(client):
    from typing import Literal

    from pydantic import BaseModel

    class Shape(BaseModel):
        colour: Literal["red", "yellow"]

    got = client.responses.parse(model="", input="What?", text_format=Shape, temperature=0)
    assert isinstance(got.output_parsed, Shape)


def test_log_probabilities(client):
    got = respond(client, "Hello!", include=["message.output_text.logprobs"], top_logprobs=2)
    entries = got.output[0].content[0].logprobs
    assert "".join(entry.token for entry in entries) == HELLO
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in entries)
    assert got.top_logprobs == 2
    assert respond(client, "Hello!").output[0].content[0].logprobs == []


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_tools_are_called_and_their_answers_heard(client, choice):
    got = respond(client, "Weather?", tools=[TOOL], tool_choice=choice, temperature=1)
    (call,) = got.output
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    assert json.loads(call.arguments)["city"] in ("Rome", "Oslo")
    assert got.output_text == ""
    assert got.tools[0].name == "weather"
    turns = [
        {"role": "user", "content": "Weather?"},
        call.model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."},
        {"type": "reasoning", "id": "rs_1", "summary": []},
    ]
    assert respond(client, turns, max_output_tokens=5).usage.output_tokens >= 1


def test_truncation(client, server):
    turns = [message("word " * 400), message("I see.", role="assistant")] * 6
    with pytest.raises(openai.BadRequestError):
        respond(client, [*turns, message("Hello!")], max_output_tokens=8)
    got = respond(client, [*turns, message("Hello!")], max_output_tokens=8, truncation="auto")
    assert (got.truncation, got.usage.output_tokens <= 8) == ("auto", True)


@pytest.mark.parametrize(
    ("options", "param", "match"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the whole conversation as input"),
        ({"conversation": "conv_1"}, "conversation", "not kept"),
        ({"prompt": {"id": "p"}}, "prompt", "not kept"),
        ({"background": True}, "background", "not kept"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'function'"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", "'function'"),
        ({"input": []}, "input", "at least 1"),
        ({"input": ""}, "input", "at least 1"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "must be one of 'message'"),
        ({"input": [message({"type": "input_file"})]}, "input[0].content[0].type", "'input_text'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].image_url",
            "required",
        ),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "is 'xml'"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
        ({"truncation": "some"}, "truncation", "'auto' or 'disabled'"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong(client, options, param, match):
    with pytest.raises(openai.BadRequestError, match=match) as caught:
        respond(client, **{"said": options.get("input", "x"), **options})
    assert caught.value.param == param


# --- events ---

MESSAGE = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def kinds_of(events):
    """Kinds in order; one after another of the same kind count once."""
    kinds = [event.type for event in events]
    return [kind for i, kind in enumerate(kinds) if not i or kinds[i - 1] != kind]


def test_the_events_of_a_message(client, seen):
    events = list(respond(client, [message(seen(), "Describe the image.")], stream=True))
    assert kinds_of(events) == MESSAGE
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 10
    assert "".join(deltas) == RINGS
    by_kind = {event.type: event for event in events}
    assert by_kind["response.output_text.done"].text == RINGS
    item = by_kind["response.output_item.added"].item
    assert (item.status, item.content) == ("in_progress", [])
    assert len({event.item_id for event in events if hasattr(event, "item_id")} | {item.id}) == 1
    created, completed = events[0].response, events[-1].response
    assert (created.status, created.output, created.usage) == ("in_progress", [], None)
    assert (completed.status, completed.output_text, completed.id) == ("completed", RINGS, created.id)
    assert completed.usage.output_tokens == completed.timings["predicted_n"]


def test_the_wire_has_the_events_names(server):
    text = server.client.post("/v1/responses", json={"input": "Hello!", "stream": True, "temperature": 0}).text
    blocks = [block.split("\n") for block in text.strip().split("\n\n")]
    for name, data in blocks:
        assert name == f"event: {json.loads(data.removeprefix('data: '))['type']}"
    assert blocks[-1][0] == "event: response.completed"


def test_the_events_of_a_call(client):
    events = list(respond(client, "Weather?", stream=True, tools=[TOOL], tool_choice="required", temperature=1))
    assert kinds_of(events) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    by_kind = {event.type: event for event in events}
    done = by_kind["response.function_call_arguments.done"]
    assert by_kind["response.function_call_arguments.delta"].delta == done.arguments
    assert json.loads(done.arguments)["days"] in (1, 2, 3)
    assert by_kind["response.output_item.done"].item == events[-1].response.output[0]


def test_a_stream_that_is_cut_short_is_incomplete(client):
    events = list(respond(client, "Hello!", stream=True, max_output_tokens=2))
    assert kinds_of(events) == [*MESSAGE[:-1], "response.incomplete"]
    assert events[-1].response.incomplete_details.reason == "max_output_tokens"


def test_a_stream_that_fails_says_so(client, server, monkeypatch, seen):
    def encode(*_):
        raise BackendError("out of memory")

    monkeypatch.setattr(server.app.state.pool.loaded()[0].served.images, "encode", encode)
    events = list(respond(client, [message(seen("03_tall.png"), "?")], stream=True))
    assert kinds_of(events) == ["response.created", "response.in_progress", "response.failed"]
    assert (events[-1].response.status, events[-1].response.error.message) == ("failed", "out of memory")
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        respond(client, [message(seen("03_tall.png"), "?")])


def test_the_clients_own_stream_helper(client):
    with client.responses.stream(model="", input="Hello!", temperature=0) as events:
        kinds = kinds_of(events)
        final = events.get_final_response()
    assert kinds == MESSAGE
    assert final.output_text == HELLO


def test_a_client_that_goes_away(client, server):
    events = respond(client, "Hello!", stream=True, max_output_tokens=1900, extra_body=endless(server))
    for _ in range(6):
        next(events)
    events.close()
    wait_until(lambda: n_open(server) == 0)


def test_text_before_a_call_is_a_message_of_its_own():
    """No model here writes one, but another may."""

    def chunk(delta, reason=None):
        return {"choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]}

    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    made = ResponseEvents({"model": "m"}, with_logprobs=False)
    events = made.begin()
    for delta, reason in [({"role": "assistant", "content": ""}, None), ({"content": "Well."}, None),
                          ({"tool_calls": [call]}, None), ({}, "tool_calls")]:  # fmt: skip
        events += made.take(chunk(delta, reason))
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    events += made.end({**usage, "prompt_tokens_details": {"cached_tokens": 1}}, {})
    assert [item["type"] for item in made.response["output"]] == ["message", "function_call"]
    assert [event["output_index"] for event in events if "output_index" in event] == [0] * 6 + [1] * 4
    assert made.response["usage"]["input_tokens_details"]["cached_tokens"] == 1
    assert made.response["status"] == "completed"


def test_an_answer_without_a_word_is_an_empty_message():
    made = ResponseEvents({"model": "m"}, with_logprobs=False)
    made.take({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "logprobs": None}]})
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 0,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    kinds = [event["type"] for event in made.end(usage, {})]
    assert kinds == [kind for kind in MESSAGE[2:] if not kind.endswith("delta")]
    assert made.response["output"][0]["content"][0]["text"] == ""
