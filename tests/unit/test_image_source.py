"""Pictures from files, bytes, arrays and data: URIs; what is no picture; and what hostile ones try."""

import base64
import contextlib
import io
import os
import struct
import time
import zlib
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from pictures import BLUE, GREEN, PNG, RED, encoded, noise, same
from PIL import Image

from pyvllama.errors import ImageError, ImageTooLarge
from pyvllama.image import ImageLimits, load_image
from pyvllama.image.source import load_images, source_name

# --- where pictures come from


def test_every_kind_of_source_gives_the_same_picture(tmp_path):
    path = tmp_path / "käse 1.png"
    path.write_bytes(PNG)
    percent = "data:image/png," + quote(PNG)
    for source in (
        path, str(path), PNG, bytearray(PNG), memoryview(PNG), noise(), np.asarray(noise()), percent,
        Image.open(io.BytesIO(PNG)), "data:image/png;base64," + base64.b64encode(PNG).decode(),
    ):  # fmt: skip
        assert same(load_image(source), noise()), type(source)


@pytest.mark.parametrize(("fmt", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True}), ("TIFF", None)])
def test_lossless_formats(fmt, options):
    if options is None:
        with pytest.raises(ImageError, match="TIFF"):
            load_image(encoded(noise(), fmt))
    else:
        assert same(load_image(encoded(noise(), fmt, **options)), noise())


def test_jpeg_is_decoded_as_pillow_decodes_it():
    data = encoded(noise(64, 48), "JPEG", quality=80)
    assert same(load_image(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(fmt):
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, BLUE, GREEN)]
    data = encoded(
        frames[0], fmt, save_all=True, append_images=frames[1:], **({"lossless": True} if fmt == "WEBP" else {})
    )
    assert same(load_image(data), frames[0])


def test_a_home_directory_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(PNG)
    assert load_image("~/a.png").size == (7, 5)


def test_a_pillow_image_is_not_changed():
    image = Image.new("RGBA", (3, 2), (10, 20, 30, 128))
    load_image(image)
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (10, 20, 30, 128)
    rgb = noise()
    assert load_image(rgb) is rgb


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_arrays(shape):
    array = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    if shape[-1] == 4:
        array[..., 3] = 255
    got = np.asarray(load_image(array))
    expected = array[..., :3] if array.ndim == 3 and shape[-1] >= 3 else np.repeat(array.reshape(5, 7, 1), 3, axis=2)
    assert np.array_equal(got, expected)
    assert np.array_equal(np.asarray(load_image(array[::-1])), expected[::-1])  # no contiguous memory


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (np.zeros((2, 2, 3)), "uint8"),
        (np.zeros((2, 2, 3), np.int64), "uint8"),
        (np.zeros((3, 20, 20), np.uint8), "transpose"),
        (np.zeros((2, 2, 2), np.uint8), "height, width"),
        (np.zeros(4, np.uint8), "height, width"),
        (np.zeros((1, 2, 2, 3), np.uint8), "height, width"),
        (np.zeros((0, 4, 3), np.uint8), "no pixels"),
    ],
)
def test_arrays_that_are_no_picture(array, advice):
    with pytest.raises(ImageError, match=advice):
        load_image(array)


# --- what is no picture


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"", "empty"),
        (b"hello, I am no picture", "it is text"),
        (b"root:x:0:0:root\n\tdaemon:x\r\n" * 90, "it is text"),
        ("é".encode() * 600 + b"x", "it is text"),
        (b"x" + "é".encode() * 600, "it is text"),
        (b"\xff" * 2000, "unknown kind"),
        (b"\n\n<!DOCTYPE html><html><body>404", "web page"),
        (b"<HTML>", "web page"),
        (b"<?xml version='1.0'?>\n<!-- x --><svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\0\0\0\x18ftypheic" + b"\0" * 32, "HEIC"),
        (b"\0\0\0\x18ftypavif" + b"\0" * 32, "AVIF"),
        (b"\0\0\0\x18ftypisom" + b"\0" * 32, "video"),
        (b"GGUF\3\0\0\0", "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (bytes(range(256)), "unknown kind"),
        (b"\xff\xd8\xff\xe0", "unknown kind|cut off"),
        (PNG[:8], "cut off|unknown kind"),
    ],
)
def test_what_is_no_picture_is_told_so(data, hint, tmp_path):
    with pytest.raises(ImageError, match=hint):
        load_image(data)
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"photo\.jpg"):
        load_image(path)


def test_paths_that_are_no_picture(tmp_path):
    with pytest.raises(ImageError, match=r"there is no picture file .*missing\.png"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a directory"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="is a directory"):
        load_image("")
    with pytest.raises(ImageError, match="cannot be read"):
        load_image("a\0b.png")
    with pytest.raises(ImageError, match="cannot be read"):
        load_image("a" * 300 + ".png")
    with pytest.raises(ImageError, match="looks like base64"):
        load_image(base64.b64encode(PNG * 3).decode())
    with pytest.raises(ImageError, match="refused"):
        load_image(tmp_path / "a.png", limits=ImageLimits(allow_files=False))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_or_device_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="no regular file"):
        load_image(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="no regular file"):
        load_image("/dev/zero")


@pytest.mark.parametrize("source", [None, 3, 1.5, ["a.png"], {"url": "a.png"}, object()])
def test_what_is_no_source_is_named(source):
    with pytest.raises(ImageError, match=f"type {type(source).__name__} is no image source"):
        load_image(source)


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_cut_off_files_never_give_a_picture_or_another_error(fmt):
    data = encoded(noise(60, 40), fmt)
    whole = load_image(data)
    for n in {*range(64), *range(64, len(data) - 1, 37)}:
        try:
            got = load_image(data[:n])
        except ImageError:
            continue
        assert same(got, whole), n  # only bytes behind the pixels were missing


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_damaged_files_give_a_picture_or_an_image_error(fmt):
    data = encoded(noise(60, 40), fmt)
    rng = np.random.default_rng(5)
    for _ in range(150):
        broken = bytearray(data)
        for at in rng.integers(0, min(len(data), 400), 3):
            broken[at] = rng.integers(0, 256)
        with contextlib.suppress(ImageError):
            assert load_image(bytes(broken)).mode == "RGB"


# --- limits


def png_of_size(width, height, data=b""):
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def webp_of_size(width, height):
    canvas = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + canvas + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000), (2**31 - 1, 1), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_by_their_header(size):
    start = time.monotonic()
    with pytest.raises(ImageTooLarge, match="limit"):
        load_image(png_of_size(*size))
    gif = b"GIF89a" + struct.pack("<HH", min(size[0], 65535), min(size[1] * 9999, 65535)) + b"\0\0\0,"
    with pytest.raises(ImageError):
        load_image(gif)
    with pytest.raises(ImageError):
        load_image(webp_of_size(16_000, 16_000))
    assert time.monotonic() - start < 2


def test_pixel_limit_counts_for_every_source():
    limits = ImageLimits(max_pixels=34)
    for source in (PNG, noise(), np.asarray(noise()), encoded(noise(), "GIF")):
        with pytest.raises(ImageTooLarge, match=r"7 x 5 = 35 pixels, the limit is 34"):
            load_image(source, limits=limits)
        assert load_image(source, limits=ImageLimits(max_pixels=35)).size == (7, 5)


def test_byte_limit_counts_for_every_source(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(PNG)
    for source in (PNG, path, "data:;base64," + base64.b64encode(PNG).decode(), "data:," + quote(PNG)):
        with pytest.raises(ImageTooLarge, match=f"limit of {len(PNG) - 4}"):
            load_image(source, limits=ImageLimits(max_bytes=len(PNG) - 4))
        assert load_image(source, limits=ImageLimits(max_bytes=len(PNG))).size == (7, 5)


def test_a_png_text_bomb_is_refused():
    bomb = zlib.compress(b"a" * 5_000_000)
    body = b"Comment\0\0" + bomb
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    with pytest.raises(ImageError):
        load_image(PNG[:33] + chunk + PNG[33:])


@pytest.mark.parametrize("image", [Image.new("RGB", (0, 0)), Image.new("L", (0, 5)), Image.new("RGBA", (5, 0))])
def test_pictures_without_pixels(image):
    with pytest.raises(ImageError, match="no pixels"):
        load_image(image)


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_but_honest_sizes_load(size):
    assert load_image(encoded(Image.new("RGB", size, RED))).size == size


# --- data: URIs


def test_data_uri_spellings():
    text = base64.b64encode(PNG).decode()
    wrapped = "\r\n".join(text[i : i + 60] for i in range(0, len(text), 60))
    for uri in (
        f"DATA:image/png;BASE64,{text}", f"data:;base64,{text}", f"data:image/png;charset=utf-8;base64,{text}",
        f"data:image/png;base64,{wrapped}", f"data:image/png;base64,{quote(text)}", f"data:image/jpeg;base64,{text}",
        f"data:image/png;base64,{text.rstrip('=')}", "data:," + "".join(f"%{byte:02x}" for byte in PNG),
    ):  # fmt: skip
        assert same(load_image(uri), noise()), uri[:40]


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,", "empty"),
        ("data:image/png;base64,!!!!", "no valid base64"),
        ("data:image/png;base64,iVBORw0KGgoAAAANSUhEU*", "no valid base64"),
        ("data:image/png;base64,abcde", "no valid base64"),
        ("data:image/png;base64,ümläut", "no valid base64"),
        ("data:text/plain,hello", "it is text"),
        ("data:text/html,<html><body>x", "web page"),
    ],
)
def test_wrong_data_uris(uri, hint):
    with pytest.raises(ImageError, match=hint):
        load_image(uri)


# --- names in messages


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("photo.jpg", "photo.jpg"),
        (Path("dir/photo.jpg"), str(Path("dir/photo.jpg"))),
        ("https://me:secret@host/a.png?token=secret#x", "https://host/a.png"),
        ("data:image/png;base64,AAAA", "the data: URI of 26 characters"),
        (b"1234", "the image given as 4 bytes"),
        (np.zeros((2, 3), np.uint8), "the image array uint8[2, 3]"),
        (Image.new("L", (4, 5)), "the Pillow image 4 x 5"),
        (None, "the image of type NoneType"),
        ("C:/photo.jpg", "C:/photo.jpg"),
    ],
)
def test_names_are_short_and_hold_no_secrets(source, expected):
    assert source_name(source) == expected


@pytest.mark.parametrize(
    "source", ["x" * 5000 + ".png", "http://host/" + "y" * 5000, "data:," + "z" * 5000, "a\nb\x1b[2J"]
)
def test_names_stay_on_one_line(source):
    assert len(source_name(source)) <= 120 and source_name(source).isprintable()


def test_of_several_the_one_that_is_none_is_named(tmp_path):
    good = np.zeros((2, 2, 3), np.uint8)
    gone = tmp_path / "gone.png"
    assert len(load_images([good, good])) == 2
    with pytest.raises(ImageError, match=r"^there is no picture file"):
        load_images([gone])
    with pytest.raises(ImageError, match=r"^image 2 of 3: there is no picture file .*gone\.png$"):
        load_images([good, gone, good])
    with pytest.raises(ImageTooLarge, match=r"^image 1 of 2: the image array uint8.* has 2 x 2 = 4 pixels"):
        load_images([good, gone], limits=ImageLimits(max_pixels=3))
