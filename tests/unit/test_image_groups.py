"""Which images a row sees, against two other statements of the rule: the tests' own and transformers'."""

import itertools

import pytest
from cases import images_seen
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvllama.image_groups import image_groups, next_group

IMAGE, TEXT = 9, 1
untimed = settings(deadline=None)
LAYOUTS = st.lists(st.booleans(), max_size=24)  # whether an image's token stands at the position


def numbered(layout: list[bool]) -> list[int | None]:
    """The k-th image's position holds k, all others None."""
    numbers = itertools.count()
    return [next(numbers) if is_image else None for is_image in layout]


def groups_by_number(layout: list[bool]) -> list[list[int]]:
    return [list(group) for group in image_groups(numbered(layout))]


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ("", []),
        ("..", ["", ""]),
        ("a.", ["a", "a"]),
        (".a.", ["", "a", "a"]),
        ("a.b.", ["a", "a", "b", "b"]),
        ("ab.", ["a", "ab", "ab"]),
        ("abc.d.e", ["a", "ab", "abc", "abc", "d", "d", "e"]),
        ("aa.", ["a", "aa", "aa"]),
        ("a.a.", ["a", "a", "a", "a"]),
    ],
)
def test_the_rule(images, expected):
    got = image_groups([None if char == "." else char for char in images])
    assert ["".join(group) for group in got] == expected


@untimed
@given(LAYOUTS)
def test_agrees_with_the_rule_that_the_oracle_is_given(layout):
    token_ids = [IMAGE if is_image else TEXT for is_image in layout]
    assert groups_by_number(layout) == images_seen(token_ids, IMAGE)


@untimed
@given(LAYOUTS, LAYOUTS)
def test_what_a_position_sees_never_depends_on_what_follows(before, after):
    assert groups_by_number(before + after)[: len(before)] == groups_by_number(before)


@untimed
@given(LAYOUTS)
def test_one_step_at_a_time(layout):
    """What Session does, which knows its positions one by one."""
    images, seen, follows = numbered(layout), (), False
    for image, group in zip(images, image_groups(images), strict=True):
        seen, follows = next_group(seen, follows, image), image is not None
        assert seen == group


@pytest.fixture(scope="module")
def token_spans():
    """For each image the span of rows [first, end) that see it; an end of -1 is "to the end"."""
    from transformers.models.mllama.processing_mllama import get_cross_attention_token_mask

    return get_cross_attention_token_mask


@pytest.mark.reference
@untimed
@given(LAYOUTS.filter(any))
def test_agrees_with_transformers(token_spans, layout):
    token_ids = [IMAGE if is_image else TEXT for is_image in layout]
    spans = token_spans(token_ids, IMAGE)
    expected = [
        [k for k, (first, end) in enumerate(spans) if first <= i < (len(layout) if end == -1 else end)]
        for i in range(len(layout))
    ]
    assert groups_by_number(layout) == expected
