"""Text deltas: any cut of the bytes gives the same text, and nothing of a stop string is ever shown."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvllama.errors import PromptError
from pyvllama.stream import TextStream

# few letters, so that stop strings do occur, overlap and nearly occur; and characters of two, three and four bytes
ALPHABETS = ("ab", "ab<|é€𝄞")
TEXT = st.one_of(*(st.text(alphabet, max_size=40) for alphabet in ALPHABETS))
STOPS = st.one_of(*(st.lists(st.text(alphabet, min_size=1, max_size=6), max_size=4) for alphabet in ALPHABETS))
PIECES = st.lists(st.sampled_from([b"a", b"b", b"\xe2\x82", b"\xac", b"\xff", b"\xf0\x9d"])).map(b"".join)
BYTES = st.one_of(TEXT.map(str.encode), st.binary(max_size=40), PIECES)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(i % (len(data) + 1) for i in at), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def run(pieces: list[bytes], stop: list[str]) -> tuple[list[str], TextStream]:
    stream = TextStream(stop)
    deltas = [stream.feed(piece) for piece in pieces]
    return [*deltas, stream.finish()], stream


def expected(data: bytes, stop: list[str]) -> tuple[str, bool]:
    """The rule, said plainly: read character by character until the text ends with a stop string; cut the longest."""
    text = data.decode("utf-8", errors="replace")
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@given(BYTES, STOPS, st.lists(st.integers(0, 200), max_size=12))
def test_any_chunking_gives_the_text_that_the_rule_gives(data, stop, at):
    deltas, stream = run(cut(data, at), stop)
    text, stopped = expected(data, stop)
    assert "".join(deltas) == text
    assert stream.stopped == stopped
    assert (stream.matched in stop) == stopped


@given(TEXT, STOPS, st.lists(st.integers(0, 200), max_size=12))
def test_what_was_shown_is_never_part_of_a_stop_string(text, stop, at):
    """Whatever may follow, even the rest of any stop string: what has been shown stays a prefix of the final text."""
    stream = TextStream(stop)
    shown, fed = "", b""
    for piece in cut(text.encode(), at):
        shown += stream.feed(piece)
        fed += piece
        if stream.stopped:
            break
        read = fed.decode(errors="ignore")
        for rest in {s[k:] for s in stop for k in range(len(s) + 1)}:
            assert expected((read + rest).encode(), stop)[0].startswith(shown)
    assert not any(s in shown for s in stop)


@given(TEXT, st.lists(st.integers(0, 200), max_size=12))
def test_characters_are_never_split(text, at):
    deltas, _ = run(cut(text.encode(), at), [])
    assert "�" not in "".join(deltas)
    assert "".join(deltas) == text


@given(TEXT, STOPS)
def test_nothing_is_held_back_longer_than_needed(text, stop):
    """After each character, what is held is exactly the longest end that may still become a stop string."""
    stream = TextStream(stop)
    shown = ""
    for i, char in enumerate(text):
        shown += stream.feed(char.encode())
        if stream.stopped:
            return
        read = text[: i + 1]
        n_held = max((k for s in stop for k in range(len(s)) if read.endswith(s[:k])), default=0)
        assert shown == read[: len(read) - n_held]


def test_stop_string_across_tokens_and_what_follows_it_is_dropped():
    stream = TextStream(["<|eot|>", "\n\n"])
    assert [stream.feed(p) for p in (b"Hi <", b"b> <|e", b"ot", b"|> more", b"x")] == ["Hi ", "<b> ", "", "", ""]
    assert stream.stopped and stream.matched == "<|eot|>"
    assert stream.finish() == ""


def test_the_first_complete_stop_string_wins():
    assert run([b"abcd"], ["abcd", "c"])[0][0] == "ab"
    assert run([b"xabc"], ["c", "abc"])[0][0] == "x"


def test_invalid_and_unfinished_bytes_become_replacement_characters():
    assert "".join(run([b"a\xff", b"b\xe2\x82"], [])[0]) == "a�b�"
    assert "".join(run([b"\xf0\x9d", b"\x84", b"\x9e!"], [])[0]) == "𝄞!"


def test_a_replacement_character_may_itself_complete_a_stop_string():
    deltas, stream = run([b"ab\xe2"], ["b�"])
    assert "".join(deltas) == "a" and stream.stopped


@pytest.mark.parametrize(("text", "stop"), [("xaaab", "aab"), ("xababac", "abac"), ("xaabaabaaa", "aabaaa")])
def test_a_stop_string_that_begins_inside_a_failed_attempt_is_found(text, stop):
    deltas, stream = run([char.encode() for char in text], [stop])
    assert "".join(deltas) == text.removesuffix(stop) and stream.stopped


def test_one_string_is_one_stop_string_and_not_its_letters():
    assert run([b"stop st"], "st")[0][0] == ""
    assert "".join(run([b"so it goes"], "st")[0]) == "so it goes"


@pytest.mark.parametrize("stop", [[""], ["a", ""], [None], [3], [b"a"]])
def test_bad_stop_strings_are_named(stop):
    with pytest.raises(PromptError, match=rf"stop\[{len(stop) - 1}\]"):
        TextStream(stop)


def test_feeding_a_finished_stream_is_refused():
    stream = TextStream()
    assert stream.feed(b"a") == "a"
    assert stream.finish() == "" == stream.finish()
    with pytest.raises(ValueError, match="finished"):
        stream.feed(b"b")


def test_long_stop_strings_cost_one_step_a_character():
    stream = TextStream(["a" * 50_000 + "b"])
    assert stream.feed(b"a" * 200_000) == "a" * 150_000
    assert stream.finish() == "a" * 50_000
