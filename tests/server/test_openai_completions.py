"""`/v1/completions` asked by the official client: prompts of every kind, the old shape of log-probabilities."""

import math

import openai
import pytest
from openai.types import Completion
from openai_talk import SHAPE, connect, endless, n_open

PROMPT = "<|start_header_id|>user<|end_header_id|>\n\nHello!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
ANSWER = "Hello! Please show me an image."


@pytest.fixture(scope="module")
def client(server):
    with connect(server) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(server):
    return server.app.state.pool.loaded()[0].served.model.tokenizer


def complete(client, prompt, **options):
    return client.completions.create(**{"model": "", "prompt": prompt, "temperature": 0, "max_tokens": 20, **options})


def texts(completion):
    return [choice.text for choice in completion.choices]


def test_a_prompt_is_gone_on_with(client):
    got = complete(client, PROMPT)
    assert isinstance(got, Completion)
    assert Completion.model_validate(got.model_dump(), strict=True)
    assert (got.object, got.model, got.id[:5]) == ("text_completion", "pocket-vllama", "cmpl-")
    assert texts(got) == [ANSWER], "special tokens in a prompt are such tokens"
    assert (got.choices[0].finish_reason, got.choices[0].logprobs) == ("stop", None)
    assert got.usage.total_tokens == got.usage.prompt_tokens + got.usage.completion_tokens
    assert got.timings["predicted_n"] == got.usage.completion_tokens


def test_tokens_are_a_prompt_too(client, tokenizer):
    ids = [tokenizer.bos, *tokenizer.tokenize(PROMPT, parse_special=True)]
    got = complete(client, ids)
    assert texts(got) == [ANSWER]
    assert got.usage.prompt_tokens == len(ids) == complete(client, PROMPT).usage.prompt_tokens


@pytest.mark.parametrize("as_tokens", [False, True])
def test_several_prompts_have_their_answers_in_order(client, tokenizer, as_tokens):
    words = [PROMPT, "A red", "A yellow"]
    prompts = [[tokenizer.bos, *tokenizer.tokenize(w, parse_special=True)] for w in words] if as_tokens else words
    got = complete(client, prompts, n=2, max_tokens=4)
    assert [choice.index for choice in got.choices] == list(range(6))
    alone = [complete(client, word, max_tokens=4) for word in words]
    assert texts(got) == [text for one in alone for text in texts(one) * 2]
    assert len({*texts(got)}) > 1
    assert got.usage.prompt_tokens == sum(one.usage.prompt_tokens for one in alone)
    assert got.usage.completion_tokens == 2 * sum(one.usage.completion_tokens for one in alone)


def test_sixteen_tokens_unless_it_is_said(client, server):
    options = {"max_tokens": openai.NOT_GIVEN, **endless(server)}
    got = complete(client, "A red", **options)
    assert (got.usage.completion_tokens, got.choices[0].finish_reason) == (16, "length")


def test_echo(client, tokenizer):
    assert texts(complete(client, "A red", max_tokens=3, echo=True)) == [
        "A red" + texts(complete(client, "A red", max_tokens=3))[0]
    ]
    ids = tokenizer.tokenize("A red é")
    assert texts(complete(client, ids, max_tokens=1, echo=True))[0].startswith("A red é")


@pytest.mark.parametrize("n_top", [0, 2])
def test_log_probabilities_in_the_old_shape(client, n_top):
    got = complete(client, PROMPT, logprobs=n_top).choices[0]
    log = got.logprobs
    assert len(log.tokens) == len(log.token_logprobs) == len(log.top_logprobs) == len(log.text_offset)
    assert "".join(log.tokens) == got.text == ANSWER
    for token, offset, logprob, top in zip(
        log.tokens, log.text_offset, log.token_logprobs, log.top_logprobs, strict=True
    ):
        assert got.text[offset:].startswith(token)
        assert logprob <= 0
        assert len(top) == n_top
        if top:
            assert top[token] == max(top.values()) == logprob
            assert sum(map(math.exp, top.values())) <= 1 + 1e-6


def test_log_probabilities_of_halves_of_characters(client, tokenizer):
    """OpenAI spells bytes that are no text; an offset within a character is that of its beginning."""
    first, second = tokenizer.tokenize("é")
    bias = {"logit_bias": {str(first): 1e9}}
    log = complete(client, "A", logprobs=1, max_tokens=1, **bias).choices[0].logprobs
    assert (log.tokens, log.text_offset) == (["bytes:\\xc3"], [0])
    assert second


def test_streams(client):
    chunks = list(complete(client, [PROMPT, "A red"], stream=True, n=2, max_tokens=6, logprobs=1))
    plain = complete(client, [PROMPT, "A red"], n=2, max_tokens=6, logprobs=1)
    for i, choice in enumerate(plain.choices):
        mine = [c for chunk in chunks for c in chunk.choices if c.index == i]
        assert "".join(c.text for c in mine) == choice.text
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
        logs = [c.logprobs for c in mine if c.logprobs]
        assert [token for log in logs for token in log.tokens] == choice.logprobs.tokens
        assert [offset for log in logs for offset in log.text_offset] == choice.logprobs.text_offset
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert [chunk for chunk in chunks if hasattr(chunk, "timings")] == [chunks[-1]]
    assert not [chunk for chunk in chunks if chunk.usage]


def test_streams_with_echo_and_usage(client):
    *chunks, last = complete(client, "A red", stream=True, echo=True, stream_options={"include_usage": True})
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == texts(complete(client, "A red", echo=True))[0]
    assert chunks[0].choices[0].text == "A red"
    assert last.choices == []
    assert last.usage.completion_tokens == complete(client, "A red").usage.completion_tokens
    assert last.timings["predicted_n"] == last.usage.completion_tokens


def test_grammars_and_schemas(client, server):
    import json

    assert texts(complete(client, "A", extra_body={"grammar": 'root ::= "yes"'})) == ["yes"]
    body = {"prompt": "A", "json_schema": SHAPE, "max_tokens": 60, "temperature": 0}
    got = server.client.post("/v1/completions", json=body).json()["choices"][0]
    assert json.loads(got["text"]).keys() == {"colour", "round"}


@pytest.mark.parametrize(
    ("options", "param", "match"),
    [
        ({"suffix": "end"}, "suffix", "cannot fill in a middle"),
        ({"best_of": 2}, "best_of", "must equal n"),
        ({"echo": True, "logprobs": 1}, "echo", "not both"),
        ({"logprobs": 21}, "logprobs", "less than or equal to 20"),
        ({"prompt": []}, "prompt", "at least 1 item"),
        ({"prompt": [1, "a"]}, "prompt[1]", "valid integer"),
        ({"prompt": [-1]}, "prompt[0]", "greater than or equal to 0"),
        ({"prompt": [999999]}, None, "no token 999999"),
        ({"prompt": [999999], "echo": True}, "prompt", "the token 999999"),
        ({"prompt": "a <|image|>"}, None, "1 image tokens for 0 pictures"),
        ({"prompt": ["a"] * 65, "n": 2}, "n", "at most 128"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ],
    ids=str,
)
def test_what_is_wrong(client, options, param, match):
    with pytest.raises(openai.BadRequestError, match=match) as caught:
        complete(client, **{"prompt": "a", **options})
    assert caught.value.param == param


def test_best_of_n_is_all_of_them(client):
    assert len(complete(client, "A", best_of=2, n=2, max_tokens=1).choices) == 2


def test_a_context_that_is_too_small(client):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, "word " * 3000)
    assert caught.value.code == "context_length_exceeded"


def test_if_one_of_several_does_not_fit_none_goes_on(client, server):
    with pytest.raises(openai.BadRequestError):
        complete(client, ["A", "word " * 3000], max_tokens=1000, **endless(server))
    assert n_open(server) == 0
