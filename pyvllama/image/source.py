"""A picture from wherever people keep it, as upright RGB pixels.

Every picture is treated as hostile: its size is bounded in bytes before it is read and in pixels before it is decoded,
and only five formats are ever handed to a decoder.
"""

import base64
import binascii
import codecs
import contextlib
import io
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pyvllama.errors import ImageError, ImageTooLarge
from pyvllama.image.fetch import fetch, shown_url
from pyvllama.image.limits import ImageLimits
from pyvllama.image.media_path import read_below
from pyvllama.image.rgb import to_rgb

__all__ = ["ImageSource", "load_image", "load_images", "numbered", "source_name"]

ImageSource = str | Path | bytes | bytearray | memoryview | Image.Image | npt.NDArray[np.uint8]
"""A path, an http(s) address or a data: URI (both as str), the bytes of a file, a Pillow image, a uint8 array."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_SUPPORTED = "PNG, JPEG, WebP, GIF (its first frame) and BMP are supported"
_DEFAULT_LIMITS = ImageLimits()

# What else people send, by how it begins.
_KNOWN_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (rb"\s*<(!doctype\s+html|html)", "it is a web page: give the address of the picture itself"),
    (rb"\s*(<\?xml.{0,400})?<svg", "it is an SVG drawing: export it as PNG"),
    (rb"%PDF-", "it is a PDF document: export the page as PNG"),
    (rb"II\*\x00|MM\x00\*", "it is a TIFF image: save it as PNG"),
    (rb".{4}ftyp(heic|heix|hevc|mif1|msf1)", "it is a HEIC photo: save it as JPEG"),
    (rb".{4}ftypavi[fs]", "it is an AVIF image: save it as PNG"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "it is a JPEG XL image: save it as PNG"),
    (rb"\x00\x00\x01\x00", "it is an icon file: save it as PNG"),
    (rb"8BPS", "it is a Photoshop document: export it as PNG"),
    (rb".{4}ftyp|\x1a\x45\xdf\xa3", "it is a video: save one frame as PNG"),
    (rb"GGUF", "it is a GGUF model file"),
    (rb"version https://git-lfs", "it is a Git LFS pointer: fetch the file itself with `git lfs pull`"),
)


def load_image(source: ImageSource, *, limits: ImageLimits = _DEFAULT_LIMITS) -> Image.Image:
    """Load a picture as RGB, upright (EXIF orientation applied), transparent parts over white.

    Of an animation, the first frame. Grey, palette, CMYK, 16-bit and other modes become RGB as a person sees them, see
    `to_rgb`; colour profiles are not applied.

    Args:
        source: a path, an http(s) address, a data: URI, the bytes of a picture file, a Pillow image, or a uint8 array
            [height, width], [height, width, 3] (RGB) or [height, width, 4] (RGBA).
        limits: bounds on bytes, pixels and download time.

    Returns:
        An RGB image of at least one pixel; the given image itself if it was already that.

    Raises:
        ImageTooLarge: if it has more bytes or pixels than `limits` allows.
        ImageFetchRefused: if its address is not fetched or does not deliver.
        ImageError: if there is no such file, it is no picture, damaged, or of an unsupported kind.
    """
    name = source_name(source)
    if isinstance(source, Image.Image):
        image = source
        _check_pixels(image.size, name, limits)
    elif isinstance(source, np.ndarray):
        image = _from_array(source, name)
        _check_pixels(image.size, name, limits)
    else:
        image = _decode(_read(source, name, limits), name, limits)
    try:
        image.load()  # a Pillow image that was only opened is decoded here
        return to_rgb(image, name)
    except ImageError:
        raise
    except Exception as e:  # Pillow's decoders and converters raise many kinds of errors
        raise ImageError(f"{name} (mode {image.mode}) cannot be read: {_reason(e)}") from e


def load_images(sources: Sequence[ImageSource], *, limits: ImageLimits = _DEFAULT_LIMITS) -> list[Image.Image]:
    """The pictures of one prompt.

    Raises:
        ImageTooLarge: they are more than `limits.max_images`, or have more pixels together than allowed.
        As `load_image`; says which of several.
    """
    if limits.max_images is not None and len(sources) > limits.max_images:
        raise ImageTooLarge(f"there are {len(sources)} pictures, the limit is {limits.max_images}: send fewer")
    images: list[Image.Image] = []
    n_pixels = 0
    for i, source in enumerate(sources, 1):
        with numbered(i, len(sources)):
            images.append(load_image(source, limits=limits))
        n_pixels += images[-1].width * images[-1].height
        if limits.max_total_pixels is not None and n_pixels > limits.max_total_pixels:
            raise ImageTooLarge(
                f"the pictures have more than the limit of {limits.max_total_pixels} pixels together: send fewer or "
                "smaller ones"
            )
    return images


@contextlib.contextmanager
def numbered(i: int, n: int) -> Iterator[None]:
    """Errors from within say which of n images it is, if there are several; i counts from 1."""
    try:
        yield
    except ImageError as e:
        if n == 1:
            raise
        raise type(e)(f"image {i} of {n}: {e}") from e


def source_name(source: object) -> str:
    """What messages call a source: short, on one line, without passwords, and without the picture itself."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"the image given as {len(source)} bytes"
    if isinstance(source, np.ndarray):
        return f"the image array {source.dtype}{list(source.shape)}"
    if isinstance(source, Image.Image):
        return f"the Pillow image {source.size[0]} x {source.size[1]}"
    if not isinstance(source, (str, Path)):
        return f"the image of type {type(source).__name__}"
    text = str(source)
    if _scheme(text) == "data":
        return f"the data: URI of {len(text)} characters"
    if _scheme(text):
        return shown_url(text)
    text = re.sub(r"[\x00-\x1f\x7f]", "�", text)
    return text if 0 < len(text) <= 100 else f"'{text[:60]}{'…' if text else ''}{text[60:][-35:]}'"


def _scheme(text: str) -> str:
    """The lower-case scheme of an address, empty for a path (also for one like C:/picture.png)."""
    found = re.match(r"(data):|([a-z][a-z0-9+.-]+)://", text, re.IGNORECASE)
    return (found[1] or found[2]).lower() if found else ""


def _read(source: object, name: str, limits: ImageLimits) -> bytes:
    """The bytes of a picture file."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, str) and (scheme := _scheme(source)) and not (scheme == "file" and limits.media_path):
        data = _from_data_uri(source, name, limits) if scheme == "data" else fetch(source, limits)
    elif isinstance(source, (str, Path)):
        data = _from_file(source, name, limits)
    else:
        raise ImageError(
            f"{name} is no image source: give a path, an http(s) address, a data: URI, the bytes of a picture, "
            "a Pillow image or a uint8 array"
        )
    if len(data) > limits.max_bytes:
        raise ImageTooLarge(f"{name} is over the limit of {limits.max_bytes} bytes: use a smaller picture")
    return data


def _from_file(source: str | Path, name: str, limits: ImageLimits) -> bytes:
    text = str(source)
    if not limits.allow_files and limits.media_path is None:
        raise ImageError(f"{name} is refused: pictures are taken from http(s) addresses and data: URIs only")
    if len(text) > 255 and re.fullmatch(r"[A-Za-z0-9+/=_\s-]+", text):
        raise ImageError(f"{name} looks like base64: write data:image/png;base64, in front of it, or pass its bytes")
    if not limits.allow_files and limits.media_path is not None:
        return read_below(limits.media_path, text, limits.max_bytes)
    try:
        path = Path(source).expanduser()
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise ImageError(f"{name} is a directory: give one picture file")
        if not stat.S_ISREG(info.st_mode):
            raise ImageError(f"{name} is no regular file")
        if info.st_size > limits.max_bytes:
            raise ImageTooLarge(
                f"{name} has {info.st_size} bytes, over the limit of {limits.max_bytes}: use a smaller picture"
            )
        with path.open("rb") as file:
            return file.read(limits.max_bytes + 1)
    except FileNotFoundError as e:
        raise ImageError(f"there is no picture file {name}") from e
    except (OSError, ValueError, RuntimeError) as e:  # no permission, a zero byte in the name, no home directory...
        raise ImageError(f"{name} cannot be read: {_reason(e)}") from e


def _from_data_uri(uri: str, name: str, limits: ImageLimits) -> bytes:
    """The content of `data:[media type][;base64],content`. The media type is ignored: content tells."""
    header, comma, content = uri[len("data:") :].partition(",")
    if not comma:
        raise ImageError(f"{name} has no comma: it should read data:image/png;base64,…")
    if not header.rstrip().lower().endswith(";base64"):
        return unquote_to_bytes(content)
    encoded = re.sub(rb"[\t\n\f\r ]+", b"", unquote_to_bytes(content))
    if len(encoded) // 4 * 3 > limits.max_bytes + 3:
        raise ImageTooLarge(f"{name} is over the limit of {limits.max_bytes} bytes: use a smaller picture")
    try:
        return base64.b64decode(encoded.rstrip(b"=") + b"=" * (-len(encoded.rstrip(b"=")) % 4), validate=True)
    except binascii.Error as e:
        raise ImageError(f"{name} holds no valid base64: {_reason(e)}") from e


def _from_array(array: npt.NDArray[np.uint8], name: str) -> Image.Image:
    if array.dtype != np.uint8:
        raise ImageError(f"{name} must be uint8 with values 0..255: convert it, e.g. (array * 255).astype('uint8')")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        first = array.ndim == 3 and array.shape[0] in (1, 3, 4)
        hint = ": put its channels last, array.transpose(1, 2, 0)" if first else ""
        raise ImageError(f"{name} must be [height, width], [height, width, 3] or [height, width, 4]{hint}")
    if 0 in array.shape:
        raise ImageError(f"{name} has no pixels")
    return Image.fromarray(np.ascontiguousarray(array))


def _decode(data: bytes, name: str, limits: ImageLimits) -> Image.Image:
    """Decode a picture file; its header is judged first."""
    if not data:
        raise ImageError(f"{name} is empty")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        _check_pixels(image.size, name, limits)
        image.load()
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise ImageTooLarge(f"{name} has more pixels than the limit of {limits.max_pixels}: use a smaller one") from e
    except UnidentifiedImageError as e:
        raise ImageError(f"{name} is not a picture that can be read: {_what_it_is(data)}. {_SUPPORTED}") from e
    except Exception as e:  # a decoder meets broken data in many ways
        raise ImageError(f"{name} is damaged or cut off: {_reason(e)}") from e
    _check_pixels(image.size, name, limits)
    return image


def _check_pixels(size: tuple[int, int], name: str, limits: ImageLimits) -> None:
    width, height = size
    if not width or not height:
        raise ImageError(f"{name} has no pixels: its size is {width} x {height}")
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"{name} has {width} x {height} = {width * height} pixels, the limit is {limits.max_pixels}: "
            "use a smaller picture"
        )


def _what_it_is(data: bytes) -> str:
    for pattern, what in _KNOWN_STRANGERS:
        if re.match(pattern, data[:1024], re.IGNORECASE | re.DOTALL):
            return what
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data[:1024])  # which may end within a character
        if all(c.isprintable() or c in "\t\n\f\r" for c in text):
            return "it is text"
    except UnicodeDecodeError:
        pass
    return "it is damaged or of an unknown kind"


def _reason(error: BaseException) -> str:
    """An exception on one line, not too long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "…"
