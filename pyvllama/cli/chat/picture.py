"""A picture of a conversation: its pixels, read once, and what people call it."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from pyvllama.config import PreprocessorConfig
from pyvllama.image.source import load_image, source_name
from pyvllama.image.tiling import canvas_for

__all__ = ["Picture", "pixel_digest"]


def pixel_digest(image: Image.Image) -> str:
    """What makes two RGB images the same: SHA-256 (hex) of their size and pixels."""
    digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that was read: what happens to its file later does not change the conversation.

    Attributes:
        image: RGB.
        name: where it is from, for people.
    """

    image: Image.Image
    name: str

    @classmethod
    def read(cls, source: Any, name: str | None = None) -> "Picture":
        """Read a picture from whatever `load_image` takes.

        Raises:
            ImageError: it cannot be read.
        """
        return cls(load_image(source), name or source_name(source))

    @cached_property
    def digest(self) -> str:
        """See `pixel_digest`."""
        return pixel_digest(self.image)

    @property
    def short_name(self) -> str:
        """The file's name alone."""
        path = unquote(urlsplit(self.name).path) if "://" in self.name else self.name
        return PurePath(path).name or self.name

    @property
    def size(self) -> str:
        """Its pixels, for people: 640 x 480."""
        return f"{self.image.width} x {self.image.height}"

    def n_tiles(self, config: PreprocessorConfig) -> int:
        """How many tiles the vision tower sees."""
        rows, cols = canvas_for(
            self.image.height, self.image.width, max_num_tiles=config.max_num_tiles, tile_size=config.tile_size
        )
        return rows * cols
