"""Encoded images by content: the same picture is encoded once, however it comes in."""

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from pyvllama.image.tiling import preprocess
from pyvllama.model import Model

__all__ = ["Encoded", "VisionCache"]


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image's ImageStates and what they cost now: 0 ms if they were there already."""

    states: Any
    encode_ms: float
    cached: bool


class VisionCache:
    """ImageStates by the decoded pixels, least recently used first out. Not thread-safe.

    Args:
        model: encodes; its preprocessing is part of what makes a picture the same.
        max_bytes: memory that the kept states may hold; 0 keeps none. States still in use elsewhere live on.
    """

    def __init__(self, model: Model, max_bytes: int) -> None:
        self._model = model
        self._max_bytes = max_bytes
        self._kept: OrderedDict[bytes, Any] = OrderedDict()

    def encode(self, image: Image.Image, progress: Callable[[float], bool | None] | None = None) -> Encoded:
        """The image's ImageStates, from the cache or encoded now.

        Args:
            image: RGB.
            progress: called with the fraction done; returning False stops with Cancelled.
        """
        key = self.key(image)
        if key in self._kept:
            self._kept.move_to_end(key)
            return Encoded(self._kept[key], 0.0, True)
        start = time.perf_counter()
        tiles = preprocess(image, self._model.preprocessor)
        states, _, _ = self._model.mmproj.encode(tiles.pixel_values, tiles.aspect_ratio_id, progress=progress)
        encode_ms = 1000 * (time.perf_counter() - start)
        self._kept[key] = states
        while self._kept and sum(s.n_bytes for s in self._kept.values()) > self._max_bytes:
            self._kept.popitem(last=False)
        return Encoded(states, encode_ms, False)

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()

    @staticmethod
    def key(image: Image.Image) -> bytes:
        """What makes a picture the same as another: a digest of its pixels."""
        digest = hashlib.sha256(f"{image.mode} {image.width} {image.height} ".encode())
        digest.update(image.tobytes())
        return digest.digest()
