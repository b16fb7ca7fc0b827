"""Prompts of token ids and made-up pictures, the same for the oracle, the stored goldens and the package."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from factories import random_pixels, random_state
from tiny_configs import ALL_CONFIGS, TinyConfig

Image = tuple[np.ndarray, int]  # pixel_values float32 [num_tiles, 3, S, S], aspect_ratio_id

# Numbers of text tokens and, as strings, pictures: a different string is a different picture, the same one the same.
LAYOUTS: dict[str, tuple[int | str, ...]] = {
    "text_only": (23,),
    "image_first": ("a", 12),
    "text_image_text": (7, "b", 20),
    "image_last": (9, "c"),
    "two_images": (5, "d", 11, "e", 9),
    "consecutive": (6, "f", "g", 9),
    "later_turn": (4, "h", 14, "a", 1, "b", 13),
    "three_mixed": (4, "b", 6, "c", "d", 8),
    "three_consecutive": (2, "e", "f", "g", 7),
    "same_image_twice": (3, "h", 4, "h", 5),
}

# Of the pocket model: turns of (role, parts), a part being text or the number of a sample picture.
CONVERSATIONS: dict[str, list[tuple[str, list[str | int]]]] = {
    "no_picture": [("user", ["Hello!"])],
    "system": [("system", ["Be brief."]), ("user", [0, "How many shapes are there?"])],
    "two_pictures": [("user", [0, 1, "Describe the images."])],
    "pictures_apart": [
        ("user", ["Look at ", 2, " and at ", 3, " now."]),
        ("assistant", ["I see."]),
        ("user", ["Why?"]),
    ],
    "later_turn": [("user", [0, "Describe the image."]), ("assistant", ["A ring."]), ("user", [5, "And this one?"])],
}


def conversation(name: str, pictures: Sequence[Any]) -> tuple[list[dict[str, Any]], list[Any]]:
    """(messages whose image parts hold pictures[number], the pictures in their order)."""
    used: list[Any] = []
    messages = []
    for role, parts in CONVERSATIONS[name]:
        content: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, str):
                content.append({"type": "text", "text": part})
            else:
                used.append(pictures[part])
                content.append({"type": "image", "image": pictures[part]})
        messages.append({"role": role, "content": content})
    return messages, used


@dataclass(frozen=True)
class Case:
    """A prompt: the k-th image token of token_ids stands for images[k]."""

    name: str
    token_ids: tuple[int, ...]
    images: tuple[Image, ...]
    image_token: int

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)


def picture(config: TinyConfig, letter: str) -> Image:
    """The picture of a letter; "a" to "h" have eight different canvases where there are so many."""
    ratios = config.aspect_ratios
    # the largest canvases first, so that a model of many canvases shows its largest
    ratio = sorted(ratios, key=lambda r: -r[0] * r[1])[(ord(letter) - ord("a")) * 3 % len(ratios)]
    return random_pixels(config, ratio, letter, config.image_size)


def make_case(config: TinyConfig | str, name: str, layout: tuple[int | str, ...] | None = None) -> Case:
    """The case of that name for a model; text tokens are anything but special ones."""
    config = ALL_CONFIGS[config] if isinstance(config, str) else config
    rng = random_state("tokens", name, config.vocab_size)
    token_ids: list[int] = []
    images: list[Image] = []
    for part in layout or LAYOUTS[name]:
        if isinstance(part, str):
            token_ids.append(config.image_token)
            images.append(picture(config, part))
        else:
            token_ids += rng.randint(0, config.vocab_size - 16, part).tolist()
    return Case(name, tuple(token_ids), tuple(images), config.image_token)


def canvas_case(config: TinyConfig | str, ratio: tuple[int, int]) -> Case:
    """Text, one picture of that canvas (rows, cols), text."""
    config = ALL_CONFIGS[config] if isinstance(config, str) else config
    case = make_case(config, f"canvas_{ratio[0]}x{ratio[1]}", (3, "a", 6))
    return replace(case, images=(random_pixels(config, ratio, "canvas", config.image_size),))


def all_cases(config_name: str) -> list[Case]:
    """Every layout and every canvas of a named configuration; of the large one two canvases."""
    config = ALL_CONFIGS[config_name]
    if config_name == "real_grid":
        return [canvas_case(config, ratio) for ratio in ((1, 1), (2, 2))]
    layouts = [make_case(config, name) for name in LAYOUTS]
    return layouts + [canvas_case(config, ratio) for ratio in config.aspect_ratios]


def images_seen(token_ids: Sequence[int], image_token: int) -> list[list[int]]:
    """For each row the images it attends to, by number. Written for the tests alone: the package has its own rule.

    A row sees the newest image at or before it. Image tokens directly after one another form a group: the second one
    sees the first as well, and the text after the group sees all of it. Rows before the first image see none.
    """
    seen: list[list[int]] = []
    group: list[int] = []
    n_images = 0
    for i, token in enumerate(token_ids):
        if token == image_token:
            group = [*group, n_images] if i and token_ids[i - 1] == image_token else [n_images]
            n_images += 1
        seen.append(group)
    return seen
