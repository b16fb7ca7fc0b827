"""A draft changes how long an answer takes, never what it says, and leaves nothing behind."""

import itertools

import pytest
from drafts import Scripted, assert_same_answer, scripts
from invariants import max_error
from pictures import noise
from talk import EXACT, assistant, joined, last_logits, text_of, user

import pyvllama
from pyvllama._runtime import llama_cpp
from pyvllama.errors import BackendError, Cancelled, ContextOverflow
from pyvllama.session import Cell

BOUND = 1e-5  # of the logits' RMS: batches of several rows are rounded otherwise
JSON_SCHEMA = {
    "type": "json_schema",
    "json_schema": {"name": "x", "schema": {"type": "object", "properties": {"shape": {"type": "string"}},
                                            "required": ["shape"]}},
}  # fmt: skip


SCRIPTS = (
    *("right", "wrong", "half right", "sometimes silent", "silent", "longer than asked", "ends", "ends later"),
    *("no tokens", "no tokens later", "the image token", "an array"),
)
OPTIONS = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 1.5, "top_p": 1.0, "seed": 3},
    "short": {"temperature": 0, "max_tokens": 5},
    "one token": {"temperature": 0, "max_tokens": 1},
    "several": {"temperature": 2.0, "top_p": 1.0, "seed": 11, "n": 3, "max_tokens": 12},
    "penalties": {"temperature": 0, "repeat_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    "bias": {"temperature": 0, "logit_bias": {"400": 3.0, "401": -5.0}},
    "stop": {"temperature": 0, "stop": [" at", "right."]},
    "json": {"temperature": 0, "response_format": JSON_SCHEMA},
    "grammar": {
        "temperature": 1.0,
        "seed": 2,
        "grammar": 'root ::= ("red" | "blue" | "round " )+ "!"',
        "max_tokens": 9,
    },
    "logprobs": {"temperature": 0, "logprobs": True, "top_logprobs": 3},
}


@pytest.fixture(scope="module")
def plain(pocket_pair):
    """The pocket model, nothing rounded, without a draft."""
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, n_ctx=512, **EXACT) as llm:
        yield llm


@pytest.fixture(scope="module")
def drafted(pocket_pair):
    """The same, with whatever draft the test puts there."""
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, n_ctx=512, draft=Scripted(None), **EXACT) as llm:
        yield llm


def with_script(llm, script, n_max=4):
    llm._draft = Scripted(script, n_max)
    return llm._draft


def known_texts(llm, messages, options):
    """Prompt and answer of each choice, in tokens."""
    texts = []
    for i in range(options.get("n", 1)):
        seed = options["seed"] + i if "seed" in options else None
        llm.chat(messages, **{**options, "n": 1, "seed": seed})
        texts.append([cell.token for cell in llm._session.cells])
    return texts


def cells_of(llm):
    return [(cell.token, cell.image is not None) for cell in llm._session.cells]


def n_held(llm):
    """Positions that llama.cpp holds."""
    return 1 + llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(llm._session.context.handle), 0)


# --- the answer ---


@pytest.mark.parametrize(
    ("name", "script"),
    [(n, s) for n in OPTIONS for s in (SCRIPTS if n in ("greedy", "seeded") else ("right", "wrong", "half right"))],
)
def test_the_answer_is_the_models_own(plain, drafted, sample, name, script):
    options = {"max_tokens": 40, **OPTIONS[name]}
    messages = [user(sample("01_square.png"), "Describe the picture.")]
    texts = known_texts(plain, messages, options)
    want = plain.chat(messages, **options)
    draft = with_script(drafted, scripts(drafted.model, texts)[script])
    got = drafted.chat(messages, **options)
    assert_same_answer(got, want)
    assert cells_of(drafted) == cells_of(plain)
    timings = got["timings"]
    assert 0 <= timings["draft_n_accepted"] <= timings["draft_n"]
    assert all(1 <= n <= draft.n_max for _, n in draft.asked)
    if script in ("wrong", "silent", "ends", "no tokens"):
        assert timings["draft_n_accepted"] == 0
    if script == "right":
        assert timings["draft_n_accepted"] == timings["draft_n"]
        assert len(draft.asked) <= want["usage"]["completion_tokens"] / 2 + 2 * options.get("n", 1)
    # what comes next is computed from nothing but this answer
    following = [*messages, assistant(got["choices"][0]["message"]["content"]), user("Why?")]
    logits = []
    for llm in (plain, drafted):
        with_script(drafted, lambda tokens, n: [])
        llm.chat(following, max_tokens=1, temperature=0)
        logits.append(last_logits(llm))
        assert n_held(llm) == llm._session.n_past
    assert max_error(logits[1], logits[0]) < BOUND


@pytest.mark.parametrize("draft", ["lookup", "model"])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.8, "seed": 5}], ids=["greedy", "seeded"])
def test_as_users_get_it(llm, samples, draft, options):
    """The bundled Q4_K_M pair; its text model is a legal draft for itself that cannot see."""
    path = "lookup" if draft == "lookup" else llm.model.text_path
    with pyvllama.load(n_threads=1, draft=path) as other:
        for shown in samples[:4]:
            messages = [user(shown["path"], shown["qa"][0]["question"])]
            got = other.chat(messages, max_tokens=48, **options)
            assert text_of(got) == text_of(llm.chat(messages, max_tokens=48, **options))
            assert {"draft_n", "draft_n_accepted"} <= set(got["timings"])


def test_timings_say_nothing_of_drafts_without_one(llm):
    assert not any("draft" in key for key in llm.chat([user("Hello")], max_tokens=3)["timings"])


def test_lookup_guesses_what_is_repeated(pocket_pair, plain):
    """A grammar makes the answer repeat itself: whether the model would, does not matter here."""
    grammar = 'root ::= "one two three four five six. one two three four five six. one two three four five six."'
    options = {"temperature": 0, "grammar": grammar, "max_tokens": 100}
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, n_ctx=512, draft="lookup", n_draft=8, **EXACT) as llm:
        got = llm.chat([user("Count")], **options)
    assert text_of(got) == text_of(plain.chat([user("Count")], **options))
    assert got["timings"]["draft_n_accepted"] > got["usage"]["completion_tokens"] / 3


# --- where the answer ends ---


@pytest.mark.parametrize("script", ["right", "wrong", "longer than asked", "sometimes silent"])
@pytest.mark.parametrize("n_max", [1, 3, 200])
def test_until_the_context_is_full(plain, endless, load_tiny, monkeypatch, script, n_max):
    messages = [user(noise(30, 30), "Tell me")]
    want = endless.chat(messages, temperature=0)
    texts = [[cell.token for cell in endless._session.cells]]
    other = load_tiny(n_ctx=256)
    monkeypatch.setattr(other.model.tokenizer, "eog", frozenset())
    with_script(other, scripts(plain.model, texts)[script], n_max)  # another model: here is no end token to name
    got = other.chat(messages, temperature=0)
    assert_same_answer(got, want)
    assert cells_of(other) == cells_of(endless)
    assert got["choices"][0]["finish_reason"] == "length"
    with pytest.raises(ContextOverflow):
        other.chat([user("word " * 300)])
    assert text_of(other.chat(messages, temperature=0)) == text_of(want)


def test_with_context_shift(plain, drafted):
    turns = [user(noise(seed=0), "Question 0")]
    for i in range(1, 12):
        turns += [assistant(f"Answer {i}: " + "word " * 40), user(noise(seed=i), f"Question {i}")]
    want = plain.chat(turns, temperature=0, max_tokens=24, context_shift=True)
    texts = [[cell.token for cell in plain._session.cells]]
    with_script(drafted, scripts(drafted.model, texts)["half right"])
    got = drafted.chat(turns, temperature=0, max_tokens=24, context_shift=True)
    assert_same_answer(got, want)
    assert got["dropped_turns"] == want["dropped_turns"] > 0


# --- streams, cancelling, sessions ---


@pytest.fixture
def square(sample):
    return [user(sample("01_square.png"), "Describe the picture.")]


@pytest.mark.parametrize("script", ["right", "half right", "wrong"])
def test_a_stream_may_be_abandoned_anywhere(plain, drafted, square, script):
    """What was decoded on a guess and not said is no part of the session, whatever chunk it ends at."""
    options = {"temperature": 0, "max_tokens": 16}
    texts = known_texts(plain, square, options)
    want = list(plain.chat(square, stream=True, **options))
    plain.chat([*square, assistant("Hm."), user("Why?")], max_tokens=1, temperature=0)
    logits = last_logits(plain)
    for n in range(1, len(want) + 1):
        with_script(drafted, scripts(drafted.model, texts)[script])
        stream = drafted.chat(square, stream=True, **options)
        got = list(itertools.islice(stream, n))
        assert joined(got) == joined(want[:n])
        plain_stream = plain.chat(square, stream=True, **options)
        list(itertools.islice(plain_stream, n))
        assert cells_of(drafted) == cells_of(plain)
        if n % 2:
            stream.close()  # or left open
        drafted.chat([*square, assistant("Hm."), user("Why?")], max_tokens=1, temperature=0)
        assert max_error(last_logits(drafted), logits) < BOUND
        with pytest.raises((BackendError, StopIteration)):
            next(stream)


def test_a_session_saved_in_the_middle_of_an_answer(plain, drafted, square, tmp_path):
    """The file holds what was said, and the answer goes on as if nothing had been saved."""
    options = {"temperature": 0, "max_tokens": 16}
    texts = known_texts(plain, square, options)
    want = joined(plain.chat(square, stream=True, **options))
    for n in (3, 5, 6, 7):
        with_script(drafted, scripts(drafted.model, texts)["right"])
        stream = drafted.chat(square, stream=True, **options)
        got = list(itertools.islice(stream, n))
        cells = cells_of(drafted)
        drafted.save_session(tmp_path / "session")
        assert joined([*got, *stream]) == want
        assert plain.load_session(tmp_path / "session") == len(cells)
        assert cells_of(plain) == cells
        assert text_of(plain.chat(square, **options)) == want


def test_cancelled_while_guessing(plain, drafted, square):
    options = {"temperature": 0, "max_tokens": 16}
    want = text_of(plain.chat(square, **options))

    def cancel(tokens, n):
        drafted.cancel()
        return []

    with_script(drafted, cancel)
    with pytest.raises(Cancelled):
        drafted.chat(square, **options)
    with_script(drafted, lambda tokens, n: [3] * n)
    assert text_of(drafted.chat(square, **options)) == want


def test_a_draft_that_fails(plain, drafted, square):
    """Its error comes through, and the model is usable."""
    want = text_of(plain.chat(square, temperature=0, max_tokens=16))

    def fail(tokens, n):
        raise BackendError("no draft today")

    with_script(drafted, fail)
    with pytest.raises(BackendError, match="no draft today"):
        drafted.chat(square, temperature=0)
    with_script(drafted, lambda tokens, n: [])
    assert text_of(drafted.chat(square, temperature=0, max_tokens=16)) == want


def test_guesses_of_a_session(exact):
    """append and take_guess by themselves."""
    session = exact._session
    prompt = [Cell(token) for token in range(10, 30)]
    want = [session.logits([*prompt, Cell(5), Cell(6)][: 20 + n])[-1] for n in (1, 2)]
    session.prefill(prompt)
    assert session.take_guess(Cell(5)) is None
    row = session.append(Cell(5), [Cell(6), Cell(7)])
    assert (session.n_past, session.cells[-1]) == (21, Cell(5))
    assert max_error(session.context.row_logits(row).copy(), want[0]) < BOUND
    assert session.take_guess(Cell(7)) is None  # the next was 6
    row = session.take_guess(Cell(6))
    assert session.n_past == 22
    assert max_error(session.context.row_logits(row).copy(), want[1]) < BOUND
    assert n_held(exact) == 23
    session.truncate(22)
    assert session.take_guess(Cell(7)) is None
    assert n_held(exact) == 22
    with pytest.raises(ContextOverflow, match="full"):
        session.append(Cell(5), [Cell(6)] * session.n_left)
