"""What requests of OpenAI's API say, as options and conversations; no server."""

from types import SimpleNamespace

import pytest

from pyvllama.server.openai.answers import ChatChunk
from pyvllama.server.openai.chat_request import ChatRequest, read_conversation
from pyvllama.server.openai.completion_request import CompletionRequest
from pyvllama.server.openai.costs import costs_of
from pyvllama.server.openai.documents import streamed
from pyvllama.server.openai.response_request import ResponseRequest
from pyvllama.types import _RANGES, SamplingParams, Timings, Usage

HELLO = {"messages": [{"role": "user", "content": "Hello!"}]}
OTHER_NAMES = {"penalty_last_n": "repeat_last_n", "max_tokens": "max_tokens"}
NARROWER = {"top_logprobs": (0, 20)}  # OpenAI's own limit
WIDER = {"seed": (-(10**19), 10**19), "top_k": (-1, 2**31 - 1)}  # OpenAI's 64 bits; -1 is off


@pytest.mark.parametrize("option", _RANGES)
def test_the_document_has_the_ranges_that_hold(option):
    """One place says them, this one repeats them: they must not part."""
    field = ChatRequest.model_json_schema()["properties"][OTHER_NAMES.get(option, option)]
    number = next(s for s in field["anyOf"] if s.get("type") in ("number", "integer") and "const" not in s)
    want = NARROWER.get(option) or WIDER.get(option) or _RANGES[option]
    assert (number["minimum"], number["maximum"]) == want


@pytest.mark.parametrize("model", [ChatRequest, CompletionRequest, ResponseRequest])
def test_every_field_is_described(model):
    for name, field in model.model_json_schema()["properties"].items():
        assert field.get("description"), name


def test_what_is_not_said_is_the_models_own():
    defaults = SamplingParams(temperature=0.3, top_p=0.8, top_k=7, seed=5)
    for body in (ChatRequest(**HELLO), ResponseRequest(input="Hello!")):
        options = body.options()
        names = ("n", "logprobs", "top_logprobs", "response_format", "grammar", "tools", "tool_choice")
        sampling = {name: value for name, value in options.items() if name not in names}
        assert SamplingParams.from_options(defaults, sampling) == defaults
        assert {name: options.get(name) for name in names if options.get(name)} in ({}, {"n": 1})


@pytest.mark.parametrize(
    ("said", "option", "want"),
    [
        ({"max_tokens": 5}, "max_tokens", 5),
        ({"max_tokens": 5, "max_completion_tokens": 3}, "max_tokens", 3),
        ({"max_tokens": 5, "max_completion_tokens": -1}, "max_tokens", None),
        ({"max_tokens": 64.0}, "max_tokens", 64),
        ({"top_k": -1}, "top_k", 0),
        ({"seed": -1}, "seed", None),
        ({"seed": 2**32 - 1}, "seed", 0),
        ({"seed": -2}, "seed", 2**32 - 3),
        ({"stop": []}, "stop", None),
        ({"repeat_last_n": 9}, "penalty_last_n", 9),
        ({"n": None}, "n", 1),
    ],
)
def test_options(said, option, want):
    assert ChatRequest(**HELLO, **said).options()[option] == want


def test_messages_are_given_on_without_what_was_not_said():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "developer", "content": "Be brief.", "name": None, "no_such_field": 1},
        {"role": "assistant", "tool_calls": [call]},
    ]
    assert read_conversation(ChatRequest(messages=messages).messages) == [
        {"role": "developer", "content": "Be brief."},
        messages[1],
    ]


def test_costs_of_several_answers_are_sums():
    def answer(n_prompt, n, draft_n=None):
        timings = Timings(prompt_n=n_prompt - 2, prompt_ms=10.0, predicted_n=n, draft_n=draft_n)
        return SimpleNamespace(usage=Usage(n_prompt, n), timings=timings)

    costs = costs_of(answer(10, 3), answer(20, 4, draft_n=5), answer(5, 1, draft_n=0))
    assert costs["usage"] == {
        "prompt_tokens": 35,
        "completion_tokens": 8,
        "total_tokens": 43,
        "prompt_tokens_details": {"cached_tokens": 6},
    }
    assert (costs["timings"]["cache_n"], costs["timings"]["prompt_n"], costs["timings"]["predicted_n"]) == (6, 29, 8)
    assert costs["timings"]["draft_n"] == 5
    assert costs["timings"]["prompt_per_token_ms"] == pytest.approx(30 / 29)
    assert "draft_n" not in costs_of(answer(10, 3))["timings"]


def test_an_events_document_has_no_references():
    """They would point to nowhere from inside of a media type."""
    text = str(streamed(ChatChunk, "", "")[200]["content"])
    assert "$ref" not in text
    assert "finish_reason" in text
    assert "[DONE]" in text
    assert "[DONE]" not in str(streamed(ChatChunk, "", "", ends_with_done=False)[200]["content"])
