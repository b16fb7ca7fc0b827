"""An RGB picture to the tiles that the vision tower sees: canvas, resize, padding, normalisation, cut.

Equal bit for bit to transformers' MllamaImageProcessor (its Pillow backend), whose rules these are. The model was
trained with them, the odd ones included: a picture smaller than a tile is enlarged, and a picture that fits the canvas
keeps its size.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyvllama.config import PreprocessorConfig, aspect_ratios
from pyvllama.errors import ImageError

__all__ = ["Tiles", "canvas_for", "preprocess", "size_on_canvas"]


@dataclass(frozen=True, eq=False)
class Tiles:
    """A picture as the vision tower takes it: real tiles only, no padded ones.

    Attributes:
        pixel_values: float32 [num_tiles, 3, tile_size, tile_size], C-contiguous, normalised; tile k sits at row
            k // cols, column k % cols.
        aspect_ratio_id: 1-based index into `aspect_ratios(max_num_tiles)`; 0 would mean padding.
        aspect_ratio: (rows, cols) of the canvas in tiles.
    """

    pixel_values: npt.NDArray[np.float32]
    aspect_ratio_id: int
    aspect_ratio: tuple[int, int]

    @property
    def num_tiles(self) -> int:
        """Number of tiles, rows * cols."""
        return len(self.pixel_values)


def canvas_for(height: int, width: int, *, max_num_tiles: int, tile_size: int) -> tuple[int, int]:
    """The canvas (rows, cols) for a picture of `height` x `width` pixels.

    The one that enlarges the picture least; if none is large enough, the one that shrinks it least; of equal ones the
    first, which has the fewest tiles too.
    """

    def scale(canvas: tuple[int, int]) -> float:
        return min(canvas[0] * tile_size / height, canvas[1] * tile_size / width)

    candidates = aspect_ratios(max_num_tiles)
    enlarging = [s for s in map(scale, candidates) if s >= 1]
    best = min(enlarging) if enlarging else max(map(scale, candidates))
    return next(canvas for canvas in candidates if scale(canvas) == best)


def size_on_canvas(height: int, width: int, *, canvas: tuple[int, int], tile_size: int) -> tuple[int, int]:
    """The size (height, width) in pixels to which a picture is resized for a canvas of (rows, cols) tiles.

    Proportions are kept up to rounding down, no edge gets shorter than one pixel.
    """
    target_height = min(max(height, tile_size), canvas[0] * tile_size)
    target_width = min(max(width, tile_size), canvas[1] * tile_size)
    scale_height, scale_width = target_height / height, target_width / width
    if scale_width < scale_height:
        return min(math.floor(height * scale_width) or 1, target_height), target_width
    return target_height, min(math.floor(width * scale_height) or 1, target_width)


def preprocess(image: Image.Image, config: PreprocessorConfig) -> Tiles:
    """Resize a picture onto its canvas, pad it with black at the right and below, normalise, cut it into tiles.

    Args:
        image: an RGB image of at least one pixel, as `load_image` returns it; not changed.
        config: the model's own settings.

    Raises:
        ImageError: if the image is not RGB, or has no pixels.
    """
    if image.mode != "RGB":
        raise ImageError(f"preprocess takes RGB, not an image of mode {image.mode}: pass it through load_image first")
    width, height = image.size
    if not width or not height:
        raise ImageError(f"the image has no pixels: its size is {width} x {height}")

    size = config.tile_size
    rows, cols = canvas = canvas_for(height, width, max_num_tiles=config.max_num_tiles, tile_size=size)
    new_height, new_width = size_on_canvas(height, width, canvas=canvas, tile_size=size)
    resized = image.resize((new_width, new_height), resample=Image.Resampling(config.resample))

    pixels = np.zeros((rows * size, cols * size, 3), dtype=np.uint8)  # [rows * size, cols * size, 3]
    pixels[:new_height, :new_width] = np.asarray(resized)
    tiles = pixels.reshape(rows, size, cols, size, 3).transpose(0, 2, 4, 1, 3).reshape(rows * cols, 3, size, size)

    table = _normalised_bytes(config)
    pixel_values = np.empty(tiles.shape, dtype=np.float32)
    for channel in range(3):
        np.take(table[channel], tiles[:, channel], out=pixel_values[:, channel])
    return Tiles(pixel_values, aspect_ratios(config.max_num_tiles).index(canvas) + 1, canvas)


def _normalised_bytes(config: PreprocessorConfig) -> npt.NDArray[np.float32]:
    """What each byte becomes in each channel, float32 [3, 256]: 768 values instead of arithmetic on every pixel.

    The rounding is transformers': scaled in float64, rounded to float32, then normalised in float32.
    """
    scaled = (np.arange(256, dtype=np.float64) * config.rescale_factor).astype(np.float32)
    mean = np.array(config.image_mean, dtype=np.float32)[:, None]
    std = np.array(config.image_std, dtype=np.float32)[:, None]
    return (scaled - mean) / std
