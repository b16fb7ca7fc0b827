"""Many conversations at a time: each answer is the one that it would get alone, however they share batch and memory."""

import itertools
import threading
import time

import numpy as np
import pytest
from pictures import noise
from talk import EXACT, assistant, text_of, user

import pyvllama
from pyvllama.batching import Batcher, Request
from pyvllama.context import Context, ContextParams
from pyvllama.errors import Cancelled, ConfigError, ContextOverflow, ImageError, PromptError
from pyvllama.sampler import Sampler
from pyvllama.session import Cell
from pyvllama.types import SamplingParams

GREEDY = {"temperature": 0}


@pytest.fixture(scope="module")
def questions(samples):
    """Every question of the pocket model's samples, with and without a system prompt, and what is expected."""
    found = []
    for sample, i in zip(samples, itertools.count()):
        for qa in sample["qa"]:
            system = [{"role": "system", "content": "Look closely."}] if i % 3 == 0 else []
            found.append(([*system, user(sample["path"], qa["question"])], qa["expected"]))
    return found


@pytest.mark.parametrize("n_parallel", [1, 3, 8])
def test_the_pocket_model_answers_as_it_does_alone(llm, questions, n_parallel):
    answers = dict(llm.chat_many([messages for messages, _ in questions], n_parallel=n_parallel, **GREEDY))
    assert sorted(answers) == list(range(len(questions)))
    plain = [i for i, (messages, _) in enumerate(questions) if len(messages) == 1]
    assert [text_of(answers[i]) for i in plain] == [questions[i][1] for i in plain]
    with_system = [i for i in range(len(questions)) if i not in plain]
    assert [text_of(answers[i]) for i in with_system] == [
        text_of(llm.chat(questions[i][0], **GREEDY)) for i in with_system
    ]
    timings = [answers[i]["timings"] for i in sorted(answers)]
    assert sum(t["image_encode_ms"] > 0 for t in timings) <= 24  # each picture once at most


@pytest.fixture(scope="module")
def mixed():
    """Conversations of a tiny random model: texts of many lengths, pictures, shared beginnings."""
    rng = np.random.default_rng(5)
    pictures = [rng.integers(0, 256, (20 + 9 * i, 50 - 7 * i, 3), dtype=np.uint8) for i in range(4)]
    found = []
    for i in range(60):
        text = " ".join(map(str, rng.integers(0, 100, rng.integers(1, 40))))
        parts = [pictures[i % 4]] * (i % 3 > 0) + ["The same beginning of many. " * (i % 2) + text]
        found.append([user(*parts)])
    return found


@pytest.mark.parametrize(("n_parallel", "n_ctx"), [(4, 1024), (7, 300), (16, 200)])
def test_tight_memory_changes_no_answer(load_tiny, mixed, n_parallel, n_ctx):
    """With too few positions for all, some begin again later. Greedy ties apart (there are none in F32)."""
    llm = load_tiny()
    options = {**GREEDY, "max_tokens": 24}
    alone = [text_of(llm.chat(messages, **options)) for messages in mixed]
    many = dict(llm.chat_many(mixed, n_parallel=n_parallel, n_ctx=n_ctx, **options))
    assert [text_of(many[i]) for i in range(len(mixed))] == alone
    assert {many[i]["usage"]["completion_tokens"] for i in many} <= set(range(1, 25))


def test_one_bad_conversation_spoils_no_other(llm, sample, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    good = [user(sample("01_square.png"), "What is this?")]
    conversations = [good, [user(tmp_path / "broken.png", "?")], [], [user("word " * 5000)], good]
    answers = dict(llm.chat_many(conversations, n_parallel=2, **GREEDY))
    assert text_of(answers[0]) == text_of(answers[4]) == text_of(llm.chat(good, **GREEDY))
    assert isinstance(answers[1], ImageError)
    assert isinstance(answers[2], PromptError)
    assert isinstance(answers[3], ContextOverflow)


def test_conversations_are_taken_as_they_are_needed(llm):
    taken = []

    def conversations():
        for i in range(100):
            taken.append(i)
            yield [user(f"Question {i}")]

    answers = llm.chat_many(conversations(), n_parallel=3, max_tokens=4)
    next(answers)
    assert len(taken) <= 6
    answers.close()
    assert len(taken) <= 6
    assert text_of(llm.chat([user("Hello")], max_tokens=2)) is not None


def test_options_go_to_all(llm):
    questions = [[user("What colour is the star?")] for _ in range(5)]
    for _, answer in llm.chat_many(questions, grammar='root ::= "red" | "blue"', temperature=2.0, logprobs=True):
        assert text_of(answer) in ("red", "blue")
        assert answer["choices"][0]["logprobs"]["content"]
    with pytest.raises(ConfigError, match="n must be 1"):
        next(llm.chat_many(questions, n=2))
    with pytest.raises(ConfigError, match="unknown options: stream"):
        next(llm.chat_many(questions, stream=True))
    with pytest.raises(ConfigError, match="n_seq_max must be between"):
        next(llm.chat_many(questions, n_parallel=0))


def test_none_at_all(llm):
    assert list(llm.chat_many([])) == []


# --- the batcher itself ---


def run(batcher, model, prompts, max_tokens):
    """Greedy answers to prompts of token ids, as many at a time as there are slots; and positions decoded of each."""
    answers = [[] for _ in prompts]
    decoded = [0] * len(prompts)
    waiting = list(enumerate(prompts))
    while waiting or not batcher.is_idle:
        while waiting and batcher.n_free:
            i, prompt = waiting.pop(0)
            sampler = Sampler(model, SamplingParams(temperature=0))
            take = answers[i].append
            request = Request(prompt, sampler, max_tokens, lambda s, take=take: take(s.token), lambda how: None)
            batcher.start(request)
            decoded[i] = request.n_prompt
        batcher.step()
    return answers, decoded


@pytest.fixture
def context(tiny_pair):
    pair = tiny_pair("small")
    with pyvllama.load(pair.text, pair.mmproj, **EXACT) as llm:
        context = Context(llm.model, ContextParams(n_ctx=512, n_seq_max=3, kv_type="f32", flash_attn=False, n_batch=32))
        yield context
        context.close()


def test_a_shared_beginning_is_computed_once(context):
    batcher = Batcher(context)
    beginning = [Cell(t) for t in range(20, 120)]
    prompts = [[*beginning, Cell(200 + i), Cell(3)] for i in range(6)]
    answers, decoded = run(batcher, context.model, prompts, 5)
    assert decoded[0] == 102
    assert decoded[3:] == [2, 2, 2]
    for prompt, answer in zip(prompts, answers, strict=True):
        fresh = Batcher(context)
        for slot in fresh._slots:
            slot.session.truncate(0)
        assert run(fresh, context.model, [prompt], 5)[0] == [answer]
    batcher.close()


def test_an_answer_can_fill_the_whole_context(context):
    batcher = Batcher(context)
    context.model.tokenizer.eog = frozenset()
    ends = []
    sampler = Sampler(context.model, SamplingParams(temperature=0))
    batcher.start(Request([Cell(5)] * 400, sampler, None, lambda s: False, ends.append))
    while not batcher.is_idle:
        batcher.step()
    assert ends == ["length"]
    with pytest.raises(ContextOverflow, match="600 tokens"):
        batcher.start(Request([Cell(5)] * 600, sampler, None, lambda s: False, ends.append))
    with pytest.raises(PromptError, match="empty"):
        batcher.start(Request([], sampler, None, lambda s: False, ends.append))


def test_the_prompts_time_is_not_the_pictures(load_tiny, monkeypatch):
    """An encoding that takes long shows as such, and not as a slow prompt."""
    llm = load_tiny()
    encode = llm._images.encode

    def slow(*args):
        time.sleep(0.3)
        encoded = encode(*args)
        return type(encoded)(encoded.states, encoded.encode_ms + 300, encoded.cached)

    monkeypatch.setattr(llm._images, "encode", slow)
    picture = np.zeros((30, 30, 3), np.uint8)
    ((_, answer),) = llm.chat_many([[user(picture, "Hello")]], max_tokens=2)
    assert answer["timings"]["image_encode_ms"] >= 300
    assert answer["timings"]["prompt_ms"] < 300


# --- cancelling, and conversations that are too long ---


def test_cancel_ends_a_run(load_tiny, mixed, monkeypatch):
    """In the middle of a batch, between two of them, and between two answers; then all is usable."""
    llm = load_tiny()
    monkeypatch.setattr(llm.model.tokenizer, "eog", frozenset())
    want = text_of(llm.chat(mixed[0], max_tokens=8, **GREEDY))
    for delay in (0.0, 0.05, 0.3):
        run = llm.chat_many([mixed[0]] * 1000, max_tokens=8, **GREEDY)
        other = llm.chat_many([mixed[1]] * 1000, max_tokens=8, **GREEDY)
        assert text_of(next(run)[1]) == want
        next(other)
        timer = threading.Timer(delay, llm.cancel)
        timer.start()
        with pytest.raises(Cancelled):
            list(run)
        timer.join()
        with pytest.raises(Cancelled):
            next(other)
        assert not llm._runs
        assert text_of(llm.chat(mixed[0], max_tokens=8, **GREEDY)) == want
        assert text_of(dict(llm.chat_many(mixed[:2], max_tokens=8, **GREEDY))[0]) == want


def test_cancel_while_a_picture_is_encoded(load_tiny, mixed, monkeypatch):
    llm = load_tiny(image_cache_bytes=0)
    encode = llm._images.encode

    def cancelled_meanwhile(picture, progress):
        llm.cancel()
        return encode(picture, progress)

    monkeypatch.setattr(llm._images, "encode", cancelled_meanwhile)
    with pytest.raises(Cancelled):
        list(llm.chat_many([mixed[1]], **GREEDY))


def test_a_run_that_is_over_is_not_held(load_tiny, mixed):
    llm = load_tiny()
    run = llm.chat_many(mixed[:3], max_tokens=4, **GREEDY)
    next(run)
    assert len(llm._runs) == 1
    run.close()
    list(llm.chat_many(mixed[:3], max_tokens=4, **GREEDY))
    assert not llm._runs


def test_context_shift(load_tiny):
    """Each answer is that of the conversation without its oldest turns; what fits stays whole."""
    llm = load_tiny(n_ctx=256)
    long = [user(noise(seed=0), "Question 0")]
    for i in range(1, 20):
        long += [assistant("word " * 15), user(noise(seed=i), f"Question {i}")]
    conversations = [long, [user("Hello")], long[2:], [user("word " * 300)]]
    options = {**GREEDY, "max_tokens": 12}
    answers = dict(llm.chat_many(conversations, n_parallel=2, context_shift=True, **options))
    for i in range(3):
        alone = llm.chat(conversations[i], context_shift=True, **options)
        assert text_of(answers[i]) == text_of(alone)
        assert answers[i]["dropped_turns"] == alone["dropped_turns"]
    assert answers[0]["dropped_turns"] > 0 == answers[1]["dropped_turns"]
    assert isinstance(answers[3], ContextOverflow)
    assert isinstance(dict(llm.chat_many([long], **options))[0], ContextOverflow)
