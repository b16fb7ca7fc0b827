"""Any Pillow image to RGB, upright, the way a person sees it."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyvllama.errors import ImageError

__all__ = ["to_rgb"]

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF orientation -> what sets the picture upright; 1 is upright already
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert to RGB: upright by its EXIF orientation, transparent parts over white.

    Colour profiles are not applied (transformers does not either). 16-bit grey is scaled to 8 bits. Numbers of mode "I"
    are read as 0..255 if all fit into that, as 0..65535 otherwise; of mode "F" as 0..1 or 0..255.

    Args:
        image: of any mode; not changed, and returned itself if there is nothing to do.
        name: what messages call it.

    Raises:
        ImageError: if its numbers are no brightness, or Pillow cannot convert its mode.
    """
    if image.mode.startswith("I;16"):
        rgb = _grey16(image)
    elif image.mode == "I":
        rgb = _grey_integers(image, name)
    elif image.mode == "F":
        rgb = _grey_floats(image, name)
    elif image.has_transparency_data:
        rgba = image.convert(_PREMULTIPLIED.get(image.mode, image.mode)).convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        rgb = Image.alpha_composite(white, rgba).convert("RGB")
    elif image.mode == "RGB":
        rgb = image
    else:
        rgb = image.convert("RGB")
    turn = _UPRIGHT.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The EXIF (or XMP) orientation, 1 if there is none or it cannot be read: such data must not cost the picture."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
        return int(value)
    except Exception:
        return 1


def _from_grey(grey: npt.NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(grey).convert("RGB")


def _grey16(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
    transparent = image.info.get("transparency")  # one grey value that is see-through (PNG's tRNS)
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return _from_grey(grey)


def _grey_integers(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{name} holds integers from {low} to {high}: scale them to 0..255 or 0..65535 first")
    return _from_grey((values if high <= 255 else (values * 255 + 32767) // 65535).astype(np.uint8))


def _grey_floats(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # NaN lands here too
        raise ImageError(f"{name} holds numbers from {low:g} to {high:g}: scale them to 0..1 or 0..255 first")
    return _from_grey(np.rint(values * 255 if high <= 1 else values).astype(np.uint8))
