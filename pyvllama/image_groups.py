"""Which images a position of a conversation sees: Meta's rule, as a pure function."""

from collections.abc import Sequence
from typing import TypeVar

__all__ = ["image_groups", "next_group"]

Image = TypeVar("Image")


def next_group(seen: tuple[Image, ...], follows_image: bool, image: Image | None) -> tuple[Image, ...]:
    """What a position sees, from what the one before it sees.

    Args:
        seen: what the position before sees.
        follows_image: whether an image's token stands at the position before.
        image: the image whose token stands at this position, or None.
    """
    if image is None:
        return seen
    return (*seen, image) if follows_image else (image,)


def image_groups(images: Sequence[Image | None]) -> list[tuple[Image, ...]]:
    """What each position sees: the newest image before it; images directly after one another form one group.

    Args:
        images: for each position the image whose token stands there, or None.

    Returns:
        For each position the images it sees, oldest first; none before the first image. An image's own position sees
        the group as it stands then: the second of two neighbours sees both, the first only itself
        (transformers, processing_mllama.py, get_cross_attention_token_mask).
    """
    groups: list[tuple[Image, ...]] = []
    seen: tuple[Image, ...] = ()
    before: Image | None = None
    for image in images:
        seen = next_group(seen, before is not None, image)
        groups.append(seen)
        before = image
    return groups
