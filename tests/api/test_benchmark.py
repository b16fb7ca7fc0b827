"""`benchmark`: which tests it runs, what it counts, and what it refuses."""

import itertools
import json

import pytest
from tiny_configs import CONFIGS

from pyvllama.benchmark import benchmark, peak_memory
from pyvllama.context import Context
from pyvllama.errors import Cancelled, ConfigError

QUICK = {"n_prompt": (8,), "n_gen": (3,), "n_tiles": (1, 2), "repetitions": 2, "n_threads": 1}


@pytest.fixture(scope="module")
def pair(tiny_pair):
    return tiny_pair("two_tiles")


@pytest.fixture(scope="module")
def result(pair):
    return benchmark(pair.text, pair.mmproj, **QUICK)


def test_tests_and_their_names(result):
    names = ["image 1 tile", "image 2 tiles", "pp8", "tg3", "pp8 @ 2 tiles", "tg3 @ 2 tiles"]
    assert [r.test for r in result.results] == names
    assert [(r.n_tiles, r.n_prompt, r.n_gen) for r in result.results] == [
        (1, 0, 0), (2, 0, 0), (0, 8, 0), (0, 0, 3), (2, 8, 0), (2, 0, 3),
    ]  # fmt: skip


def test_medians_and_rates(result):
    for r in result.results:
        assert len(r.samples_ms) == 2 and min(r.samples_ms) > 0
        assert r.median_ms == pytest.approx(sum(r.samples_ms) / 2)
        n = r.n_prompt + r.n_gen
        assert r.per_second == (pytest.approx(1000 * n / r.median_ms) if n else None)


def test_what_it_says_of_model_and_machine(result, pair):
    assert (result.text, result.mmproj) == (pair.text.name, pair.mmproj.name)
    assert result.model.startswith("llama") and result.mmproj_type == "f32" and result.backend == "CPU"
    assert 0 < result.text_bytes < pair.text.stat().st_size and 0 < result.mmproj_bytes < pair.mmproj.stat().st_size
    assert result.load_ms > 0 and result.machine["cpu"] and result.n_threads == 1
    assert result.kernels and result.kv_type == "f16"
    assert result.machine["cores"] >= 1 and result.machine["memory"] > result.peak_memory
    assert json.loads(json.dumps(result.as_dict()))["results"][2]["per_second"] == result.results[2].per_second


def test_rows_that_are_decoded(pair, monkeypatch):
    """Every token of a test with a picture sees it, those of the others see none; prompts in batches, answers not."""
    calls = []
    decode = Context.decode
    monkeypatch.setattr(Context, "decode", lambda self, rows, **k: calls.append(rows) or decode(self, rows, **k))
    benchmark(pair.text, pair.mmproj, **{**QUICK, "repetitions": 1})
    shapes = [(len(rows), {image.n_tokens for row in rows for image in row.images}) for rows in calls]
    n = 2 * CONFIGS["two_tiles"].n_positions  # image tokens of two tiles
    once = [(8, set()), *[(1, set())] * 3, (8, {n}), *[(1, {n})] * 3]
    assert shapes == [*once, *once]  # the first round warms up
    assert all(row.pos == i for rows in calls for i, row in enumerate(rows, rows[0].pos))


def test_a_test_is_left_out(pair):
    names = [r.test for r in benchmark(pair.text, pair.mmproj, **{**QUICK, "n_prompt": (0,), "n_tiles": ()}).results]
    assert names == ["tg3"]


def test_default_tiles_are_those_that_the_model_takes(pair):
    names = [r.test for r in benchmark(pair.text, pair.mmproj, **{**QUICK, "n_tiles": None}).results]
    assert names[:3] == ["image 1 tile", "image 2 tiles", "pp8"]  # no 4 tiles


def test_progress_counts_and_stops(pair):
    seen = []
    benchmark(pair.text, pair.mmproj, **QUICK, progress=lambda fraction, what: seen.append((fraction, what)))
    assert [f for f, _ in seen] == [i / 18 for i in range(18)]
    assert [what for _, what in itertools.islice(seen, 2)] == ["image 1 tile", "image 2 tiles"]
    with pytest.raises(Cancelled, match="stopped"):
        benchmark(pair.text, pair.mmproj, **QUICK, progress=lambda fraction, what: fraction < 0.2)


def test_a_model_of_a_shape_without_a_name(result):
    """llama.cpp calls these `?B`, which says nothing where results are posted."""
    assert "?" not in result.model and result.model.startswith("llama 0.0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetitions": 0}, "repetitions must be at least 1, not 0"),
        ({"n_gen": (3, -1)}, "numbers of tokens must be at least 0, not -1"),
        ({"n_gen": (0,), "n_prompt": (0, 0), "n_tiles": ()}, "there is nothing to measure"),
        ({"n_prompt": (131072,)}, "131072 tokens are too many: at most 131071 can be"),
        ({"n_tiles": (1, 3)}, "pictures of this model have 1, 2 tiles, not 3"),
        ({"n_threads": 0}, "n_threads must be between 1 and"),
        ({"cross_kv_type": "q9"}, "cross_kv_type must be one of"),
    ],
    ids=str,
)
def test_refusals(pair, options, message):
    with pytest.raises(ConfigError, match=message):
        benchmark(pair.text, pair.mmproj, **{**QUICK, **options})


def test_peak_memory_stays():
    before = peak_memory()
    assert before is not None
    block = bytearray(before + (64 << 20))  # more than was ever there
    block[::4096] = b"x" * len(block[::4096])
    grown = peak_memory()
    del block
    assert grown >= before + (60 << 20)
    assert peak_memory() == pytest.approx(grown, rel=0.01)  # the kernel counts pages in batches
