"""A served model: hundreds of mixed requests at once, each answered as it would be alone; leaving, waiting, closing."""

import asyncio
import threading
import time

import numpy as np
import pytest
from talk import EXACT, assistant, text_of, user

import pyvllama
from pyvllama.chat_options import ChatOptions
from pyvllama.errors import (
    BackendError,
    Cancelled,
    ConfigError,
    ContextOverflow,
    DeadlineExceeded,
    ImageError,
    ImageFetchRefused,
    PromptError,
    QueueFull,
)
from pyvllama.image.limits import ImageLimits
from pyvllama.server.served_model import ServedModel

GREEDY = {"temperature": 0}


def options_of(served, **options):
    return ChatOptions.from_options(served.model.sampling_defaults, {**GREEDY, **options})


async def ask(served, messages, *, limits=None, reuse=True, **options):
    answer = await served.chat(messages, options_of(served, **options), limits=limits or ImageLimits(), reuse=reuse)
    return answer.completion.whole(await answer.whole())


def idle(served):
    """All slots free, nothing open, within a second."""
    deadline = time.monotonic() + 1
    while served.n_open or served.engine.n_active or served.engine.n_waiting:
        assert time.monotonic() < deadline, (served.n_open, served.engine.n_active, served.engine.n_waiting)
        time.sleep(0.005)
    return True


@pytest.fixture(scope="module")
def load(tiny_pair):
    """load(name, n_slots=4, max_queue=None, endless=False, **options) -> a random ServedModel in F32."""
    made = []

    def load(n_slots=4, max_queue=None, endless=False, **options):
        pair = tiny_pair("small")
        served = ServedModel.load(
            "tiny", pair.text, pair.mmproj, n_slots=n_slots, max_queue=max_queue, **{**EXACT, "n_ctx": 1024, **options}
        )
        if endless:
            served.model.tokenizer.eog = frozenset()
        made.append(served)
        return served

    yield load
    for served in made:
        served._close() if not served._is_closed else None


@pytest.fixture(scope="module")
def served(load):
    return load()


@pytest.fixture
def endless(load):
    """Answers that never end, three at a time, two may wait."""
    served = load(n_slots=3, max_queue=2, endless=True)
    yield served
    assert idle(served)
    served._close()


def conversations(n):
    """Mixed: texts of many lengths, pictures, shared beginnings, several turns."""
    rng = np.random.default_rng(11)
    pictures = [rng.integers(0, 256, (20 + 9 * i, 50 - 7 * i, 3), dtype=np.uint8) for i in range(5)]
    found = []
    for i in range(n):
        text = " ".join(map(str, rng.integers(0, 100, rng.integers(1, 30))))
        system = [{"role": "system", "content": "The same beginning of many a conversation. "}] * (i % 2)
        parts = [pictures[rng.integers(5)]] * int(rng.integers(0, 3)) + [text]
        turns = [user(*parts), assistant("Yes."), user("And " + text[:9] + "?")] if i % 5 == 0 else [user(*parts)]
        found.append([*system, *turns])
    return found


def test_300_mixed_requests_are_answered_as_each_would_be_alone(served, tiny_pair):
    """Arriving at random, some leaving early, some with several choices; greedy, in F32: to the last letter."""
    pair = tiny_pair("small")
    mixed = conversations(300)
    with pyvllama.load(pair.text, pair.mmproj, **EXACT, n_ctx=1024) as llm:
        alone = [text_of(llm.chat(messages, **GREEDY, max_tokens=12)) for messages in mixed]

    async def one(i, rng, gate):
        async with gate:
            await asyncio.sleep(float(rng.random()) * 0.02)
            if i % 7 == 0:  # goes away at its first piece
                answer = await served.chat(mixed[i], options_of(served, max_tokens=12))
                async for _ in answer:
                    break
                await answer.aclose()
                return None
            whole = await ask(served, mixed[i], max_tokens=12, n=2 if i % 11 == 0 else 1)
            texts = {choice["message"]["content"] for choice in whole["choices"]}
            assert len(texts) == 1
            assert whole["usage"]["completion_tokens"] <= 12 * len(whole["choices"])
            return texts.pop()

    async def all_of_them():
        rng, gate = np.random.default_rng(3), asyncio.Semaphore(12)
        return await asyncio.gather(*(one(i, rng, gate) for i in range(len(mixed))))

    answers = asyncio.run(all_of_them())
    wrong = [i for i, text in enumerate(answers) if text is not None and text != alone[i]]
    assert not wrong
    assert sum(text is not None for text in answers) > 250
    assert idle(served)


def test_the_pocket_model_with_pictures(samples):
    served = ServedModel.load("pocket", None, n_slots=8, n_threads=1)
    asked = [(s["path"], qa["question"], qa["expected"]) for s in samples for qa in s["qa"]]

    async def all_of_them():
        async def one(path, question, _):
            return text_of(await ask(served, [user(path, question)]))

        answers = await asyncio.gather(*(one(*a) for a in asked))
        await served.close()
        return answers

    assert asyncio.run(all_of_them()) == [expected for *_, expected in asked]


def test_choices_sampling_and_log_probabilities(served, tiny_pair):
    pair = tiny_pair("small")
    options = {"temperature": 0.8, "seed": 5, "n": 3, "max_tokens": 6, "logprobs": True, "top_logprobs": 2}
    with pyvllama.load(pair.text, pair.mmproj, **EXACT, n_ctx=1024) as llm:
        expected = llm.chat([user("Hello there")], **options)
    whole = asyncio.run(ask(served, [user("Hello there")], **options))
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert texts == [choice["message"]["content"] for choice in expected["choices"]]
    assert len(set(texts)) == 3
    for ours, theirs in zip(whole["choices"], expected["choices"], strict=True):
        found, wanted = ([entry["logprob"] for entry in choice["logprobs"]["content"]] for choice in (ours, theirs))
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert whole["usage"] == expected["usage"]
    assert whole["timings"]["predicted_n"] == whole["usage"]["completion_tokens"]


def test_streams_have_roles_ends_and_costs(served):
    async def chunks():
        answer = await served.chat([user("Hello")], options_of(served, n=2, max_tokens=4))
        found = []
        async with answer:
            async for batch in answer.batches():
                assert batch
                for delta in batch:
                    found += answer.completion.chunks_of(delta)
        return found

    found = asyncio.run(chunks())
    for choice in (0, 1):
        own = [c for c in found if c["choices"][0]["index"] == choice]
        assert own[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [c["choices"][0]["finish_reason"] for c in own] == [None] * (len(own) - 1) + ["length"]
    assert [("usage" in c) for c in found] == [False] * (len(found) - 1) + [True]
    assert found[-1]["usage"]["completion_tokens"] == 8


def test_raw_prompts(served):
    picture = np.full((30, 40, 3), 90, np.uint8)
    tokenizer = served.model.tokenizer

    async def run():
        async def of(prompt, **more):
            answer = await served.complete(prompt, options_of(served, max_tokens=5), **more)
            return "".join(d.text for d in await answer.whole()), answer.usage.prompt_tokens

        text = await of("Once upon a time")
        ids = tokenizer.tokenize("Once upon a time")
        assert await of([tokenizer.bos, *ids]) == text
        assert text[1] == len(ids) + 1
        before = await of("What is it?", images=[picture])
        assert before[1] == len(tokenizer.tokenize("What is it?")) + 2
        assert await of("<|image|>What is it?", images=[picture]) == before
        for bad, images, words in (
            ("<|image|>?", [], "1 image tokens for 0 pictures"),
            ("<|image|><|image|>?", [picture], "2 image tokens for 1 pictures"),
            ([10**6], [], "there is no token 1000000"),
            ([-1], [], "there is no token -1"),
            ([], [], "empty"),
        ):
            with pytest.raises(PromptError, match=words):
                await of(bad, images=images)

    asyncio.run(run())
    assert idle(served)


def test_what_is_wrong_shows_before_the_first_piece(served, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")

    async def fails(kind, words, messages, *, limits=None, **options):
        with pytest.raises(kind, match=words):
            await ask(served, messages, limits=limits, **options)

    async def run():
        await fails(ImageError, "broken.png", [user(tmp_path / "broken.png")])
        await fails(ImageError, "is refused", [user(tmp_path / "a.png")], limits=ImageLimits(allow_files=False))
        refuse = ImageLimits(check_address=lambda address: "is private")
        picture = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]}
        await fails(ImageFetchRefused, "is private", [picture], limits=refuse)
        await fails(ContextOverflow, "tokens, the context", [user("word " * 2000)])
        await fails(PromptError, "messages", [])
        await fails(ConfigError, "grammar", [user("Hi")], grammar="root ::= (")
        await fails(ConfigError, "temperature", [user("Hi")], temperature=-1)

    asyncio.run(run())
    assert idle(served)


def test_no_grammars_where_none_may_come(load):
    served = load(grammars=False)
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "look", "parameters": schema}}]

    async def run():
        for refused in (
            {"grammar": 'root ::= "yes"'},
            {"response_format": {"type": "json_object", "schema": schema}},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}},
            {"tools": tools},
            {"tools": tools, "tool_choice": "required"},
        ):
            with pytest.raises(ConfigError, match="no grammars, JSON schemas and tools"):
                await ask(served, [user("Hi")], max_tokens=4, **refused)
        plain = await ask(served, [user("Hi")], max_tokens=4)
        assert plain["usage"]["completion_tokens"] > 0
        json_object = await ask(served, [user("Hi")], max_tokens=4, response_format={"type": "json_object"})
        assert text_of(json_object).lstrip().startswith("{")

    asyncio.run(run())
    assert idle(served)


def test_a_context_shift_says_what_it_dropped(load):
    served = load(n_ctx=256)
    turns = [m for i in range(12) for m in (user(f"Number {i} of many long turns here"), assistant("Yes, of course."))]

    async def run():
        options = options_of(served, max_tokens=4)
        answer = await served.chat([*turns, user("And now?")], options, context_shift=True)
        return answer.completion.whole(await answer.whole())

    assert asyncio.run(run())["dropped_turns"] > 0


async def first_piece(answer):
    async for _ in answer:
        return


def test_leaving_frees_the_slot_within_one_step(endless):
    """Counted in steps of the batch, in all the ways to leave."""
    steps, left_at = [], []
    batcher = endless.engine._batcher
    step, cancel = batcher.step, batcher.cancel
    batcher.step = lambda: (steps.append(1), step())
    batcher.cancel = lambda request: left_at.append(len(steps)) if cancel(request) else None

    async def run():
        stay = await endless.chat([user("I stay")], options_of(endless, max_tokens=400))
        staying = asyncio.create_task(stay.whole())
        for how in ("aclose", "with", "task"):
            answer = await endless.chat([user("I leave")], options_of(endless))
            await first_piece(answer)
            assert endless.engine.n_active == 2
            if how == "aclose":
                await answer.aclose()
            elif how == "with":
                async with answer:
                    pass
            else:
                task = asyncio.create_task(answer.whole())
                await asyncio.sleep(0.01)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            now = len(steps)
            while not left_at:
                await asyncio.sleep(0)
            assert left_at.pop() - now <= 1  # the one that was being computed
            while endless.engine.n_active == 2:
                await asyncio.sleep(0)
        deltas = await staying
        assert sum(len(d.sampled) for d in deltas) == 400

    asyncio.run(run())


def test_a_client_that_has_gone_is_noticed(endless, monkeypatch):
    class Gone:
        async def is_disconnected(self):
            return True

    monkeypatch.setattr("pyvllama.server.answer._LOOK_S", 0.01)
    slow_down(endless, 0.05)

    async def run():
        answer = await endless.chat([user("Hi")], options_of(endless))
        with pytest.raises(Cancelled, match="gone"):
            await answer.whole(Gone())

    asyncio.run(run())


def slow_down(served, seconds):
    step = served.engine._batcher.step
    served.engine._batcher.step = lambda: (time.sleep(seconds), step())


def test_the_queue_has_an_end(endless):
    async def run():
        answers = [await endless.chat([user("Hi")], options_of(endless)) for _ in range(5)]
        with pytest.raises(QueueFull, match="try again later"):
            await endless.chat([user("Hi")], options_of(endless))
        for answer in answers[:3]:
            await first_piece(answer)
        assert (endless.engine.n_active, endless.n_open) == (3, 5)
        await answers[4].aclose()  # still waiting
        await answers[0].aclose()
        await first_piece(answers[3])
        late = await endless.chat([user("Hi")], options_of(endless, max_tokens=1))
        for answer in answers[1:3]:
            await answer.aclose()
        assert len(await late.whole()) >= 1
        await answers[3].aclose()

    asyncio.run(run())


def test_a_deadline_ends_an_answer(endless):
    async def run():
        answer = await endless.chat([user("Hi")], options_of(endless, max_tokens=500), deadline_s=0.3)
        slow_down(endless, 0.02)
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"after 0\.\d+ seconds"):
            await answer.whole()
        assert time.monotonic() - start < 5
        other = await endless.chat([user("Hi")], options_of(endless, max_tokens=2), deadline_s=60)
        await other.whole()

    asyncio.run(run())


def test_an_answer_can_be_left_while_its_picture_is_encoded(endless, monkeypatch):
    """The encoding stops, and so does the answer; the next one encodes."""
    begun = threading.Event()

    def endless_encoding(image, progress=None):
        begun.set()
        while progress(0.5) is not False:
            time.sleep(0.005)
        raise Cancelled("stopped by its progress callback")

    picture = np.full((20, 20, 3), 7, np.uint8)

    async def run():
        with monkeypatch.context() as m:
            m.setattr(endless.images, "encode", endless_encoding)
            answer = await endless.chat([user(picture, "Hi")], options_of(endless))
            while not begun.is_set():
                await asyncio.sleep(0.001)
            words = await ask(endless, [user("Only words go on meanwhile")], max_tokens=3)
            assert words["usage"]["completion_tokens"] == 3
            assert endless.n_open == 1
            await answer.aclose()
            while endless.n_open:
                await asyncio.sleep(0.001)
        again = await ask(endless, [user(picture, "Hi")], max_tokens=2)
        assert again["timings"]["image_encode_ms"] > 0

    asyncio.run(run())


def test_an_unexpected_failure_reaches_who_waits(endless, monkeypatch):
    """Not one of our errors, in the two places where it would leave the client waiting for ever."""
    picture = np.full((20, 20, 3), 9, np.uint8)

    def fail(*_):
        raise ZeroDivisionError("by accident")

    async def run():
        for owner, name, messages in (
            (endless.images, "encode", [user(picture, "Hi")]),
            (endless.engine._batcher, "start", [user("Hi")]),
        ):
            with monkeypatch.context() as m:
                m.setattr(owner, name, fail)
                answer = await endless.chat(messages, options_of(endless))
                with pytest.raises(BackendError, match="by accident"):
                    await asyncio.wait_for(answer.whole(), 20)
            assert (await ask(endless, [user("Hi")], max_tokens=2))["usage"]["completion_tokens"] == 2

    asyncio.run(run())


def test_signs_of_life_while_nothing_comes(endless):
    slow_down(endless, 0.1)

    async def run():
        answer = await endless.chat([user("Hi")], options_of(endless, max_tokens=2))
        return [batch async for batch in answer.batches(idle_s=0.02)]

    batches = asyncio.run(run())
    assert sum(not batch for batch in batches) >= 3
    assert sum(len(d.sampled) for batch in batches for d in batch) == 2


def test_a_failing_step_fails_who_is_in_it_and_nobody_else(endless, monkeypatch):
    async def run():
        answer = await endless.chat([user("Hi")], options_of(endless))
        await first_piece(answer)
        with monkeypatch.context() as m:
            decode = endless.engine._context.decode
            m.setattr(endless.engine._context, "decode", lambda rows: decode(rows) and 1 / 0)
            with pytest.raises(BackendError, match=r"ZeroDivisionError|truth value"):
                await answer.whole()
        assert (await ask(endless, [user("Hi")], max_tokens=2))["usage"]["completion_tokens"] == 2

    asyncio.run(run())


def test_closing_ends_everything(load):
    served = load(n_slots=1, endless=True)

    async def run():
        running = [await served.chat([user("Hi")], options_of(served)) for _ in range(3)]
        await first_piece(running[0])
        tasks = [asyncio.create_task(answer.whole()) for answer in running]
        await asyncio.sleep(0)
        await served.close()
        await served.close()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(r) for r in results] == [Cancelled] * 3
        with pytest.raises(BackendError, match="closed"):
            await served.chat([user("Hi")], options_of(served))

    asyncio.run(run())


def test_nothing_is_reused_if_asked(served):
    async def run():
        for reuse in (True, True, False):
            whole = await ask(served, [user("Always the same question")], reuse=reuse, max_tokens=2)
            n_prompt = whole["usage"]["prompt_tokens"]
        assert whole["timings"]["prompt_n"] == n_prompt
        whole = await ask(served, [user("Always the same question")], max_tokens=2)
        assert whole["timings"]["prompt_n"] == 1

    asyncio.run(run())
