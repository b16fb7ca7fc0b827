"""LLM.chat on the bundled model: OpenAI's shapes, what they cost, when they end."""

import json

import pytest
from talk import assistant, joined, text_of, user

import pyvllama
from pyvllama.errors import BackendError, Cancelled, ConfigError, ContextOverflow, ImageError, PromptError

TIMINGS = {
    "image_encode_ms", "image_cached", "prompt_n", "prompt_ms", "prompt_per_second",
    "predicted_n", "predicted_ms", "predicted_per_second",
}  # fmt: skip
ANSWER = "A yellow ring at the bottom left and an orange triangle at the bottom right."


@pytest.fixture
def question(sample):
    return [user(sample("01_square.png"), "Describe the image.")]


# --- shapes ---


def test_a_completion_has_openais_shape(llm, question):
    got = llm.chat(question)
    assert list(got) == ["id", "object", "created", "model", "choices", "usage", "timings"]
    assert got["object"] == "chat.completion"
    assert got["id"].startswith("chatcmpl-")
    assert isinstance(got["created"], int)
    assert got["model"] == "pocket-vllama"
    assert got["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert set(got["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert set(got["timings"]) == TIMINGS
    json.dumps(got)  # goes over the wire as it is


def test_chunks_have_openais_shape(llm, question):
    chunks = list(llm.chat(question, stream=True))
    first, *middle, last = chunks
    for chunk in chunks:
        assert list(chunk)[:5] == ["id", "object", "created", "model", "choices"]
        (choice,) = chunk["choices"]
        assert list(choice) == ["index", "delta", "finish_reason", "logprobs"]
        assert (chunk["object"], choice["index"], choice["logprobs"]) == ("chat.completion.chunk", 0, None)
        assert (chunk["id"], chunk["created"], chunk["model"]) == (first["id"], first["created"], first["model"])
        json.dumps(chunk)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(list(chunk["choices"][0]["delta"]) == ["content"] for chunk in middle)
    assert all(chunk["choices"][0]["delta"]["content"] for chunk in middle), "no empty deltas"
    assert all(chunk["choices"][0]["finish_reason"] is None and "usage" not in chunk for chunk in chunks[:-1])
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "stop")
    assert set(last) - set(first) == {"usage", "timings"}
    assert set(last["timings"]) == TIMINGS


def test_every_completion_has_an_id_of_its_own(llm):
    assert len({llm.chat([user("Hello!")])["id"] for _ in range(3)}) == 3


@pytest.mark.parametrize("options", [{}, {"max_tokens": 4}, {"stop": ["left", "zzz"]}, {"temperature": 1, "seed": 3}])
def test_a_stream_joined_is_the_plain_answer(llm, question, options):
    plain = llm.chat(question, **options)
    chunks = list(llm.chat(question, stream=True, **options))
    assert joined(chunks) == text_of(plain)
    assert chunks[-1]["choices"][0]["finish_reason"] == plain["choices"][0]["finish_reason"]
    assert chunks[-1]["usage"] == plain["usage"]


def test_a_stream_comes_in_pieces(llm, question):
    assert len(list(llm.chat(question, stream=True))) > 10


def test_errors_of_a_streamed_call_come_at_the_call(llm):
    """Not at the first chunk, when a server has already sent its headers."""
    with pytest.raises(PromptError):
        llm.chat([], stream=True)


# --- counts ---


def test_usage_and_timings_count_the_same(llm, question):
    got = llm.chat(question)
    usage, timings = got["usage"], got["timings"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert timings["predicted_n"] == usage["completion_tokens"]
    tokens = llm.model.tokenizer.tokenize(ANSWER)
    assert usage["completion_tokens"] == len(tokens) + 1  # and the end token
    assert usage["prompt_tokens"] == len(llm.logits(question))
    for what in ("prompt", "predicted"):
        rate = 1000 * timings[f"{what}_n"] / timings[f"{what}_ms"]
        assert timings[f"{what}_per_second"] == pytest.approx(rate)


def test_a_picture_is_one_prompt_token(llm, sample):
    without = llm.chat([user("Hello!")])["usage"]["prompt_tokens"]
    assert llm.chat([user(sample("01_square.png"), "Hello!")])["usage"]["prompt_tokens"] == without + 1


@pytest.mark.parametrize("n", [1, 2, 5])
def test_max_tokens(llm, question, n):
    got = llm.chat(question, max_tokens=n)
    assert got["usage"]["completion_tokens"] == n
    assert got["choices"][0]["finish_reason"] == "length"
    assert ANSWER.startswith(text_of(got))


def test_max_tokens_beyond_the_end_changes_nothing(llm, question):
    got = llm.chat(question, max_tokens=1000)
    assert (text_of(got), got["choices"][0]["finish_reason"]) == (ANSWER, "stop")


def test_an_answer_that_ends_exactly_at_max_tokens(llm, question):
    n = llm.chat(question)["usage"]["completion_tokens"]  # with the end token
    assert llm.chat(question, max_tokens=n)["choices"][0]["finish_reason"] == "stop"
    cut = llm.chat(question, max_tokens=n - 1)
    assert (text_of(cut), cut["choices"][0]["finish_reason"]) == (ANSWER, "length")


def test_an_answer_ends_where_the_context_does(endless):
    got = endless.chat([user("Hello")])
    n_prompt, n_answer = got["usage"]["prompt_tokens"], got["usage"]["completion_tokens"]
    assert got["choices"][0]["finish_reason"] == "length"
    assert n_prompt + n_answer - 1 == endless.n_ctx  # the last token need not fit: nothing follows it
    assert endless.chat([user("Hello")], max_tokens=3)["usage"]["completion_tokens"] == 3


# --- stop strings ---


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        (" at the", "A yellow ring"),
        ("low ri", "A yel"),  # ends within one token, begins within another
        ("A", ""),
        (ANSWER, ""),
        (["triangle", "ring"], "A yellow "),
        ("right.", "A yellow ring at the bottom left and an orange triangle at the bottom "),
    ],
)
def test_nothing_of_a_stop_string_is_shown(llm, question, stop, shown):
    chunks = list(llm.chat(question, stream=True, stop=stop))
    assert joined(chunks) == shown
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] <= 17
    assert text_of(llm.chat(question, stop=stop)) == shown


@pytest.mark.parametrize("stop", ["right.\n", "never there", ["bottom centre", "A yellow rings"]])
def test_a_stop_string_that_never_comes_takes_nothing_away(llm, question, stop):
    got = llm.chat(question, stop=stop)
    assert (text_of(got), got["choices"][0]["finish_reason"]) == (ANSWER, "stop")


def test_a_stop_string_cut_short_by_max_tokens_is_shown_as_far_as_it_came(llm, question):
    n = llm.chat(question)["usage"]["completion_tokens"] - 1
    got = llm.chat(question, stop=ANSWER + " And more.", max_tokens=n)
    assert (text_of(got), got["choices"][0]["finish_reason"]) == (ANSWER, "length")


# --- options ---


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_p": 1.5}, {"top_k": -1},
        {"min_p": 2}, {"repeat_penalty": 0}, {"presence_penalty": 1000}, {"frequency_penalty": -1000},
        {"seed": -1}, {"seed": 2**32 - 1}, {"stop": ""}, {"stop": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_options_out_of_range(llm, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        llm.chat([user("Hello!")], **options)


def test_an_unknown_option_is_a_type_error(llm):
    with pytest.raises(TypeError, match="temprature"):
        llm.chat([user("Hello!")], temprature=0)


def test_the_models_own_defaults_count(llm, question):
    assert llm.model.sampling_defaults.temperature == 0
    assert {text_of(llm.chat(question)) for _ in range(3)} == {ANSWER}


@pytest.mark.parametrize("n_threads", [0, -1, 513, 100000])
def test_threads_out_of_range(n_threads):
    """ggml would end the process."""
    with pytest.raises(ConfigError, match="n_threads"):
        pyvllama.load(n_threads=n_threads)


# --- messages ---


def test_a_system_prompt_counts(exact):
    system = {"role": "system", "content": "Be brief."}
    plain, told = exact.logits([user("Hello")]), exact.logits([system, user("Hello")])
    assert len(told) > len(plain)
    assert abs(told[-1] - plain[-1]).max() > 0.01
    told_as_a_developer = exact.logits([{**system, "role": "developer"}, user("Hello")])
    assert (told_as_a_developer == told).all()


def test_a_system_prompt_takes_no_picture(llm, sample):
    with pytest.raises(PromptError, match="system"):
        llm.chat([{**user(sample("01_square.png")), "role": "system"}, user("Hello!")])


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": ""}], [{"role": "user", "content": []}]])
def test_empty_messages(llm, messages):
    with pytest.raises(PromptError, match="empty"):
        llm.chat(messages)


def test_several_turns_with_a_new_picture_later(llm, sample):
    messages = [user(sample("01_square.png"), "What colour is the ring?")]
    first = text_of(llm.chat(messages))
    assert first == "The ring is yellow."
    messages += [assistant(first), user(sample("02_wide.png"), "What colour is the cross?")]
    assert text_of(llm.chat(messages)) == "The cross is yellow."
    messages = [messages[0], assistant(first), user(sample("17_text.png"), "What does it say?")]
    later = llm.chat(messages)
    alone = llm.chat([messages[-1]])
    assert text_of(later) == text_of(alone) != first


def test_the_models_answer_stands_on_the_newest_picture(llm, sample):
    """The same question about each of two pictures, in both orders."""
    square, wide = sample("01_square.png"), sample("02_wide.png")
    for older, newer in ((square, wide), (wide, square)):
        alone = text_of(llm.chat([user(newer, "How many shapes are there?")]))
        turns = [user(older, "Describe the image."), assistant("Shapes."), user(newer, "How many shapes are there?")]
        assert text_of(llm.chat(turns)) == alone


def test_several_pictures_in_one_message(exact, sample):
    """Each counts, and so does their order."""
    one, two = sample("01_square.png"), sample("02_wide.png")
    logits = {
        name: exact.logits([user(*pictures, "Hello")])[-1]
        for name, pictures in {"1": [one], "2": [two], "12": [one, two], "21": [two, one]}.items()
    }
    for a, b in (("1", "2"), ("1", "12"), ("2", "12"), ("12", "21")):
        assert abs(logits[a] - logits[b]).max() > 1e-3, (a, b)


# --- what goes wrong, and the model afterwards ---


def test_a_prompt_longer_than_the_context_says_both_numbers(load_tiny):
    llm = load_tiny(n_ctx=256)
    want = llm.logits([user("Hello")])
    long = [user("word " * 300)]
    with pytest.raises(ContextOverflow) as caught:
        llm.chat(long)
    message = str(caught.value)
    assert " 256" in message
    with load_tiny(n_ctx=4096) as roomy:
        assert f" {len(roomy.logits(long))} " in message
    assert "n_ctx" in message
    assert (llm.logits([user("Hello")]) == want).all()


def test_a_picture_that_is_none_is_named_by_its_place_or_name(llm, sample, tmp_path):
    (tmp_path / "notes.png").write_text("no picture")
    with pytest.raises(ImageError, match=r"notes\.png"):
        llm.chat([user(sample("01_square.png"), tmp_path / "notes.png", "Hello!")])


def test_looking_at_a_picture_can_be_stopped(load_tiny, sample):
    llm = load_tiny()
    messages = [user(sample("01_square.png"), "Hello")]
    with pytest.raises(Cancelled):
        llm.chat(messages, image_progress=lambda fraction: False)
    got = llm.chat(messages, max_tokens=2)
    assert got["timings"]["image_cached"] == 0
    assert got["usage"]["completion_tokens"] == 2


# --- streams left open ---


def test_an_abandoned_stream_leaves_the_model_ready(llm, question):
    for n_read in (0, 1, 2, 5):
        stream = llm.chat(question, stream=True)
        for _ in range(n_read):
            next(stream)
        stream.close()
        assert text_of(llm.chat(question)) == ANSWER


@pytest.mark.parametrize("n_read", [0, 1, 2, 5])
def test_a_second_call_ends_an_open_stream(llm, question, n_read):
    """With an error, and never with the other call's words; the other call is not disturbed."""
    stream = llm.chat(question, stream=True)
    for _ in range(n_read):
        next(stream)
    assert text_of(llm.chat([user("Hello!")])) == "Hello! Please show me an image."
    with pytest.raises(BackendError, match="another call"):
        list(stream)
    assert list(stream) == []
    assert text_of(llm.chat(question)) == ANSWER


def test_two_streams_in_turn(llm, question):
    first, second = llm.chat(question, stream=True), llm.chat(question, stream=True)
    next(first)
    with pytest.raises(BackendError):
        next(first)
    assert joined(list(second)) == ANSWER


def test_logits_end_an_open_stream_too(llm, question):
    stream = llm.chat(question, stream=True)
    next(stream), next(stream)
    llm.logits([user("Hello!")])
    with pytest.raises(BackendError):
        next(stream)


def test_encoding_a_picture_does_not_disturb_a_stream(llm, question, sample):
    stream = llm.chat(question, stream=True)
    chunks = [next(stream), next(stream)]
    llm.encode_image(sample("02_wide.png"))
    assert joined(chunks + list(stream)) == ANSWER


# --- the end ---


def test_close_is_idempotent_and_everything_after_it_is_refused(question, sample):
    with pyvllama.load(n_ctx=256, n_threads=1) as llm:
        unread, begun = llm.chat(question, stream=True), None
        begun = llm.chat(question, stream=True)
        next(begun), next(begun)
    llm.close()
    llm.close()
    calls = [
        lambda: llm.chat(question),
        lambda: llm.chat(question, stream=True),
        lambda: llm.logits(question),
        lambda: llm.encode_image(sample("01_square.png")),
        lambda: next(begun),
        lambda: list(unread),
    ]
    for call in calls:
        with pytest.raises(BackendError, match="closed"):
            call()


def test_two_models_side_by_side(llm, question):
    with pyvllama.load(n_ctx=256, n_threads=1) as other:
        stream = llm.chat(question, stream=True)
        pieces = []
        for chunk in stream:  # both at work in turn
            pieces.append(chunk)
            assert text_of(other.chat([user("Hello!")])) == "Hello! Please show me an image."
        assert joined(pieces) == ANSWER


@pytest.mark.parametrize("end", ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"])
@pytest.mark.parametrize("stream", [False, True])
def test_each_end_token_ends_an_answer_and_is_not_shown(llm, question, end, stream):
    token = llm.model.tokenizer.special_tokens[end]
    got = llm.chat(question, temperature=0, max_tokens=8, logit_bias={token: 1000.0}, stream=stream)
    chunks = list(got) if stream else []
    assert (joined(chunks) if stream else text_of(got)) == ""
    last = chunks[-1] if stream else got
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["usage"]["completion_tokens"] == 1
