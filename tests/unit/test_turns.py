"""Which turns go when a conversation has grown too long."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvllama.errors import ContextOverflow
from pyvllama.turns import drop_turns, split_turns

ROLES = {"s": "system", "d": "developer", "u": "user", "a": "assistant", "t": "tool", "i": "ipython"}


def conversation(letters):
    """One message a letter; its content is its index, so that two messages are never equal."""
    return [{"role": ROLES[letter], "content": str(i)} for i, letter in enumerate(letters)]


def count(kept):
    """Ten tokens a message."""
    return 10 * len(kept)


def kept_of(letters, n_ctx, max_tokens=None, n_tokens=count):
    kept, n = drop_turns(conversation(letters), n_tokens, n_ctx, max_tokens)
    return [int(message["content"]) for message in kept], n


@pytest.mark.parametrize(
    ("letters", "turns"),
    [
        ("uaua", [[0, 1], [2, 3]]),
        ("suaua", [[1, 2], [3, 4]]),
        ("u", [[0]]),
        ("uatau", [[0, 1, 2, 3], [4]]),  # a tool's answer is no new turn
        ("uaiau", [[0, 1, 2, 3], [4]]),
        ("uuau", [[0, 1, 2], [3]]),  # a picture, then the question about it, as two messages
        ("usuau", [[0, 2, 3], [4]]),
        ("auau", [[0], [1, 2], [3]]),  # a greeting first
        ("suasdua", [[1, 2], [5, 6]]),
        ("s", []),
        ("", []),
    ],
)
def test_turns(letters, turns):
    assert split_turns(conversation(letters)) == turns


def test_what_fits_is_left_alone():
    messages = conversation("suaua")
    kept, n = drop_turns(messages, count, 60, 10)
    assert (kept, n) == (messages, 0)
    assert kept is messages


@pytest.mark.parametrize(
    ("n_ctx", "max_tokens", "kept", "n"),
    [
        (80, 10, [0, 1, 2, 3, 4, 5, 6], 0),
        (79, 10, [0, 3, 4, 5, 6], 1),
        (60, 10, [0, 3, 4, 5, 6], 1),
        (59, 10, [0, 5, 6], 2),
        (40, 10, [0, 5, 6], 2),
        (39, 10, [0, 5, 6], 2),  # the answer gets what room there is
        (30, 10, [0, 5, 6], 2),
        (80, None, [0, 1, 2, 3, 4, 5, 6], 0),  # 70 + 80 / 8
        (79, None, [0, 1, 2, 3, 4, 5, 6], 0),  # 79 // 8 = 9
        (78, None, [0, 3, 4, 5, 6], 1),
        (140, 10**6, [0, 1, 2, 3, 4, 5, 6], 0),  # no more than half of the context is kept free
        (138, 10**6, [0, 3, 4, 5, 6], 1),
    ],
)
def test_as_few_turns_as_possible(n_ctx, max_tokens, kept, n):
    assert kept_of("suauaua", n_ctx, max_tokens) == (kept, n)


@pytest.mark.parametrize("letters", ["suaua", "ua", "uatau", "s"])
def test_a_last_turn_that_does_not_fit_is_an_error(letters):
    with pytest.raises(ContextOverflow, match=r"the last turn alone, with the system prompt, has .* larger n_ctx"):
        kept_of(letters, 9, 1)


def test_system_messages_stay_where_they_stand():
    assert kept_of("suasuadu", 50, 5) == ([0, 3, 6, 7], 2)


def test_errors_of_the_counting_pass_through():
    def refuse(kept):
        raise RuntimeError("no prompt")

    with pytest.raises(RuntimeError, match="no prompt"):
        drop_turns(conversation("ua"), refuse, 100, None)


@given(st.text("sudat", min_size=1, max_size=40), st.integers(1, 500), st.one_of(st.none(), st.integers(1, 1000)))
def test_whole_turns_and_never_too_many(letters, n_ctx, max_tokens):
    messages, asked = conversation(letters), []

    def n_tokens(kept):
        asked.append(len(kept))
        return sum(3 + int(message["content"]) % 5 for message in kept)

    turns = split_turns(messages)
    room = n_ctx - (n_ctx // 8 if max_tokens is None else min(max_tokens, n_ctx // 2))
    sizes = []
    for n in range(len(turns)):
        gone = {i for turn in turns[:n] for i in turn}
        sizes.append(n_tokens([message for i, message in enumerate(messages) if i not in gone]))
    asked.clear()
    try:
        kept, n = drop_turns(messages, n_tokens, n_ctx, max_tokens)
    except ContextOverflow:
        assert (sizes[-1] if sizes else n_tokens(messages)) > n_ctx
        return
    gone = {i for turn in turns[:n] for i in turn}
    assert [int(message["content"]) for message in kept] == [i for i in range(len(messages)) if i not in gone]
    if sizes:
        assert n == next((k for k, size in enumerate(sizes) if size <= room), len(sizes) - 1)
    assert len(asked) <= 3 + len(turns).bit_length()
