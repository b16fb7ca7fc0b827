"""Preprocessing: the canvas rules, and equality with transformers bit for bit."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import noise
from PIL import Image, ImageOps

from pyvllama.config import PreprocessorConfig, aspect_ratios
from pyvllama.errors import ImageError
from pyvllama.image import load_image
from pyvllama.image.tiling import canvas_for, preprocess, size_on_canvas

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def config(*, tile_size=112, max_num_tiles=4, resample=2, rescale_factor=1 / 255, mean=MEAN, std=STD):
    return PreprocessorConfig(tile_size, max_num_tiles, resample, rescale_factor, mean, std)


EXTREME = [(1, 1), (1, 2), (2, 1), (1, 10_000), (10_000, 1), (1, 100_000), (100_000, 1), (3, 7000), (111, 113),
           (112, 112), (113, 112), (448, 112), (112, 448), (449, 112), (447, 113), (224, 224), (225, 224), (336, 112),
           (337, 111), (4000, 3000), (2000, 2000), (112, 1), (1, 112), (560, 560)]  # fmt: skip


def test_aspect_ratios_are_numbered_as_the_model_numbers_them():
    assert aspect_ratios(4) == ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1))
    assert aspect_ratios(1) == ((1, 1),)
    assert len(aspect_ratios(6)) == 14


@pytest.mark.parametrize(
    ("width", "height", "canvas", "size"),  # pictures as people take them, with tiles of 560 (canvas: rows, cols)
    [
        (560, 560, (1, 1), (560, 560)),
        (100, 100, (1, 1), (560, 560)),
        (1920, 1080, (2, 2), (630, 1120)),
        (1080, 1920, (2, 2), (1120, 630)),
        (4032, 3024, (2, 2), (840, 1120)),
        (3000, 500, (1, 4), (373, 2240)),
        (500, 3000, (4, 1), (2240, 373)),
        (1000, 500, (1, 2), (500, 1000)),
        (1, 10_000, (4, 1), (2240, 1)),
        (10_000, 1, (1, 4), (1, 2240)),
    ],
)
def test_canvas_and_size(width, height, canvas, size):
    assert canvas_for(height, width, max_num_tiles=4, tile_size=560) == canvas
    assert size_on_canvas(height, width, canvas=canvas, tile_size=560) == size


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 6), st.sampled_from([14, 112, 448, 560]))
def test_a_picture_always_fits_its_canvas(height, width, max_num_tiles, tile_size):
    rows, cols = canvas_for(height, width, max_num_tiles=max_num_tiles, tile_size=tile_size)
    assert 1 <= rows * cols <= max_num_tiles
    new_height, new_width = size_on_canvas(height, width, canvas=(rows, cols), tile_size=tile_size)
    assert 1 <= new_height <= rows * tile_size and 1 <= new_width <= cols * tile_size
    assert new_height == min(max(height, tile_size), rows * tile_size) or new_width == min(
        max(width, tile_size), cols * tile_size
    )


def test_tile_order_padding_and_normalisation():
    """A 2 x 2 canvas whose quarters have their own colours, one pixel column short of full width."""
    pixels = np.zeros((224, 223, 3), dtype=np.uint8)
    for k, (y, x) in enumerate([(0, 0), (0, 112), (112, 0), (112, 112)]):
        pixels[y : y + 112, x : x + 112] = (10 * k + 1, 10 * k + 2, 10 * k + 3)
    tiles = preprocess(Image.fromarray(pixels), config())
    assert (tiles.aspect_ratio, tiles.aspect_ratio_id, tiles.num_tiles) == ((2, 2), 6, 4)
    assert tiles.pixel_values.shape == (4, 3, 112, 112) and tiles.pixel_values.flags.c_contiguous
    back = tiles.pixel_values * np.array(STD)[:, None, None] * 255 + np.array(MEAN)[:, None, None] * 255
    for k in range(4):
        for channel in range(3):
            assert np.allclose(back[k, channel, :, :111], 10 * k + 1 + channel, atol=1e-3)
    assert np.allclose(back[1::2, :, :, 111], 0, atol=1e-3)  # black, not zero after normalising
    assert np.allclose(tiles.pixel_values[1, :, 0, 111], [-m / s for m, s in zip(MEAN, STD, strict=True)])


def test_values_are_exactly_the_float32_arithmetic():
    image = noise(112, 112)
    expected = (np.asarray(image).astype(np.float64) * (1 / 255)).astype(np.float32)
    expected = (expected - np.float32(MEAN)) / np.float32(STD)
    assert np.array_equal(preprocess(image, config()).pixel_values[0], expected.transpose(2, 0, 1))


def test_enlarging_and_shrinking_are_bilinear_and_smooth():
    ramp = Image.fromarray(np.broadcast_to(np.arange(0, 250, 25, dtype=np.uint8)[None, :, None], (10, 10, 3)).copy())
    row = preprocess(ramp, config()).pixel_values[0, 0, 50]
    assert (np.diff(row) >= 0).all() and row[0] < row[56] < row[-1]


def test_the_picture_is_not_changed():
    image = noise(300, 200)
    before = image.tobytes()
    preprocess(image, config())
    assert image.size == (300, 200) and image.tobytes() == before


@pytest.mark.parametrize("size", EXTREME)
def test_extreme_sizes_give_finite_tiles(size):
    tiles = preprocess(noise(*size), config())
    assert tiles.pixel_values.shape == (math.prod(tiles.aspect_ratio), 3, 112, 112)
    assert tiles.aspect_ratio == aspect_ratios(4)[tiles.aspect_ratio_id - 1]
    assert np.isfinite(tiles.pixel_values).all()


@pytest.mark.parametrize("image", [Image.new("RGBA", (2, 2)), Image.new("L", (2, 2)), Image.new("RGB", (0, 5))])
def test_what_is_no_rgb_picture_is_refused(image):
    with pytest.raises(ImageError, match=r"load_image|no pixels"):
        preprocess(image, config())


def assert_equals_transformers(image, cfg):
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    processor = MllamaImageProcessorPil(
        size={"height": cfg.tile_size, "width": cfg.tile_size}, max_image_tiles=cfg.max_num_tiles,
        resample=cfg.resample, rescale_factor=cfg.rescale_factor,
        image_mean=list(cfg.image_mean), image_std=list(cfg.image_std),
    )  # fmt: skip
    theirs = processor.preprocess([[image]], return_tensors="np")
    ours = preprocess(image, cfg)
    assert theirs["num_tiles"] == [[ours.num_tiles]]
    assert theirs["aspect_ratio_ids"].tolist() == [[ours.aspect_ratio_id]]
    assert theirs["aspect_ratio_mask"].sum() == ours.num_tiles
    assert theirs["pixel_values"].dtype == ours.pixel_values.dtype
    assert np.array_equal(theirs["pixel_values"][0, 0, : ours.num_tiles], ours.pixel_values)
    assert not theirs["pixel_values"][0, 0, ours.num_tiles :].any()


@pytest.mark.reference
@pytest.mark.parametrize("size", EXTREME)
def test_extreme_sizes_equal_transformers(size):
    assert_equals_transformers(noise(*size), config())


@pytest.mark.reference
def test_hundreds_of_sizes_equal_transformers():
    rng = random.Random(0)
    for i in range(300):
        width, height = (round(math.exp(rng.uniform(0, math.log(1200)))) for _ in range(2))
        assert_equals_transformers(noise(width, height, i), config())


@pytest.mark.reference
def test_every_size_around_a_canvas_edge_equals_transformers():
    """Small tiles, so that all sizes up to beyond the largest canvas can be tried."""
    cfg = config(tile_size=14)
    for width in range(1, 60, 2):
        for height in range(1, 60, 3):
            assert_equals_transformers(noise(width, height), cfg)


@pytest.mark.reference
@pytest.mark.parametrize(
    "cfg",
    [config(tile_size=560), config(tile_size=448), config(max_num_tiles=1), config(max_num_tiles=6, tile_size=28),
     config(resample=3), config(resample=1), config(resample=0), config(resample=4), config(resample=5),
     config(rescale_factor=0.00392156862745098), config(mean=(0.5, 0.5, 0.5), std=(0.5, 0.25, 0.125)),
     config(mean=tuple(map(float, np.float32(MEAN))), std=tuple(map(float, np.float32(STD))))],
)  # fmt: skip
def test_other_settings_equal_transformers(cfg):
    for size in [(640, 480), (30, 700), (1500, 200), (5, 5)]:
        assert_equals_transformers(noise(*size), cfg)


@pytest.mark.reference
@settings(deadline=None, max_examples=300)
@given(st.integers(1, 10**7), st.integers(1, 10**7), st.integers(1, 8), st.sampled_from([1, 14, 112, 448, 560]))
def test_canvas_rules_equal_transformers_for_any_numbers(height, width, max_num_tiles, tile_size):
    from transformers.models.mllama import image_processing_pil_mllama as hf

    theirs = hf.get_optimal_tiled_canvas(height, width, max_num_tiles, tile_size)
    canvas = canvas_for(height, width, max_num_tiles=max_num_tiles, tile_size=tile_size)
    assert tuple(int(edge) for edge in theirs) == (canvas[0] * tile_size, canvas[1] * tile_size)
    assert hf.get_image_size_fit_to_canvas(height, width, *theirs, tile_size) == size_on_canvas(
        height, width, canvas=canvas, tile_size=tile_size
    )


@pytest.mark.reference
def test_sample_pictures_equal_transformers_from_file_to_tiles(samples, pocket_checkpoint):
    """Palette, alpha, CMYK, grey and turned pictures, from their files."""
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    processor = MllamaImageProcessorPil.from_pretrained(pocket_checkpoint)
    cfg = PreprocessorConfig.from_hf_json(json.loads((pocket_checkpoint / "preprocessor_config.json").read_text()))
    for sample in samples:
        with Image.open(sample["path"]) as image:
            theirs = processor.preprocess([[ImageOps.exif_transpose(image)]], return_tensors="np")
        ours = preprocess(load_image(sample["path"]), cfg)
        assert theirs["aspect_ratio_ids"].tolist() == [[ours.aspect_ratio_id]], sample["path"].name
        assert np.array_equal(theirs["pixel_values"][0, 0, : ours.num_tiles], ours.pixel_values), sample["path"].name
