"""Numbers that stand for pictures where others expect a list of token ids."""

import hashlib
from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from PIL import Image

from pyvllama.errors import BackendError

__all__ = ["ImageIds", "Picture"]

_N_IDS = 2**31 - 2**16  # of int32, without the small negative numbers that mean something elsewhere


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that has a number.

    Attributes:
        digest: of its pixels.
        image: RGB.
    """

    digest: bytes
    image: Image.Image


class ImageIds:
    """Pictures and their numbers, all below zero. Not thread-safe.

    The same pixels have the same number, and two pictures that are kept never share one: who compares lists of token
    ids, as llama-cpp-python does to find what a context holds already, thereby compares pictures. The number comes from
    the pixels' digest, so that it is mostly the same in the next process; to be sure, compare digests there.

    Args:
        max_bytes: of pixels to be kept by `trim`.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._pictures: OrderedDict[int, Picture] = OrderedDict()

    def add(self, image: Image.Image) -> int:
        """The number of an RGB image."""
        digest = hashlib.sha256(f"{image.width} {image.height} ".encode())
        digest.update(image.tobytes())
        return self.add_picture(Picture(digest.digest(), image))

    def add_picture(self, picture: Picture) -> int:
        """The number of a picture, perhaps another than it had in another process."""
        slot = _first_slot(picture.digest)
        while (found := self._pictures.get(_id(slot))) and found.digest != picture.digest:
            slot = (slot + 1) % _N_IDS
        self._pictures.setdefault(_id(slot), picture)
        self._pictures.move_to_end(_id(slot))
        return _id(slot)

    def __getitem__(self, image_id: int) -> Picture:
        try:
            return self._pictures[image_id]
        except KeyError:
            raise BackendError(
                f"the picture that {image_id} stands for is no longer kept: render the messages again"
            ) from None

    def trim(self, in_use: Collection[int]) -> None:
        """Forget the pictures that were not added for longest, down to max_bytes; never one in use."""
        n_bytes = sum(map(_n_bytes, self._pictures.values()))
        for image_id in [i for i in self._pictures if i not in in_use]:
            if n_bytes <= self._max_bytes:
                return
            n_bytes -= _n_bytes(self._pictures.pop(image_id))


def _first_slot(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "little") % _N_IDS


def _id(slot: int) -> int:
    return slot - 2**31


def _n_bytes(picture: Picture) -> int:
    return 3 * picture.image.width * picture.image.height
