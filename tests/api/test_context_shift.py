"""When the context is full: an error, or with context_shift the oldest turns go, whole."""

import numpy as np
import pytest
from pictures import noise
from talk import assistant, last_logits, text_of, user

from pyvllama.errors import ContextOverflow, PromptError

SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.fixture
def small(load_tiny):
    return load_tiny(n_ctx=256)


def long_conversation(n_turns):
    """Each turn has a picture of its own and some forty tokens."""
    messages = [SYSTEM]
    for i in range(n_turns):
        messages += [user(noise(seed=i), f"Question {i}: " + "word " * 15), assistant(f"Answer {i}.")]
    return messages[:-1]


def n_tokens(llm, messages):
    return llm.chat(messages, max_tokens=1)["usage"]["prompt_tokens"]


def test_without_it_a_full_context_is_an_error(small):
    with pytest.raises(ContextOverflow, match="n_ctx"):
        small.chat(long_conversation(20), max_tokens=1)


@pytest.mark.parametrize("max_tokens", [1, 60, None, 4096])
def test_the_oldest_turns_go(small, load_tiny, max_tokens):
    """The answer is that to the conversation without them, to the last bit."""
    messages = long_conversation(20)
    got = small.chat(messages, max_tokens=max_tokens, temperature=0, context_shift=True)
    n = got["dropped_turns"]
    assert 10 < n < 20
    kept = [SYSTEM, *messages[1 + 2 * n :]]
    other = load_tiny(n_ctx=256)
    same = other.chat(kept, max_tokens=max_tokens, temperature=0)
    assert got["usage"] == same["usage"]
    assert text_of(got) == text_of(same)
    np.testing.assert_array_equal(last_logits(small), last_logits(other))
    room = 256 - (256 // 8 if max_tokens is None else min(max_tokens, 128))
    assert got["usage"]["prompt_tokens"] <= room
    assert n_tokens(load_tiny(), [SYSTEM, *messages[1 + 2 * (n - 1) :]]) > room


def test_pictures_of_turns_that_go_are_not_even_read(small):
    messages = long_conversation(20)
    messages[1] = user(b"no picture", "Hello")
    got = small.chat(messages, max_tokens=1, context_shift=True)
    assert got["dropped_turns"] > 0


def test_what_fits_stays_whole(small):
    messages = long_conversation(2)
    got = small.chat(messages, max_tokens=1, context_shift=True)
    assert got["dropped_turns"] == 0
    assert "dropped_turns" not in small.chat(messages, max_tokens=1)


def test_streams_say_it_in_their_last_chunk(small):
    chunks = list(small.chat(long_conversation(20), max_tokens=2, context_shift=True, stream=True))
    assert chunks[-1]["dropped_turns"] > 0
    assert not any("dropped_turns" in chunk for chunk in chunks[:-1])


def test_a_last_turn_that_does_not_fit(small):
    messages = [*long_conversation(3), assistant("Hm."), user("word " * 300)]
    with pytest.raises(ContextOverflow, match="the last turn alone"):
        small.chat(messages, max_tokens=1, context_shift=True)
    assert small.chat([user("Hello")], max_tokens=1)["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("messages", [[], "Hello", [{"role": "nobody", "content": "Hello"}], [None]])
def test_what_is_no_conversation(small, messages):
    with pytest.raises(PromptError):
        small.chat(messages, context_shift=True)


def test_a_conversation_can_go_on_for_ever(small):
    messages, dropped = [SYSTEM], []
    for i in range(25):
        messages.append(user(noise(seed=i % 3), f"Question {i}?"))
        got = small.chat(messages, max_tokens=8, temperature=0, context_shift=True)
        messages.append(assistant(text_of(got) or "Hm."))
        dropped.append(got["dropped_turns"])
    assert dropped[0] == 0
    assert dropped == sorted(dropped)
    assert dropped[-1] > 5
