"""`/v1/chat/completions` asked by the official client: what it answers, and that the client understands it."""

import json
import math
import time

import openai
import pytest
from openai.types.chat import ChatCompletion
from openai_talk import RINGS, SHAPE, WEATHER, connect, picture, said

TOOL = {"type": "function", "function": WEATHER}


@pytest.fixture(scope="module")
def client(server):
    with connect(server) as client:
        yield client


@pytest.fixture(scope="module")
def samples_dir(pocket_checkpoint):
    return pocket_checkpoint / "samples"


def chat(client, messages, **options):
    return client.chat.completions.create(**{"model": "", "messages": messages, "temperature": 0, **options})


def text_of(completion):
    return completion.choices[0].message.content


# --- answers ---


def test_every_sample_picture_is_answered_as_by_the_model_alone(client, samples):
    n_asked = 0
    for sample in samples[:3]:
        for qa in sample["qa"]:
            got = chat(client, [said(picture(sample["path"]), qa["question"])])
            assert text_of(got) == qa["expected"], (sample["image"], qa["question"])
            n_asked += 1
    assert n_asked == 12


def test_a_completion_is_what_the_client_takes_it_for(client, samples_dir):
    got = chat(client, [said(picture(samples_dir / "01_square.png"), "Describe the image.")])
    assert isinstance(got, ChatCompletion)
    assert ChatCompletion.model_validate(got.model_dump(), strict=True)
    assert (got.object, got.model, got.choices[0].finish_reason) == ("chat.completion", "pocket-vllama", "stop")
    assert got.choices[0].message.role == "assistant"
    usage, timings = got.usage, got.timings
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == timings["cache_n"]
    assert timings["cache_n"] + timings["prompt_n"] == usage.prompt_tokens
    assert timings["predicted_n"] == usage.completion_tokens
    assert timings["predicted_per_second"] == pytest.approx(1000 * timings["predicted_n"] / timings["predicted_ms"])
    assert timings["predicted_per_token_ms"] == pytest.approx(timings["predicted_ms"] / timings["predicted_n"])


def test_a_conversation_goes_on_about_its_pictures(client, samples_dir):
    """Of several the newest is seen; what was said before counts as said."""
    messages = [said(picture(samples_dir / "01_square.png", detail="high"), "What colour is the ring?")]
    for path, question, want in [
        (None, None, "The ring is yellow."),
        (None, "How many shapes are there?", "There are 2 shapes."),
        ("04_strip_4to1.png", "What colour is the diamond?", "The diamond is black."),
    ]:
        if question:
            messages.append(said(*([picture(samples_dir / path)] if path else []), question))
        got = chat(client, messages)
        assert text_of(got) == want
        messages.append(got.choices[0].message.model_dump(exclude_none=True))
    assert got.usage.prompt_tokens_details.cached_tokens > 20, "the earlier turns are not computed again"
    again = chat(client, messages[:-1])
    assert (again.timings["image_cached"], again.timings["image_encode_ms"]) == (2, 0)


def test_prefixes_are_reused_unless_that_is_not_wanted(client, samples_dir):
    messages = [said(picture(samples_dir / "02_wide.png"), "What colour is the cross?")]
    chat(client, messages)
    again = chat(client, messages)
    assert again.timings["cache_n"] > 0
    alone = chat(client, messages, extra_body={"cache_prompt": False})
    assert (alone.timings["cache_n"], alone.usage.prompt_tokens_details.cached_tokens) == (0, 0)
    assert alone.timings["prompt_n"] == alone.usage.prompt_tokens
    assert text_of(alone) == text_of(again) == "The cross is yellow."


@pytest.mark.parametrize(
    "content",
    [
        "Describe the image.",
        [{"type": "text", "text": "Describe the "}, {"type": "text", "text": "image."}],
    ],
)
def test_text_is_text_in_one_piece_or_in_several(client, content):
    got = chat(client, [{"role": "user", "content": content}])
    assert text_of(got) == text_of(chat(client, [{"role": "user", "content": "Describe the image."}]))
    assert got.usage.prompt_tokens == 14


def test_a_pictures_address_may_stand_alone(client, samples_dir):
    part = picture(samples_dir / "01_square.png")
    part["image_url"] = part["image_url"]["url"]
    assert text_of(chat(client, [said(part, "Describe the image.")])) == RINGS


# --- roles ---


def test_developers_are_the_system(client, server):
    def prompt(role):
        messages = [{"role": role, "content": "Be brief.", "name": "x"}, said("Hello!")]
        return server.client.post("/apply-template", json={"messages": messages}).json()["prompt"]

    assert prompt("developer") == prompt("system")
    assert "system<|end_header_id|>\n\nBe brief.<|eot_id|>" in prompt("system")
    assert text_of(chat(client, [{"role": "developer", "content": "Be brief."}, said("Hello!")]))


def test_calls_of_before_are_understood_in_both_forms(client, server):
    call = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    new = [
        said("Weather?"),
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c1", "content": "Rain."},
    ]
    old = [
        said("Weather?"),
        {"role": "assistant", "content": None, "function_call": call},
        {"role": "function", "name": "weather", "content": "Rain."},
    ]
    prompts = [server.client.post("/apply-template", json={"messages": m}).json()["prompt"] for m in (new, old)]
    assert prompts[0] == prompts[1]
    assert "Rain." in prompts[0]
    assert text_of(chat(client, new)) == text_of(chat(client, old))


def test_a_refusal_of_before_is_text(server):
    messages = [
        said("Hello!"),
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "I would rather not."}]},
        said("Why?"),
    ]
    prompt = server.client.post("/apply-template", json={"messages": messages}).json()["prompt"]
    assert "I would rather not.<|eot_id|>" in prompt


# --- options ---


def test_max_tokens_by_either_name_the_newer_first(client):
    short = chat(client, [said("Hello!")], max_tokens=5, max_completion_tokens=2)
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (2, "length")
    assert chat(client, [said("Hello!")], max_tokens=3).usage.completion_tokens == 3
    assert chat(client, [said("Hello!")], max_tokens=-1).choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stop", [" show", [" show", "zzz"]])
def test_stop(client, stop):
    got = chat(client, [said("Hello!")], stop=stop)
    assert (text_of(got), got.choices[0].finish_reason) == ("Hello! Please", "stop")


def test_several_answers(client):
    """Greedy all are the same; else each has a seed of its own."""
    same = chat(client, [said("Hello!")], n=3)
    assert [choice.index for choice in same.choices] == [0, 1, 2]
    assert {choice.message.content for choice in same.choices} == {"Hello! Please show me an image."}
    one = chat(client, [said("Hello!")])
    assert same.usage.completion_tokens == 3 * one.usage.completion_tokens
    assert same.usage.prompt_tokens == one.usage.prompt_tokens
    free = chat(client, [said("Hello!")], n=3, seed=7, temperature=4, top_p=1, max_tokens=8)
    assert len({choice.message.content for choice in free.choices}) == 3


def test_seeds_of_64_bits_and_a_sign(client):
    def answer(seed):
        options = {"temperature": 4, "top_p": 1, "max_tokens": 8, "extra_body": {"cache_prompt": False}}
        return text_of(chat(client, [said("Hello!")], seed=seed, **options))

    assert answer(2**63 - 1) == answer(2**63 - 1) != answer(1)
    assert answer(-5) == answer(2**32 - 1 - 5)
    assert len({answer(-1) for _ in range(4)}) > 1, "llama.cpp's word for another one each time"


def test_log_probabilities(client):
    got = chat(client, [said("Hello!")], logprobs=True, top_logprobs=3).choices[0]
    entries = got.logprobs.content
    assert "".join(entry.token for entry in entries) == got.message.content == "Hello! Please show me an image."
    for entry in entries:
        assert bytes(entry.bytes).decode() == entry.token
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob, "greedy takes the likeliest"
        assert sum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1 + 1e-6
    assert chat(client, [said("Hello!")]).choices[0].logprobs is None


def test_logit_bias_and_extensions(client, server):
    tokenizer = server.app.state.pool.loaded()[0].served.model.tokenizer
    (word,) = tokenizer.tokenize("Yes")
    assert text_of(chat(client, [said("Hello!")], logit_bias={word: 1000}, max_tokens=1)) == "Yes"
    answer = text_of(chat(client, [said("Hello!")]))
    assert text_of(chat(client, [said("Hello!")], extra_body={"top_k": 1}, temperature=5)) == answer
    assert text_of(chat(client, [said("Hello!")], extra_body={"min_p": 1}, temperature=5)) == answer
    off = {"top_k": -1, "min_p": 0, "repeat_penalty": 1, "repeat_last_n": -1}
    assert text_of(chat(client, [said("Hello!")], extra_body=off)) == answer


@pytest.mark.parametrize(
    "options", [{"extra_body": {"repeat_penalty": 50}}, {"presence_penalty": 90}, {"frequency_penalty": 90}]
)
def test_penalties(client, samples_dir, options):
    """RINGS says `at the bottom` twice."""
    messages = [said(picture(samples_dir / "01_square.png"), "Describe the image.")]
    got = text_of(chat(client, messages, max_tokens=20, **options))
    assert got.startswith("A yellow ring at the bottom left and")
    assert not got.startswith(RINGS)


def test_a_grammar_is_followed(client, samples_dir):
    messages = [said(picture(samples_dir / "01_square.png"), "Is there a red ring?")]
    got = chat(client, messages, extra_body={"grammar": 'root ::= "Yes." | "No."'})
    assert text_of(got) == "No."


@pytest.mark.parametrize("seed", range(3))
def test_json_of_a_schema(client, samples_dir, seed):
    form = {"type": "json_schema", "json_schema": {"name": "shape", "strict": True, "schema": SHAPE}}
    messages = [said(picture(samples_dir / "01_square.png"), "What is this?")]
    value = json.loads(text_of(chat(client, messages, response_format=form, temperature=2, seed=seed)))
    assert value.keys() == {"colour", "round"}
    assert value["colour"] in ("red", "yellow")
    assert isinstance(value["round"], bool)


def test_the_clients_own_parser_of_answers(client):
    from typing import Literal

    from pydantic import BaseModel

    class Shape(BaseModel):
        colour: Literal["red", "yellow"]
        count: Literal[1, 2]

    got = client.chat.completions.parse(model="", messages=[said("What?")], response_format=Shape, temperature=0)
    assert isinstance(got.choices[0].message.parsed, Shape)


def test_json_objects_and_plain_text(client):
    got = chat(client, [said("What?")], response_format={"type": "json_object"}, max_tokens=6)
    assert text_of(got).lstrip().startswith("{")
    assert text_of(chat(client, [said("Hello!")], response_format={"type": "text"})) == text_of(
        chat(client, [said("Hello!")])
    )


# --- tools ---


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "function": {"name": "weather"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]},
        },
    ],
    ids=["required", "named", "allowed"],
)
def test_tools_are_called(client, choice):
    tools = [TOOL] if choice == "required" else [{"type": "function", "function": {"name": "clock"}}, TOOL]
    got = chat(client, [said("Weather?")], tools=tools, tool_choice=choice, seed=1, temperature=1).choices[0]
    assert (got.finish_reason, got.message.content) == ("tool_calls", None)
    (call,) = got.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    arguments = json.loads(call.function.arguments)
    assert arguments["city"] in ("Rome", "Oslo")
    assert arguments["days"] in (1, 2, 3)
    answered = chat(
        client,
        [said("Weather?"), got.message.model_dump(exclude_none=True),
         {"role": "tool", "tool_call_id": call.id, "content": "Sunny."}],
        tools=tools,
    )  # fmt: skip
    assert answered.choices[0].finish_reason in ("stop", "tool_calls")


def test_tools_that_need_not_be_called(client):
    plain = text_of(chat(client, [said("Hello!")]))
    assert text_of(chat(client, [said("Hello!")], tools=[TOOL], tool_choice="none")) == plain
    auto = chat(client, [said("Hello!")], tools=[TOOL], tool_choice="auto", max_tokens=20).choices[0]
    assert auto.message.content or auto.message.tool_calls


# --- a context that is full ---


def test_what_does_not_fit_is_refused_or_made_fit(client, server):
    n_ctx = server.app.state.pool.loaded()[0].served.n_ctx
    turn = [said("word " * 400), {"role": "assistant", "content": "I see."}]
    messages = [*turn * (n_ctx // 400), said("Hello!")]
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, messages, max_tokens=8)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    got = chat(client, messages, max_tokens=8, extra_body={"context_shift": True})
    assert got.dropped_turns >= 1
    assert got.usage.prompt_tokens <= n_ctx
    assert got.choices[0].message.content


# --- what is ignored ---


def test_what_we_do_not_know_is_ignored(client, server):
    got = chat(client, [said("Hello!")], user="me", store=True, metadata={"a": "b"}, service_tier="auto",
               parallel_tool_calls=False, reasoning_effort="low", extra_body={"no_such_field": [1]})  # fmt: skip
    assert text_of(got) == "Hello! Please show me an image."
    whole = server.client.post("/v1/chat/completions", json={"messages": [said("Hello!")]}).json()
    assert whole["model"] == "pocket-vllama", "model may be left away"


def test_a_model_by_its_names(client, server):
    card = server.app.state.pool.cards()[0]
    for name in (card.name, *card.aliases, f"{card.name}:latest"):
        assert chat(client, [said("Hello!")], model=name, max_tokens=1).usage.completion_tokens == 1


# --- the log ---


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_has_the_costs_and_not_the_words(client, caplog, stream):
    caplog.set_level("INFO", logger="pyvllama.server")
    got = chat(client, [said("Hello!")], stream=stream)
    if stream:
        assert list(got)
    for _ in range(500):
        if lines := [r.fields for r in caplog.records if r.getMessage() == "request"]:
            break
        time.sleep(0.01)  # the line is written when the last byte is sent
    (line,) = lines
    assert (line["model"], line["prompt_tokens"], line["image_encode_ms"]) == ("pocket-vllama", 12, 0)
    assert line["completion_tokens"] == 9
    assert "Hello" not in json.dumps(line)
