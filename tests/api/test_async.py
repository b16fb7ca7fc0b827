"""The async twin: same answers, calls in turn, cancelling that really stops."""

import asyncio
import time

import numpy as np
import pytest
from talk import EXACT, joined, text_of, user

import pyvllama
from pyvllama import AsyncLLM
from pyvllama.errors import BackendError, ConfigError, FormatError, PromptError

QUESTION = [user("What colour is the star?")]


@pytest.fixture
def pair(tiny_pair):
    return tiny_pair("small")


def test_same_answers(llm, sample):
    async def main():
        async with await AsyncLLM.load(n_threads=1) as twin:
            picture = [user(sample("01_square.png"), "What is this?")]
            assert text_of(await twin.chat(picture, temperature=0)) == text_of(llm.chat(picture, temperature=0))
            chunks = [c async for c in await twin.chat(picture, temperature=0, stream=True)]
            assert joined(chunks) == text_of(llm.chat(picture, temperature=0))
            assert "timings" in chunks[-1]
            assert np.array_equal(await twin.logits(QUESTION), llm.logits(QUESTION))
            states = await twin.encode_image(sample("01_square.png"))
            assert np.array_equal(states, llm.encode_image(sample("01_square.png")))

    asyncio.run(main())


def test_calls_take_turns_and_the_loop_goes_on(pair):
    async def main():
        async with await AsyncLLM.load(pair.text, pair.mmproj, n_ctx=512, **EXACT) as twin:
            ticks = 0

            async def tick():
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.001)
                    ticks += 1

            ticking = asyncio.create_task(tick())
            calls = [twin.chat([user(f"Hello {i}")], temperature=0, max_tokens=20) for i in range(5)]
            texts = [text_of(a) for a in await asyncio.gather(*calls)]
            ticking.cancel()
            assert ticks > 5
            with pyvllama.load(pair.text, pair.mmproj, n_ctx=512, **EXACT) as llm:
                assert texts == [
                    text_of(llm.chat([user(f"Hello {i}")], temperature=0, max_tokens=20)) for i in range(5)
                ]

    asyncio.run(main())


def test_a_cancelled_task_stops_the_computation(pair):
    async def main():
        options = {"n_ctx": 8192, "n_batch": 4096, "n_ubatch": 4096, **EXACT}
        async with await AsyncLLM.load(pair.text, pair.mmproj, **options) as twin:
            long = asyncio.create_task(twin.chat([user("word " * 1800)], max_tokens=900))
            await asyncio.sleep(0.05)
            start = time.monotonic()
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long
            assert time.monotonic() - start < 30
            assert text_of(await twin.chat(QUESTION, max_tokens=2)) is not None

    asyncio.run(main())


def test_an_abandoned_stream_lets_others_go_on(pair):
    async def main():
        async with await AsyncLLM.load(pair.text, pair.mmproj, n_ctx=512, **EXACT) as twin:
            stream = await twin.chat(QUESTION, stream=True)
            async for _ in stream:
                break
            await stream.aclose()
            assert text_of(await twin.chat(QUESTION, max_tokens=2)) is not None

    asyncio.run(main())


def test_errors_are_those_of_the_twin(pair):
    async def main():
        twin = await AsyncLLM.load(pair.text, pair.mmproj, n_ctx=512, **EXACT)
        with pytest.raises(PromptError):
            await twin.chat([])
        with pytest.raises(ConfigError):
            await twin.chat(QUESTION, temperature=-1)
        with pytest.raises(ConfigError):
            _ = [c async for c in await twin.chat(QUESTION, stream=True, top_p=7)]
        await twin.close()
        await twin.close()
        with pytest.raises(BackendError, match="closed"):
            await twin.chat(QUESTION)

    asyncio.run(main())


def test_sessions_are_saved_and_loaded(pair, tmp_path):
    async def main():
        options = {"n_ctx": 512, **EXACT}
        async with await AsyncLLM.load(pair.text, pair.mmproj, **options) as twin:
            said = text_of(await twin.chat(QUESTION, temperature=0, max_tokens=8))
            following = [*QUESTION, {"role": "assistant", "content": said}, user("Why?")]
            await twin.save_session(tmp_path / "session")
            want = await twin.chat(following, temperature=0, max_tokens=8)
        async with await AsyncLLM.load(pair.text, pair.mmproj, **options) as other:
            loading = asyncio.create_task(other.load_session(tmp_path / "session"))
            got = asyncio.create_task(other.chat(following, temperature=0, max_tokens=8))  # waits its turn
            assert await loading > 0
            assert text_of(await got) == text_of(want)
            assert (await got)["timings"]["prompt_n"] == want["timings"]["prompt_n"]
            with pytest.raises(FormatError):
                await other.load_session(__file__)

    asyncio.run(main())


def test_a_draft(pair):
    async def main():
        options = {"n_ctx": 512, **EXACT}
        async with await AsyncLLM.load(pair.text, pair.mmproj, **options) as twin:
            want = await twin.chat(QUESTION, temperature=0, max_tokens=30)
        async with await AsyncLLM.load(pair.text, pair.mmproj, draft=pair.text, n_draft=2, **options) as twin:
            got = await twin.chat(QUESTION, temperature=0, max_tokens=30)
        assert text_of(got) == text_of(want)
        assert got["timings"]["draft_n"] > 0

    asyncio.run(main())


def test_many_answers(pair):
    conversations = [[user(f"Hello {i}")] for i in range(6)]
    options = {"temperature": 0, "max_tokens": 12}

    async def main():
        async with await AsyncLLM.load(pair.text, pair.mmproj, n_ctx=512, **EXACT) as twin:
            many = {i: text_of(a) async for i, a in twin.chat_many(conversations, n_parallel=3, **options)}
            assert many == {i: text_of(await twin.chat(c, **options)) for i, c in enumerate(conversations)}
            with pytest.raises(ConfigError):
                async for _ in twin.chat_many(conversations, n=2):
                    pass

            async def take_one():
                async for _ in twin.chat_many(conversations * 1000, **options):
                    started.set()

            started = asyncio.Event()
            task = asyncio.create_task(take_one())
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not twin.llm._runs
            assert text_of(await twin.chat(conversations[0], **options)) == many[0]

    asyncio.run(main())
