"""Estimates from headers, against what loading really takes."""

from pathlib import Path

import pytest

import pyvllama
from pyvllama.errors import ConfigError, FormatError
from pyvllama.locate import pocket_pair
from pyvllama.memory_need import Sizes, advice, available_memory, memory_need, read_sizes
from pyvllama.types import Pair

GIB = 1 << 30
# As the 11B model's headers say, Q4_K_M and Q8_0.
BIG = Sizes(
    weights=(4_913_000_000, 2_070_000_000), n_layer=32, kv_row=2048, n_vocab=128264, n_embd=4096,
    cross_row=8 * 2048, image_tokens=4 * 1601, tower_row=8 * 1280 + 2 * 5120 + 6 * 1280 + 4096,
)  # fmt: skip


def test_sizes_are_those_of_the_loaded_model():
    sizes = read_sizes(pocket_pair())
    with pyvllama.load(n_ctx=256, n_threads=1) as llm:
        model = llm.model
        assert sizes.n_layer == model.hparams["text_n_layer_self"]
        assert sizes.kv_row == sum(model.kv_row_elements)
        positions, tiles, row = model.image_shape
        assert sizes.image_tokens == positions * tiles
        assert sizes.cross_row == 2 * row * len(model.hparams["cross_attention_layers"])
        assert (sizes.n_embd, sizes.n_vocab) == (model.n_embd, model.tokenizer.n_tokens)
        assert sum(sizes.weights) <= sum(p.stat().st_size for p in (model.text_path, model.mmproj_path))
        picture = memory_need(sizes, image_cache_bytes=0).parts["pictures (one, or the cache)"]
        from PIL import Image

        states, _, _ = model.mmproj.encode(*whole_picture(model, Image))
        assert states.n_bytes <= picture * 1.02


def whole_picture(model, image):
    """A picture that fills all tiles."""
    from pyvllama.image.tiling import preprocess

    size = 2 * model.preprocessor.tile_size
    tiles = preprocess(image.new("RGB", (size, size)), model.preprocessor)
    return tiles.pixel_values, tiles.aspect_ratio_id


def test_the_context():
    """llama.cpp's own figures for Llama 3.1 8B: 128 KiB a position in F16."""
    need = memory_need(BIG, n_ctx=8192)
    assert need.parts["context of 8192 (f16)"] == 8192 * 128 * 1024
    assert memory_need(BIG, n_ctx=8192, kv_type="q8_0").parts["context of 8192 (q8_0)"] == 8192 * 68 * 1024
    assert memory_need(BIG, n_ctx=8000).parts["context of 8000 (f16)"] == 8192 * 128 * 1024, "in steps of 256"


def test_the_total():
    need = memory_need(BIG)
    assert 8 * GIB < need.total < 11 * GIB
    assert need.total >= sum(need.parts.values())
    assert memory_need(BIG, n_ctx=32768).total > need.total


@pytest.mark.parametrize(
    ("n_ctx", "available", "expected"),
    [
        (4096, 16 * GIB, []),
        (32768, 12 * GIB, ["--kv-type q8_0"]),
        (131072, 16 * GIB, ["--ctx-size"]),
        (131072, int(8.95 * GIB), ["--ctx-size", "--kv-type"]),
        (4096, 4 * GIB, []),
    ],
)
def test_advice(n_ctx, available, expected):
    need = memory_need(BIG, n_ctx=n_ctx)
    options = advice(BIG, need, available)
    assert [option.split()[0] for option in options] == [word.split()[0] for word in expected]
    if options:
        named = dict(option.split() for option in options)
        after = memory_need(
            BIG, n_ctx=int(named.get("--ctx-size", n_ctx)), kv_type=named.get("--kv-type", need.kv_type)
        )
        assert after.total <= available, "what is advised fits"


def test_advice_changes_both_where_one_is_not_enough():
    tight = memory_need(BIG, n_ctx=1024, kv_type="q8_0").total
    need = memory_need(BIG, n_ctx=131072)
    assert advice(BIG, need, tight) == ["--ctx-size 1024", "--kv-type q8_0"]
    assert advice(BIG, need, tight - 1) == []


def test_what_is_refused(tmp_path):
    pair = pocket_pair()
    with pytest.raises(FormatError, match="mmproj"):
        read_sizes(Pair(pair.mmproj, pair.mmproj))
    with pytest.raises(FormatError, match="no mmproj file"):
        read_sizes(Pair(pair.text, pair.text))
    with pytest.raises(ConfigError, match="kv_type"):
        memory_need(BIG, kv_type="q4_0")


def test_available_memory(monkeypatch, tmp_path):
    assert available_memory() is None or available_memory() > 0
    (tmp_path / "max").write_text("1000\n")
    (tmp_path / "current").write_text("400\n")
    monkeypatch.setattr("pyvllama.memory_need._CGROUPS", ((tmp_path / "max", tmp_path / "current"),))
    if Path("/proc/meminfo").exists():
        assert available_memory() == 600, "a container's limit counts"
    (tmp_path / "max").write_text("max\n")
    assert available_memory() != 600
