"""What prompt lookup guesses, against its definition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvllama.errors import ConfigError
from pyvllama.prompt_lookup import PromptLookup


def by_definition(tokens, n, longest, shortest):
    """Write the text on, each token being the one that followed the found occurrence as far behind."""
    for size in range(longest, shortest - 1, -1):
        ending = tokens[-size:]
        for at in range(len(tokens) - size - 1, -1, -1):
            if size < len(tokens) and tokens[at : at + size] == ending:
                text = list(tokens)
                for i in range(n):
                    text.append(text[at + size + i])
                return text[len(tokens) :]
    return []


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.integers(1, 12),
    st.integers(1, 4),
    st.integers(0, 4),
)
def test_against_the_definition(tokens, n, shortest, more):
    draft = PromptLookup(12, longest=shortest + more, shortest=shortest)
    assert draft.propose(tokens, n) == by_definition(tokens, n, shortest + more, shortest)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 2, 3, 4, 5, 6, 9, 1, 2, 3], [4, 5, 6]),
        ([1, 2, 3, 4, 8, 1, 2, 3, 5, 8, 1, 2, 3], [5, 8, 1]),  # the latest of two
        ([0, 1, 2, 3, 4, 9, 7, 1, 2, 3, 5, 9, 0, 1, 2, 3], [4, 9, 7]),  # the longest of two
        ([1, 2, 3, 1, 2, 3], [1, 2, 3]),
        ([7, 7, 7, 7], [7, 7, 7]),  # a repetition goes on
        ([1, 2, 1, 2], []),  # two tokens prove nothing
        ([1, 2, 3, 4, 5, 6], []),
        ([1], []),
    ],
)
def test_what_it_guesses(tokens, expected):
    assert PromptLookup(3).propose(tokens, 3) == expected


def test_large_ids():
    """Of surrogates and beyond any vocabulary: ids are turned into characters on the way."""
    tokens = [0xD800, 0xDFFF, 0x10FFFF, 128256, 5, 0xD800, 0xDFFF, 0x10FFFF]
    assert PromptLookup(4).propose(tokens, 2) == [128256, 5]


@pytest.mark.parametrize("sizes", [{"shortest": 0}, {"shortest": 5, "longest": 4}])
def test_sizes_that_make_no_sense(sizes):
    with pytest.raises(ConfigError, match="shortest"):
        PromptLookup(4, **sizes)
