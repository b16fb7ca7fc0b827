"""What pictures look like: upright, transparent parts over white, every Pillow mode as a person sees it."""

import numpy as np
import pytest
from pictures import BLUE, GREEN, RED, WHITE, encoded, noise, same
from PIL import Image

from pyvllama.errors import ImageError
from pyvllama.image import load_image


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(orientation, fmt):
    """A camera stores the upright picture turned, and says how to set it upright."""
    quarters = np.zeros((32, 48, 3), dtype=np.uint8)  # upright: red left above, blue right above, green below
    quarters[:16, :24], quarters[:16, 24:], quarters[16:] = RED, BLUE, (0, 255, 0)
    upright = Image.fromarray(quarters)
    T = Image.Transpose
    stored = {1: None, 2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM, 5: T.TRANSPOSE, 6: T.ROTATE_90,
              7: T.TRANSVERSE, 8: T.ROTATE_270}[orientation]  # fmt: skip
    turned = upright if stored is None else upright.transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}}[fmt]
    got = load_image(encoded(turned, fmt, exif=exif, **options))
    assert got.size == (48, 32)
    for place, colour in (((6, 6), RED), ((40, 6), BLUE), ((20, 26), (0, 255, 0))):
        assert np.abs(np.array(got.getpixel(place)) - colour).max() < 30


@pytest.mark.parametrize("value", [0, 9, 255, 65535])
def test_a_nonsense_orientation_is_ignored(value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert same(load_image(encoded(noise(), exif=exif)), noise())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_picture():
    data = encoded(noise(32, 32), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\3")
    assert load_image(data).size == (32, 32)


def test_alpha_lies_over_white():
    for mode, pixel, expected in [
        ("RGBA", (0, 0, 0, 0), WHITE),
        ("RGBA", (255, 0, 0, 255), RED),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), WHITE),
        ("LA", (60, 255), (60, 60, 60)),
        ("La", (30, 128), (157, 157, 157)),
        ("RGBa", (0, 0, 0, 0), WHITE),
        ("RGBa", (128, 0, 0, 128), (255, 127, 127)),
        ("PA", (0, 0), WHITE),
    ]:
        got = load_image(Image.new(mode, (2, 2), pixel)).getpixel((1, 1))
        assert np.abs(np.array(got) - expected).max() <= 1, (mode, pixel, got)


def test_see_through_palette_and_key_colours_lie_over_white():
    palette = Image.new("P", (4, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255, 10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1, 2, 3])
    one = load_image(encoded(palette, transparency=1))
    assert [one.getpixel((x, 0)) for x in range(4)] == [RED, WHITE, (10, 20, 30), (40, 50, 60)]
    several = load_image(encoded(palette, transparency=bytes([255, 0, 0, 255])))
    assert [several.getpixel((x, 0)) for x in range(4)] == [RED, WHITE, WHITE, (40, 50, 60)]
    grey = Image.fromarray(np.array([[7, 8]], np.uint8))
    assert np.asarray(load_image(encoded(grey, transparency=7)))[0, :, 0].tolist() == [255, 8]
    rgb = Image.fromarray(np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8))
    assert np.asarray(load_image(encoded(rgb, transparency=(1, 2, 3)))).tolist() == [[[255] * 3, [1, 2, 4]]]
    deep = Image.fromarray(np.array([[1000, 1001]], np.uint16))
    assert np.asarray(load_image(encoded(deep, transparency=1000)))[0, :, 0].tolist() == [255, 4]
    gif = load_image(encoded(palette, "GIF", transparency=1))
    assert gif.getpixel((1, 0)) == WHITE and gif.getpixel((0, 0)) == RED


def test_sixteen_bits_become_eight_by_scale_not_by_clipping():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    got = np.asarray(load_image(encoded(Image.fromarray(ramp))))
    assert got[0, :, 0].tolist() == list(range(256))
    assert np.array_equal(got[..., 0], got[..., 2])
    big_endian = Image.frombytes("I;16B", (256, 1), ramp.astype(">u2").tobytes())
    assert np.asarray(load_image(big_endian))[0, :, 1].tolist() == list(range(256))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 32768, 65535]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 99.6, 255.0]], np.float32), [0, 100, 255]),
    ],
)
def test_integer_and_float_images(array, expected):
    assert np.asarray(load_image(Image.fromarray(array)))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("value", [-1.0, 256.0, float("nan"), float("inf")])
def test_numbers_that_are_no_brightness(value):
    with pytest.raises(ImageError, match="scale them"):
        load_image(Image.fromarray(np.array([[0, value]], np.float32)))
    if value == -1:
        with pytest.raises(ImageError, match="scale them"):
            load_image(Image.fromarray(np.array([[0, -1]], np.int32)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16",
                                  "I;16B", "LA", "La", "PA", "RGBA", "RGBa", "I;16L", "I;16N"])  # fmt: skip
def test_every_pillow_mode_becomes_rgb(mode):
    image = Image.new(mode, (3, 2))
    got = load_image(image)
    assert (got.mode, got.size) == ("RGB", (3, 2))


def test_one_bit_cmyk_and_friends_keep_their_colours():
    bits = np.array([[True, False, True]])
    assert np.asarray(load_image(encoded(Image.fromarray(bits))))[0, :, 0].tolist() == [255, 0, 255]
    for mode, error in [("CMYK", 0), ("YCbCr", 4), ("HSV", 4), ("LAB", 25), ("P", 40), ("RGBX", 0), ("RGBA", 0)]:
        for colour in (RED, GREEN, BLUE, WHITE, (0, 0, 0), (120, 60, 200)):
            other = Image.new("RGB", (2, 2), colour).convert(mode)
            assert np.abs(np.array(load_image(other).getpixel((0, 0))) - colour).max() <= error, (mode, colour)
    jpeg = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    assert np.abs(np.array(load_image(jpeg).getpixel((8, 8))) - RED).max() < 10


@pytest.mark.reference
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
def test_modes_equal_transformers(mode):
    from transformers.image_transforms import convert_to_rgb

    image = noise(40, 30).convert("RGBA")
    image.putalpha(Image.fromarray(np.random.default_rng(3).integers(0, 256, (30, 40), dtype=np.uint8)))
    image = image if mode == "RGBA" else image.convert("LA") if mode == "LA" else image.convert("RGB").convert(mode)
    assert np.array_equal(np.asarray(load_image(image)), convert_to_rgb(image, return_numpy=True))
