"""Ollama's words and ours: options, durations, names, messages, answers. No server, no model."""

import base64
import json
import math
import time
from datetime import datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from pyvllama.chat_options import ChatOptions
from pyvllama.errors import ConfigError, ImageError, ModelNotFound
from pyvllama.locate import pocket_pair
from pyvllama.server.model_list import ModelCard
from pyvllama.server.ollama.answers import AnswerShape, metrics
from pyvllama.server.ollama.durations import FOREVER, FOREVER_S, duration_s, rfc3339
from pyvllama.server.ollama.messages import decode_image, openai_messages, openai_tools, prompt_messages
from pyvllama.server.ollama.model_info import human_number
from pyvllama.server.ollama.names import displayed, find_card, hub_name, own_name
from pyvllama.server.ollama.options import sampling_options
from pyvllama.server.ollama.schema import ChatRequest, GenerateRequest
from pyvllama.types import SamplingParams, Timings, Usage

PNG = b"\x89PNG, as far as base64 is concerned"
BASE64 = base64.b64encode(PNG).decode()


def chat(**fields):
    return ChatRequest.model_validate({"model": "m", **fields})


def options(**given):
    return sampling_options(chat(options=given))


# --- options ---


def test_every_option_has_its_place():
    given = {
        "num_predict": 7, "temperature": 0.5, "top_k": 20, "top_p": 0.8, "min_p": 0.05, "repeat_penalty": 1.2,
        "repeat_last_n": 33, "presence_penalty": 1.5, "frequency_penalty": 1.0, "seed": 42, "stop": ["\n", "user:"],
    }  # fmt: skip
    params = ChatOptions.from_options(SamplingParams(), options(**given)).params
    assert params == SamplingParams(
        max_tokens=7, temperature=0.5, top_k=20, top_p=0.8, min_p=0.05, repeat_penalty=1.2, penalty_last_n=33,
        presence_penalty=1.5, frequency_penalty=1.0, seed=42, stop=("\n", "user:"),
    )  # fmt: skip


def test_what_is_not_ours_is_ignored():
    others = {"num_keep": 5, "typical_p": 0.7, "mirostat": 1, "numa": False, "num_gpu": 1, "num_thread": 8, "x": [{}]}
    assert options(**others, num_ctx=1024, temperature=None) == {}


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ({"num_predict": -1}, {}),
        ({"num_predict": -2}, {}),
        ({"num_predict": 0}, {}),
        ({"num_predict": 2**70}, {"max_tokens": 2**31 - 1}),
        ({"num_predict": 8.0}, {"max_tokens": 8}),
        ({"temperature": -1}, {"temperature": 0.0}),
        ({"top_p": 7}, {"top_p": 1.0}),
        ({"min_p": -0.5}, {"min_p": 0.0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"repeat_penalty": 0}, {"repeat_penalty": 1.0}),
        ({"repeat_penalty": 1e-9}, {"repeat_penalty": 0.01}),
        ({"repeat_last_n": -7}, {"penalty_last_n": -1}),
        ({"seed": -1}, {}),
        ({"seed": 2**32 - 1}, {"seed": 0}),
        ({"seed": 2**64}, {"seed": 1}),
        ({"stop": "END"}, {"stop": ("END",)}),
        ({"stop": ["", "END"]}, {"stop": ("END",)}),
    ],
)
def test_odd_values_do_what_ollama_does(given, ours):
    found = options(**given)
    assert found == ours
    ChatOptions.from_options(SamplingParams(), found)  # never out of range


@pytest.mark.parametrize(
    "given",
    [
        {"num_predict": "8"}, {"num_predict": 1.5}, {"temperature": "hot"}, {"temperature": True}, {"seed": [1]},
        {"stop": [1]}, {"stop": {"a": "b"}}, {"top_p": math.nan}, {"temperature": math.inf}, {"seed": math.inf},
    ],
)  # fmt: skip
def test_wrong_types_are_refused(given):
    with pytest.raises(ValidationError):
        options(**given)


def test_format():
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    assert sampling_options(chat(format="json")) == {"response_format": {"type": "json_object"}}
    assert sampling_options(chat(format=schema)) == {"response_format": {"type": "json_object", "schema": schema}}
    assert sampling_options(chat(format="")) == sampling_options(chat(format=None)) == {}
    for wrong in ("xml", 1, ["json"]):
        with pytest.raises(ValidationError):
            chat(format=wrong)


def test_logprobs():
    assert sampling_options(chat(logprobs=True)) == {"logprobs": True, "top_logprobs": None}
    assert sampling_options(chat(logprobs=True, top_logprobs=3)) == {"logprobs": True, "top_logprobs": 3}
    assert sampling_options(chat(top_logprobs=3)) == {}
    for wrong in (-1, 21, 1.5, "3"):
        with pytest.raises(ValidationError):
            chat(logprobs=True, top_logprobs=wrong)


# --- times ---


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), (300, 300.0), (0, 0.0), (0.5, 0.5), (-1, FOREVER_S), ("5m", 300.0), ("1h30m", 5400.0),
        ("1.5h", 5400.0), ("500ms", 0.5), ("2s500ms", 2.5), (".5s", 0.5), ("0", 0.0), ("60", 60.0), ("-1", FOREVER_S),
        ("-1m", FOREVER_S), ("+5m", 300.0), ("10µs", 1e-5), ("100ns", 1e-7), (1e300, FOREVER_S),
        ("99999999h", FOREVER_S), ("5", 5.0), ("1" * 400, FOREVER_S),
    ],
)  # fmt: skip
def test_keep_alive(value, seconds):
    assert duration_s(value) == pytest.approx(seconds) if seconds is not None else duration_s(value) is None
    assert chat(keep_alive=value).keep_alive == value


@pytest.mark.parametrize("text", ["", "m", "5x", "5 m", "--1", "1e3", "five", "5m\n", "٥m"])
def test_what_is_no_duration(text):
    with pytest.raises(ConfigError, match="keep_alive is"):
        duration_s(text)


def test_a_long_keep_alive_takes_no_long_time():
    """A client's text, read on the event loop: what is not linear would stop the whole server."""
    begin = time.monotonic()
    assert duration_s("1" * 10**5) == duration_s("1" * 10**5 + "h") == FOREVER_S
    assert duration_s("1m" * 10**5) == 6e6
    for text in ("1" * 10**5 + "x", "1m" * 10**5 + "x", "." * 10**5, "1." * 10**5):
        with pytest.raises(ConfigError, match="keep_alive is"):
            duration_s(text)
    assert time.monotonic() - begin < 10  # milliseconds as a rule; it was cubic: minutes for 3,000 digits


def test_times_are_rfc_3339():
    then = datetime(2026, 11, 23, 6, 10, 0, 1234, tzinfo=timezone(timedelta(hours=1)))
    assert rfc3339(then) == "2026-11-23T05:10:00.001234Z"
    assert rfc3339(datetime.now(timezone.utc) + FOREVER).startswith("2")


# --- names ---


@pytest.mark.parametrize(
    ("name", "shown", "own"),
    [
        ("pocket-vllama", "pocket-vllama:latest", "pocket-vllama"),
        ("pocket-vllama:latest", "pocket-vllama:latest", "pocket-vllama"),
        ("somebody/Repo:Q4_K_M", "somebody/Repo:Q4_K_M", "somebody/Repo:Q4_K_M"),
        ("hf.co/somebody/Repo", "hf.co/somebody/Repo:latest", "somebody/Repo"),
        (
            "https://huggingface.co/somebody/Repo:q8_0",
            "https://huggingface.co/somebody/Repo:q8_0",
            "somebody/Repo:q8_0",
        ),
        ("HF.co/somebody/Repo:latest", "HF.co/somebody/Repo:latest", "somebody/Repo"),
        ("ollama:llama3.2-vision", "llama3.2-vision:latest", "ollama:llama3.2-vision"),
        ("nohf.co/somebody", "nohf.co/somebody:latest", "nohf.co/somebody"),
    ],
)
def test_names(name, shown, own):
    assert displayed(name) == shown
    assert own_name(name) == own


def test_names_to_pull():
    assert hub_name("somebody/Repo") == ("somebody/Repo", None)
    assert hub_name("hf.co/somebody/Repo:q4_k_m") == ("somebody/Repo", "q4_k_m")
    assert hub_name("somebody/Repo:latest") == ("somebody/Repo", None)
    for name in ("llama3.2-vision", "llama3.2-vision:11b", "../../etc/passwd", "a/b/c", "http://x.org/a/b", "/a/b"):
        with pytest.raises(ModelNotFound, match=r"has no access to Ollama's library.*USER/REPO:QUANT"):
            hub_name(name)
    with pytest.raises(ConfigError, match="model is required"):
        hub_name("")


def test_names_of_repositories():
    def kept(name, kind):
        return ModelCard(name, pocket_pair(), type=kind, is_kept=True)

    cards = [ModelCard("a/b", pocket_pair()), kept("me/Repo:Q8_0", "Q8_0"), kept("me/Repo:Q4_K_M", "Q4_K_M")]
    cards += [ModelCard("ollama:llama3.2-vision:11b", pocket_pair())]  # what `pyvllama serve ollama:NAME` serves
    cards += [kept("me/Other/sub/x-Q5_0.gguf", "Q5_0"), kept("Tiny-F32", "F32")]
    for name, wanted in [
        ("a/b", "a/b"), ("hf.co/me/Repo", "me/Repo:Q4_K_M"), ("me/repo:q8_0", "me/Repo:Q8_0"),
        ("hf.co/me/Repo:latest", "me/Repo:Q4_K_M"), ("me/Other", "me/Other/sub/x-Q5_0.gguf"), ("tiny-f32", "Tiny-F32"),
        ("llama3.2-vision:11b", "ollama:llama3.2-vision:11b"),
    ]:  # fmt: skip
        assert find_card(cards, name).name == wanted
    for name in ("me/Rep", "me/Repo:Q5_0", "a", "b", "me", "Tiny"):
        assert find_card(cards, name) is None


# --- messages ---


def test_messages():
    call = {"name": "f", "arguments": {"a": 1}}
    given = [
        {"role": "System", "content": "Be brief."},
        {"role": "user", "content": "What is this?", "images": [BASE64, f"data:image/png;base64,{BASE64}"]},
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [{"function": call}]},
        {"role": "tool", "content": "42", "tool_name": "f"},
        {"role": "assistant", "content": None},
        {"role": "user", "images": [BASE64]},
        {"role": "user", "content": "And now?", "images": None},
    ]  # fmt: skip
    image = {"type": "image", "image": PNG}
    assert openai_messages(chat(messages=given).messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image, image, {"type": "text", "text": "What is this?"}]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": call}],
        },
        {"role": "tool", "content": "42", "name": "f"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": [image]},
        {"role": "user", "content": "And now?"},
    ]


def test_a_prompt_is_a_conversation():
    assert prompt_messages("Hi", None, []) == [{"role": "user", "content": "Hi"}]
    assert prompt_messages("Hi", "Be brief.", [BASE64]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": PNG}, {"type": "text", "text": "Hi"}]},
    ]


@pytest.mark.parametrize(
    "text", [BASE64, BASE64.rstrip("="), f"data:image/jpeg;base64,{BASE64}", f"\n{BASE64[:8]}\r\n {BASE64[8:]}\n"]
)
def test_pictures(text):
    assert decode_image(text, "images[0]") == PNG


def test_a_path_that_is_base64_by_its_letters_is_never_opened():
    assert decode_image("/etc/passwd", "x") == base64.b64decode("/etc/passwd=")  # bytes that are no picture


@pytest.mark.parametrize(
    "text", ["", "~/cat.png", "https://example.org/cat.png", "data:image/png;base64,", "ä", "A", "a-b_"]
)
def test_what_is_no_picture(text):
    with pytest.raises(ImageError, match=r"messages\[1\]\.images\[0\] is no picture in base64"):
        openai_messages(chat(messages=[{"role": "user"}, {"role": "user", "images": [text]}]).messages)


def test_tools_go_on_as_they_came():
    tool = {
        "type": "function",
        "function": {"name": "f", "description": None, "strict": True, "parameters": {"type": "object"}},
    }
    assert openai_tools(chat(tools=[tool]).tools) == [
        {"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "object"}}}
    ]
    assert openai_tools(chat(tools=[]).tools) is openai_tools(None) is None


# --- answers ---

HEAD = {"model": "x:latest", "done": False}


def chunk(delta, finish_reason=None, logprobs=None):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": logprobs}]}


def shown(answer):
    found = json.loads(answer.model_dump_json(exclude_none=True))
    datetime.fromisoformat(found.pop("created_at").replace("Z", "+00:00"))
    return found


def test_pieces():
    chat_shape, shape = AnswerShape("x:latest", is_chat=True), AnswerShape("x:latest", is_chat=False)
    assert shape.piece(chunk({"role": "assistant", "content": ""})) is None
    assert shape.piece(chunk({}, "stop")) is None
    assert shown(shape.piece(chunk({"content": "A ring"}))) == {**HEAD, "response": "A ring"}
    message = {"role": "assistant", "content": "A ring"}
    assert shown(chat_shape.piece(chunk({"content": "A ring"}))) == {**HEAD, "message": message}


def test_tool_calls_have_objects_for_arguments():
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"city": "Rome"}'}}
    wanted = {"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"city": "Rome"}}}
    message = {"role": "assistant", "content": "", "tool_calls": [wanted]}
    shape = AnswerShape("x:latest", is_chat=True)
    assert shown(shape.piece(chunk({"tool_calls": [{"index": 0, **call}]}))) == {**HEAD, "message": message}
    completion = {
        "choices": [
            {"message": {"content": None, "tool_calls": [call]}, "finish_reason": "tool_calls", "logprobs": None}
        ]
    }
    whole = shown(shape.whole(completion, {}))
    assert (whole["message"], whole["done"], whole["done_reason"]) == (message, True, "stop")


def test_logprobs_are_a_list():
    entry = {"token": "A", "logprob": -0.5, "bytes": [65]}
    logprobs = {"content": [{**entry, "top_logprobs": [entry]}, {**entry, "top_logprobs": []}], "refusal": None}
    found = shown(AnswerShape("x:latest", is_chat=False).piece(chunk({"content": ""}, logprobs=logprobs)))
    assert found == {**HEAD, "response": "", "logprobs": [{**entry, "top_logprobs": [entry]}, entry]}


def test_the_last_line_has_the_costs_in_nanoseconds():
    timings = Timings(image_encode_ms=1500.5, prompt_n=3, prompt_ms=20.25, predicted_n=4, predicted_ms=10)
    costs = metrics(timings, Usage(prompt_tokens=21, completion_tokens=5), load_s=0.25, total_s=2.5)
    assert costs == {
        "total_duration": 2_500_000_000,
        "load_duration": 250_000_000,
        "image_encode_duration": 1_500_500_000,
        "prompt_eval_count": 21,
        "prompt_eval_duration": 20_250_000,
        "eval_count": 5,
        "eval_duration": 10_000_000,
    }
    last = shown(AnswerShape("m", is_chat=False).last("length", costs, [1, 2]))
    assert last == {"model": "m", "response": "", "done": True, "done_reason": "length", "context": [1, 2], **costs}
    assert shown(AnswerShape("m", is_chat=True).empty("unload")) == {
        "model": "m",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "unload",
    }


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0"), (999, "999"), (900_000, "900K"), (1_520_000, "1.52M"), (7_000_000, "7M"), (9_775_192_064, "9.8B"),
        (13 * 10**9, "13B"),
    ],
)  # fmt: skip
def test_counts_of_parameters(n, text):
    assert human_number(n) == text


def test_null_is_not_given():
    fields = (
        "prompt",
        "system",
        "suffix",
        "template",
        "raw",
        "stream",
        "images",
        "context",
        "options",
        "think",
        "format",
    )
    request = GenerateRequest.model_validate({"model": "m", **dict.fromkeys(fields), "width": 3, "unknown": {}})
    assert not any(getattr(request, name) for name in fields)
