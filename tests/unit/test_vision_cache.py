"""The image cache: keyed by pixels, bounded by bytes, and a stand-in for the encoder that counts."""

import numpy as np
import pytest
from pictures import encoded, noise
from PIL import Image

from pyvllama.config import PreprocessorConfig
from pyvllama.errors import Cancelled
from pyvllama.image.source import load_image
from pyvllama.vision_cache import VisionCache

N_BYTES = 1000


class States:
    n_bytes = N_BYTES


class CountingModel:
    """Stands for Model: `mmproj.encode` notes what it is given."""

    def __init__(self):
        self.preprocessor = PreprocessorConfig(
            tile_size=14,
            max_num_tiles=4,
            resample=2,
            rescale_factor=1 / 255,
            image_mean=(0.5, 0.5, 0.5),
            image_std=(0.25, 0.25, 0.25),
        )
        self.mmproj = self
        self.given = []
        self.fails = False

    def encode(self, pixel_values, aspect_ratio_id, *, progress=None):
        if self.fails or (progress is not None and progress(0.5) is False):
            raise Cancelled("stopped")
        self.given.append((pixel_values, aspect_ratio_id))
        return States(), None, {}


@pytest.fixture
def model():
    return CountingModel()


@pytest.fixture
def cache(model):
    return VisionCache(model, 3 * N_BYTES)


def test_the_second_time_costs_nothing(model, cache):
    first, second = cache.encode(noise()), cache.encode(noise())
    assert len(model.given) == 1
    assert second.states is first.states
    assert (first.cached, second.cached) == (False, True)
    assert first.encode_ms > 0
    assert second.encode_ms == 0


def test_the_encoder_gets_what_preprocessing_gives(model, cache):
    from pyvllama.image.tiling import preprocess

    cache.encode(noise(40, 20))
    tiles = preprocess(noise(40, 20), model.preprocessor)
    pixels, ratio_id = model.given[0]
    np.testing.assert_array_equal(pixels, tiles.pixel_values)
    assert ratio_id == tiles.aspect_ratio_id


def test_however_the_picture_comes_in(model, cache, tmp_path):
    picture = noise()
    (tmp_path / "a.png").write_bytes(encoded(picture))
    (tmp_path / "b.bmp").write_bytes(encoded(picture, "BMP"))
    for source in (picture, np.asarray(picture), tmp_path / "a.png", str(tmp_path / "b.bmp"), encoded(picture)):
        cache.encode(load_image(source))
    assert len(model.given) == 1


def test_one_pixel_makes_another_picture(model, cache):
    changed = noise()
    changed.putpixel((3, 2), tuple(255 - v for v in changed.getpixel((3, 2))))
    cache.encode(noise())
    assert not cache.encode(changed).cached


def test_the_same_bytes_in_another_shape_are_another_picture(model, cache):
    data = noise(6, 4).tobytes()
    for size in ((6, 4), (4, 6), (8, 3), (24, 1)):
        assert not cache.encode(Image.frombytes("RGB", size, data)).cached


def test_the_file_may_change_under_its_name(cache, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(noise(seed=1)))
    cache.encode(load_image(path))
    path.write_bytes(encoded(noise(seed=2)))
    assert not cache.encode(load_image(path)).cached


def kept(cache, n):
    """Which of the pictures 0 to n - 1 are there; without asking for one, which would count as use."""
    return [seed for seed in range(n) if cache.key(noise(seed=seed)) in cache._kept]


def test_the_least_recently_used_goes_first(cache):
    for seed in (0, 1, 2):
        cache.encode(noise(seed=seed))
    cache.encode(noise(seed=0))  # used again
    cache.encode(noise(seed=3))
    assert kept(cache, 4) == [0, 2, 3]
    cache.encode(noise(seed=1))
    assert kept(cache, 4) == [0, 1, 3]


@pytest.mark.parametrize(("max_bytes", "n_kept"), [(0, 0), (N_BYTES - 1, 0), (N_BYTES, 1), (2 * N_BYTES + 1, 2)])
def test_the_bound_is_in_bytes(model, max_bytes, n_kept):
    cache = VisionCache(model, max_bytes)
    for seed in range(4):
        assert isinstance(cache.encode(noise(seed=seed)).states, States)
        assert len(cache._kept) <= n_kept
    assert kept(cache, 4) == list(range(4 - n_kept, 4))


def test_clear(model, cache):
    cache.encode(noise())
    cache.clear()
    assert not cache.encode(noise()).cached


def test_nothing_is_kept_of_an_encoding_that_failed(model, cache):
    model.fails = True
    with pytest.raises(Cancelled):
        cache.encode(noise())
    model.fails = False
    assert not cache.encode(noise()).cached
    assert cache.encode(noise()).cached


def test_progress_reaches_the_encoder_and_can_stop_it(model, cache):
    seen = []
    cache.encode(noise(), seen.append)
    assert seen == [0.5]
    with pytest.raises(Cancelled):
        cache.encode(noise(seed=1), lambda fraction: False)
    cache.encode(noise(), seen.append)  # from the cache: nothing to tell
    assert seen == [0.5]
