"""JSON, schemas, tools and log-probabilities by Ollama's own Python client."""

import json

import ollama
import pytest
from ollama_server import ANSWER, GREEDY, NAME, ask


def test_logprobs(ollama_client, picture):
    def chat(**options):
        return ollama_client.chat(NAME, [ask("Describe the image.", picture)], options=GREEDY, **options)

    assert chat().logprobs is None
    plain = chat(logprobs=True).logprobs
    assert "".join(entry.token for entry in plain).removesuffix("<|eot_id|>") == ANSWER
    assert all(-0.1 < entry.logprob <= 0 and entry.top_logprobs is None for entry in plain)
    pieces = list(chat(logprobs=True, top_logprobs=3, stream=True))
    entries = [entry for piece in pieces for entry in piece.logprobs or ()]
    assert [entry.token for entry in entries] == [entry.token for entry in plain]
    assert all(len(entry.top_logprobs) == 3 and entry.top_logprobs[0].token == entry.token for entry in entries)


def test_an_answer_in_json(ollama_client, picture):
    answer = ollama_client.chat(
        NAME, [ask("Describe the image.", picture)], options={**GREEDY, "num_predict": 300}, format="json"
    )
    if answer.done_reason == "stop":
        assert isinstance(json.loads(answer.message.content), dict)
    else:
        assert answer.message.content.lstrip()[:1] == "{"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_by_a_schema(ollama_client, picture, stream):
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["yellow", "green"]}, "n": {"enum": [1, 2, 3]}},
        "required": ["colour", "n"],
    }
    got = ollama_client.chat(
        NAME, [ask("What colour is the ring?", picture)], options=GREEDY, format=schema, stream=stream
    )
    pieces = list(got) if stream else [got]
    found = json.loads("".join(piece.message.content for piece in pieces))
    assert found.keys() == {"colour", "n"}
    assert found["colour"] in ("yellow", "green")
    assert found["n"] in (1, 2, 3)


def weather(city: str, days: int) -> str:
    """Weather of the next days.

    Args:
        city: where.
        days: how many.
    """


def test_tools_that_need_not_be_called(ollama_client, picture):
    """The pocket model never calls one by itself."""
    plain = [ask("Describe the image.", picture)]
    assert ollama_client.chat(NAME, plain, tools=[weather], options=GREEDY).message.content == ANSWER
    pieces = list(ollama_client.chat(NAME, plain, tools=[weather], options=GREEDY, stream=True))
    assert "".join(piece.message.content for piece in pieces) == ANSWER


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_call(ollama_client, monkeypatch, stream):
    """It is made to call one: what is tested is the way there and back."""
    from pyvllama.chat_options import ChatOptions
    from pyvllama.server.ollama import chat

    class MustCall(ChatOptions):
        @classmethod
        def from_options(cls, defaults, options):
            return ChatOptions.from_options(defaults, {**options, "tool_choice": "required"})

    monkeypatch.setattr(chat, "ChatOptions", MustCall)
    city = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2]}},
                "required": ["city", "days"],
            },
        },
    }
    question = {"role": "user", "content": "What is the weather like?"}
    got = ollama_client.chat(NAME, [question], tools=[city], options=GREEDY, stream=stream)
    pieces = list(got) if stream else [got]
    (call,) = [call for piece in pieces for call in piece.message.tool_calls or ()]
    assert call.function.name == "weather"
    assert call.function.arguments["city"] in ("Rome", "Oslo")  # an object
    assert call.function.arguments["days"] in (1, 2)
    assert not any(piece.message.content for piece in pieces)
    assert pieces[-1].done_reason == "stop"
    monkeypatch.undo()

    told = {"role": "tool", "tool_name": "weather", "content": "11 degrees"}
    message = ollama.Message(role="assistant", content="", tool_calls=[call])
    assert ollama_client.chat(NAME, [question, message, told], tools=[city], options=GREEDY).message.content


def test_a_format_beside_tools(ollama_client):
    """Ollama lets the format decide what the answer looks like; so the tools are only shown."""
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
    answer = ollama_client.chat(NAME, [ask("How many?")], tools=[weather], format=schema, options=GREEDY)
    assert json.loads(answer.message.content)["n"] in (1, 2)
