"""The image cache: keyed by pixels, bounded by bytes, and a stand-in for the encoder that counts."""

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pictures import encoded, noise
from PIL import Image

from pyvllama.config import PreprocessorConfig
from pyvllama.errors import BackendError, Cancelled
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
        self.device = "CPU"
        self.text_paths = []
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


# --- threads ---


class SlowModel(CountingModel):
    """Encodes as long as the test wants."""

    def __init__(self):
        super().__init__()
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)

    def encode(self, pixel_values, aspect_ratio_id, *, progress=None):
        if progress is not None:
            progress(0.25)
        self.begun.release()
        assert self.go_on.acquire(timeout=HANGS_S)
        return super().encode(pixel_values, aspect_ratio_id, progress=progress)


HANGS_S = 30


@pytest.fixture
def slow():
    return SlowModel()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(8) as pool:
        yield pool


def waiting(cache, n):
    """Until n threads wait for another one's encoding (they can be seen only by what they call)."""
    deadline = time.monotonic() + HANGS_S
    while len(cache.told) < n:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(cache, pool, **options):
    """A thread that asks for the picture; once it waits, it is noted in cache.told."""

    def tell(fraction):
        cache.told.add(threading.get_ident())

    return pool.submit(cache.encode, noise(), options.get("progress", tell))


@pytest.mark.parametrize("max_bytes", [0, 3 * N_BYTES])
def test_several_threads_and_one_encoding(slow, threads, max_bytes):
    cache = VisionCache(slow, max_bytes)
    cache.told = set()
    asked = [ask(cache, threads) for _ in range(5)]
    waiting(cache, 5)
    slow.go_on.release()
    got = [future.result(HANGS_S) for future in asked]
    assert len(slow.given) == 1
    assert sorted(encoded.cached for encoded in got) == [False] + [True] * 4
    assert len({id(encoded.states) for encoded in got}) == 1


def test_other_pictures_do_not_wait(slow, threads):
    cache = VisionCache(slow, 3 * N_BYTES)
    asked = [threads.submit(cache.encode, noise(seed=seed)) for seed in range(2)]
    for _ in asked:
        assert slow.begun.acquire(timeout=HANGS_S)  # both at the same time
    slow.go_on.release(2)
    assert not any(future.result(HANGS_S).cached for future in asked)


def test_when_the_encoding_fails_one_that_waits_takes_over(slow, threads):
    cache = VisionCache(slow, 3 * N_BYTES)
    cache.told = set()
    asked = [ask(cache, threads) for _ in range(3)]
    waiting(cache, 3)
    slow.fails = True
    slow.go_on.release()
    assert slow.begun.acquire(timeout=HANGS_S)
    assert slow.begun.acquire(timeout=HANGS_S)  # the second one
    slow.fails = False
    slow.go_on.release()
    errors = [future.exception(HANGS_S) for future in asked]
    assert sorted(type(e).__name__ for e in errors) == ["Cancelled", "NoneType", "NoneType"]
    assert len(slow.given) == 1


def test_one_that_waits_can_be_stopped_alone(slow, threads):
    cache = VisionCache(slow, 3 * N_BYTES)
    first = threads.submit(cache.encode, noise())
    assert slow.begun.acquire(timeout=HANGS_S)
    second = ask(cache, threads, progress=lambda fraction: False)
    with pytest.raises(Cancelled):
        second.result(HANGS_S)
    slow.go_on.release()
    assert not first.result(HANGS_S).cached


def test_asking_for_a_picture_while_encoding_it_is_an_error_and_no_deadlock(model, cache):
    with pytest.raises(BackendError, match="cannot encode it again"):
        cache.encode(noise(), lambda fraction: cache.encode(noise()))
    assert not cache.encode(noise()).cached


# --- put and key_of ---


def test_states_know_their_picture_as_long_as_they_live(model):
    cache = VisionCache(model, 0)
    states = cache.encode(noise()).states
    assert cache.key_of(states) == cache.key(noise())
    with pytest.raises(KeyError):
        cache.key_of(States())
    del states
    gc.collect()
    assert len(cache._keys) == 0


def test_what_is_put_is_found_and_does_not_replace(model, cache):
    mine = States()
    assert cache.put(cache.key(noise()), mine) is mine
    assert cache.encode(noise()).states is mine
    assert cache.put(cache.key(noise()), States()) is mine
    assert not model.given
