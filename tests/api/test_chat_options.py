"""OpenAI's options beyond sampling: log-probabilities, several answers, bias, JSON, grammars, tools; and cancelling."""

import json
import threading
import time

import numpy as np
import pytest
from talk import joined, text_of, user

from pyvllama.errors import Cancelled, ConfigError, PromptError

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
QUESTION = [user("What colour is the star?")]


def chunks_of(llm, messages, **options):
    return list(llm.chat(messages, stream=True, **options))


# --- log-probabilities ---


def log_softmax(row):
    x = row.astype(np.float64)
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


def test_logprobs_are_those_of_the_models_logits(exact):
    """Of its own logits: options that change what is chosen do not change them."""
    messages = [user("Hello")]
    options = {
        "temperature": 1.5,
        "top_k": 3,
        "seed": 1,
        "logit_bias": {5: 4.0},
        "max_tokens": 6,
        "repeat_penalty": 1.3,
    }
    choice = exact.chat(messages, logprobs=True, top_logprobs=4, **options)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert 0 < len(entries) <= 6
    assert b"".join(bytes(e["bytes"]) for e in entries).decode(errors="replace") == choice["message"]["content"]
    expected = log_softmax(exact.logits(messages)[-1])
    top = entries[0]["top_logprobs"]
    order = np.argsort(-expected, kind="stable")[:4]
    assert [t["logprob"] for t in top] == pytest.approx(expected[order], abs=1e-4)
    assert [bytes(t["bytes"]) for t in top] == [exact.model.tokenizer.piece(int(i), special=True) for i in order]
    (chosen,) = [
        i for i in range(exact.model.n_vocab)
        if exact.model.tokenizer.piece(i, special=True) == bytes(entries[0]["bytes"])
        and expected[i] == pytest.approx(entries[0]["logprob"], abs=1e-4)
    ]  # fmt: skip
    assert 0 <= chosen < exact.model.n_vocab


def test_logprobs_in_a_stream_are_the_same(llm, sample):
    messages = [user(sample("01_square.png"), "What is this?")]
    whole = llm.chat(messages, temperature=0, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    chunks = chunks_of(llm, messages, temperature=0, logprobs=True, top_logprobs=2)
    streamed = [e for c in chunks for e in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [(e["token"], e["bytes"]) for e in streamed] == [(e["token"], e["bytes"]) for e in whole]
    assert [e["logprob"] for e in streamed] == pytest.approx([e["logprob"] for e in whole], abs=1e-3)
    assert all(len(e["top_logprobs"]) == 2 for e in whole)
    assert all(e["logprob"] <= 0 for e in whole)
    assert "<|eot_id|>" not in [e["token"] for e in whole]


def test_logprobs_are_absent_unless_asked_for(llm):
    assert llm.chat(QUESTION, max_tokens=1)["choices"][0]["logprobs"] is None
    with pytest.raises(ConfigError, match="logprobs = True"):
        llm.chat(QUESTION, top_logprobs=3)
    with pytest.raises(ConfigError, match="top_logprobs must be between 0 and 100"):
        llm.chat(QUESTION, logprobs=True, top_logprobs=1000)


# --- several answers, bias ---


def test_several_answers_are_those_of_their_seeds(exact):
    options = {"temperature": 1.0, "max_tokens": 8}
    messages = [user("Hello")]
    answer = exact.chat(messages, n=3, seed=5, **options)
    assert [c["index"] for c in answer["choices"]] == [0, 1, 2]
    texts = [c["message"]["content"] for c in answer["choices"]]
    assert texts == [text_of(exact.chat(messages, seed=5 + i, **options)) for i in range(3)]
    assert len(set(texts)) > 1
    assert answer["usage"]["completion_tokens"] == answer["timings"]["predicted_n"] <= 24
    chunks = chunks_of(exact, messages, n=3, seed=5, **options)
    for i in range(3):
        mine = [c for c in chunks if c["choices"][0]["index"] == i]
        assert joined(mine) == texts[i]
        assert mine[0]["choices"][0]["delta"]["role"] == "assistant"
        assert mine[-1]["choices"][0]["finish_reason"] == answer["choices"][i]["finish_reason"]
    assert ["usage" in c for c in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize("n", [0, -1, 129, 1.5, True, None])
def test_numbers_of_answers_that_are_none(llm, n):
    with pytest.raises(ConfigError, match="n must be a whole number"):
        llm.chat(QUESTION, n=n)


def test_logit_bias(exact):
    messages = [user("Hello")]
    greedy = int(exact.logits(messages)[-1].argmax())
    piece = exact.model.tokenizer.piece
    options = {"temperature": 0, "max_tokens": 3, "logprobs": True}

    def first(**more):
        return bytes(exact.chat(messages, **options, **more)["choices"][0]["logprobs"]["content"][0]["bytes"])

    assert first() == piece(greedy, special=True)
    assert first(logit_bias={greedy: -1e9}) != piece(greedy, special=True)
    assert first(logit_bias={str(65): 1e9}) == piece(65, special=True)
    with pytest.raises(ConfigError, match="names token 999999, but tokens go from 0 to"):
        exact.chat(messages, logit_bias={999999: 1})


# --- grammars ---


@pytest.mark.parametrize("seed", range(6))
def test_a_json_schema_is_kept(llm, sample, seed):
    properties = {"colour": {"enum": ["red", "blue"]}, "n": {"enum": [1, 2]}, "round": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    formats = [
        {"type": "json_schema", "json_schema": {"name": "shape", "schema": schema}},
        {"type": "json_object", "schema": schema},
    ]
    messages = [user(sample("01_square.png"), "What is this?")]
    answer = llm.chat(messages, response_format=formats[seed % 2], temperature=2.0, seed=seed, max_tokens=200)
    value = json.loads(text_of(answer))
    assert value.keys() == properties.keys()
    assert value["colour"] in ("red", "blue")
    assert value["n"] in (1, 2)
    assert isinstance(value["round"], bool)
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_json_objects_begin_as_such(llm):
    text = text_of(llm.chat(QUESTION, response_format={"type": "json_object"}, temperature=0, max_tokens=8))
    assert text.lstrip().startswith("{")
    assert text_of(llm.chat(QUESTION, response_format={"type": "text"}, temperature=0)) == text_of(
        llm.chat(QUESTION, temperature=0)
    )


def test_a_grammar_of_ones_own(llm, sample):
    messages = [user(sample("01_square.png"), "What is this?")]
    for seed in range(5):
        assert text_of(llm.chat(messages, grammar='root ::= "yes" | "no"', temperature=3.0, seed=seed)) in ("yes", "no")
    free = text_of(llm.chat(messages, temperature=0))
    assert text_of(llm.chat(messages, grammar="root ::= [^\\x00]*", temperature=0)) == free


def test_a_constraint_changes_no_choice_that_it_allows(exact):
    """Also with penalties, which count each token once whatever was tried before."""
    options = {"temperature": 0.8, "seed": 3, "repeat_penalty": 1.5, "max_tokens": 12}
    want = exact.chat([user("Hello")], **options)
    got = exact.chat([user("Hello")], grammar="root ::= [\\U00000000-\\U0010FFFF]*", **options)
    if all(ord(c) < 0xFFFD for c in text_of(want)):  # half characters are no text that a grammar can allow
        assert text_of(got) == text_of(want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grammar": "root ::= ("}, "does not understand the grammar"),
        ({"grammar": 'start ::= "a"'}, "does not understand the grammar"),
        ({"grammar": "  "}, "grammar must be a text"),
        ({"grammar": f'root ::= {"(" * 50_000}"a"{")" * 50_000}'}, r"grammar has '\(' 50000 times, more than 4000"),
        ({"grammar": "root ::= " + "".join(f"r{i}\nr{i} ::= " for i in range(50_000))}, "50001 times, more than 10000"),
        ({"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}}, "grammar and response_format were"),
        ({"response_format": {"type": "xml"}}, "response_format.type is 'xml'"),
        ({"response_format": "json"}, "must be an object"),
        ({"response_format": {"type": "json_schema"}}, "needs"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}}, "must be a JSON schema"),
        (
            {"response_format": {"type": "json_object", "schema": {"$ref": "https://example.com/s.json"}}},
            "cannot be made a grammar",
        ),
        ({"tool_choice": "required"}, "there are no tools"),
        ({"tools": [WEATHER], "tool_choice": "always"}, "tool_choice is 'always'"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "'x', which is not"),
        ({"tools": [{"type": "function"}]}, r"tools\[0\] must be"),
    ],
)  # fmt: skip
def test_constraints_that_are_none(llm, options, message):
    with pytest.raises((ConfigError, PromptError), match=message):
        llm.chat(QUESTION, max_tokens=3, **options)
    assert text_of(llm.chat(QUESTION, max_tokens=3))


# --- tools ---


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_required_calls_are_well_formed(llm, choice, seed):
    tools = [WEATHER] if choice == "required" else [CLOCK, WEATHER]
    options = {"tools": tools, "tool_choice": choice, "temperature": 2.0, "seed": seed, "max_tokens": 200}
    answer = llm.chat(QUESTION, **options)["choices"][0]
    assert answer["finish_reason"] == "tool_calls"
    assert answer["message"]["content"] is None
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    arguments = json.loads(call["function"]["arguments"])
    assert arguments["city"] in ("Rome", "Oslo")
    assert arguments["days"] in (1, 2, 3)
    chunks = chunks_of(llm, QUESTION, **options)
    assert joined(chunks) == ""
    (streamed,) = [c["choices"][0]["delta"]["tool_calls"] for c in chunks if "tool_calls" in c["choices"][0]["delta"]]
    assert streamed[0]["function"] == call["function"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_tools_that_need_not_be_called(llm):
    """The pocket model never calls one; an answer that begins like a call is held to be one."""
    plain = llm.chat(QUESTION, temperature=0)
    offered = llm.chat(QUESTION, temperature=0, tools=[WEATHER], tool_choice="none")
    assert text_of(offered) == text_of(plain)
    auto = llm.chat(QUESTION, temperature=0, tools=[WEATHER])["choices"][0]
    assert auto["message"]["content"]
    assert joined(chunks_of(llm, QUESTION, temperature=0, tools=[WEATHER])) == auto["message"]["content"]
    (brace,) = llm.model.tokenizer.tokenize("{")
    forced = llm.chat(QUESTION, temperature=0, tools=[WEATHER], logit_bias={brace: 30}, max_tokens=200)["choices"][0]
    assert forced["finish_reason"] == "tool_calls"
    assert forced["message"]["tool_calls"][0]["function"]["name"] == "weather"


# --- cancelling ---


def test_cancelled_from_another_thread(endless):
    started = threading.Event()
    failures = []

    def chat():
        stream = endless.chat([user("Hello")], stream=True)
        try:
            for _ in stream:
                started.set()
                time.sleep(0.001)
        except Cancelled as e:
            failures.append(e)

    thread = threading.Thread(target=chat, daemon=True)
    thread.start()
    assert started.wait(30)
    endless.cancel()
    thread.join(30)
    assert len(failures) == 1
    assert endless.chat([user("Hello")], max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_prompt_is_cancelled_in_its_middle(load_tiny):
    """The call raises, and what it had computed is as if it had never been."""
    llm = load_tiny(n_ctx=8192, n_batch=4096, n_ubatch=4096)
    messages = [user("word " * 2000)]
    want = llm.logits([user("Hello")])[-1]
    failures = []

    def chat():
        try:
            llm.chat(messages, max_tokens=1)
        except Cancelled as e:
            failures.append(e)

    thread = threading.Thread(target=chat, daemon=True)
    thread.start()
    while thread.is_alive() and not failures:
        llm.cancel()  # at any moment; before the call has begun it does nothing
        time.sleep(0.005)
    thread.join(60)
    assert len(failures) <= 1
    assert np.abs(llm.logits([user("Hello")])[-1] - want).max() < 1e-4


def test_an_image_is_cancelled_while_it_is_encoded(load_tiny):
    llm = load_tiny()
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)

    def progress(_):
        llm.cancel()

    with pytest.raises(Cancelled):
        llm.chat([user(picture, "Hello")], max_tokens=1, image_progress=progress)
    assert llm.chat([user(picture, "Hello")], max_tokens=1)["timings"]["image_cached"] == 0
