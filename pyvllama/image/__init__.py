"""Pictures: from any source to RGB (`load_image`), from RGB to the model's tiles (`preprocess`)."""

from pyvllama.image.limits import ImageLimits
from pyvllama.image.source import ImageSource, load_image
from pyvllama.image.tiling import Tiles, preprocess

__all__ = ["ImageLimits", "ImageSource", "Tiles", "load_image", "preprocess"]
