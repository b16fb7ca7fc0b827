"""Small pictures for tests of the image path."""

import io

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)


def encoded(image, fmt="PNG", **options):
    """The bytes of a picture file."""
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


def noise(width=7, height=5, seed=0):
    """An RGB image of random pixels, always the same ones."""
    rng = np.random.default_rng([seed, width, height])
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def same(a, b):
    """Whether two RGB images are equal."""
    return a.mode == b.mode == "RGB" and a.size == b.size and a.tobytes() == b.tobytes()


PNG = encoded(noise())
