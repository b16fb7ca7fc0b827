"""The predicted need for memory, part by part, against what is really allocated; and a whole chat."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from resident import needs_smaps

import pyvllama
from pyvllama import memory_need as module
from pyvllama._runtime import native
from pyvllama.errors import ConfigError, FormatError
from pyvllama.gguf_file import GGUFFile
from pyvllama.image.tiling import preprocess
from pyvllama.locate import pocket_pair
from pyvllama.memory_need import MemorySettings, Sizes, advice, available_memory, memory_need, read_sizes
from pyvllama.types import Pair

GIB = 1 << 30
TEXT, PICTURE = "computing text", "encoding a picture"
# As the 11B model's headers say, Q4_K_M and Q8_0, where q4_K is repacked.
BIG = Sizes(
    text_file=4_912_943_616, text_copied=3_359_637_504, text_mapped=1_257_785_856,
    mmproj_copied=814_608_384, mmproj_mapped=192_946_176, tower=262_005_696,
    n_layer=32, kv_row=2048, n_tokens=128264, n_embd=4096, n_ff=14336, n_cross=8, cross_row=1024, head=128,
    image_tokens=4 * 1601, image_values=4 * 3 * 560 * 560,
)  # fmt: skip


def whole_picture(model):
    """A picture that fills all tiles."""
    size = 2 * model.preprocessor.tile_size
    tiles = preprocess(Image.new("RGB", (size, size)), model.preprocessor)
    return tiles.pixel_values, tiles.aspect_ratio_id


@pytest.fixture(scope="module")
def sizes():
    return read_sizes(pocket_pair())


def test_sizes_are_those_of_the_loaded_model(sizes):
    text = GGUFFile(pocket_pair().text)
    embedding = text.tensors["token_embd.weight"].n_bytes
    assert "output.weight" in text.tensors
    assert sizes.text_copied + sizes.text_mapped + embedding == sizes.text_file
    with pyvllama.load(n_ctx=256, n_threads=1) as llm:
        model = llm.model
        assert sizes.n_layer == model.hparams["text_n_layer_self"]
        assert sizes.kv_row == sum(model.kv_row_elements)
        positions, tiles, row = model.image_shape
        assert (sizes.image_tokens, sizes.cross_row) == (positions * tiles, row)
        assert sizes.n_cross == len(model.hparams["cross_attention_layers"])
        assert (sizes.n_embd, sizes.n_tokens) == (model.n_embd, model.tokenizer.n_tokens)
        assert sizes.head == model.n_embd // model.hparams["text_n_head"]


@pytest.mark.parametrize(("cross_kv_type", "repack"), [("f16", True), ("q8_0", True), ("f32", True), ("f16", False)])
def test_the_parts_of_a_picture(cross_kv_type, repack):
    sizes = read_sizes(pocket_pair(), repack=repack)
    with pyvllama.load(n_ctx=256, n_threads=1, cross_kv_type=cross_kv_type, repack=repack) as llm:
        mmproj = llm.model.mmproj
        pixels, ratio_id = whole_picture(llm.model)
        states, _, timings = mmproj.encode(pixels, ratio_id)
        assert sizes.tower == timings["compute_bytes"], "the buffer is planned as it is allocated"
        need = memory_need(sizes, MemorySettings(cross_kv_type=cross_kv_type))
        assert states.n_bytes == pytest.approx(need.picture, abs=64 * 2 * sizes.n_cross), "but for alignment"
        assert pixels.size == sizes.image_values
        plan = mmproj.plan(repack=repack)
        assert plan["copied_cross"] + plan["copied_tower"] == sizes.mmproj_copied
        assert sizes.mmproj_copied == pytest.approx(mmproj.device_bytes, rel=0.01), "what loading copies"
        assert plan["mapped_cross"] + plan["mapped_tower"] == mmproj.mapped_bytes


@pytest.mark.parametrize("kernels", ["ggml", "baseline"])
def test_the_plan_is_that_of_the_kernels_in_use(monkeypatch, kernels):
    monkeypatch.setenv("PYVLLAMA_CPU_KERNELS", kernels)
    sizes = read_sizes(pocket_pair())
    with pyvllama.load(n_ctx=256, n_threads=1) as llm:
        mmproj = llm.model.mmproj
        assert mmproj.kernels == kernels
        assert mmproj.encode(*whole_picture(llm.model))[2]["compute_bytes"] == sizes.tower
        plan = mmproj.plan()
        assert plan["mapped_cross"] + plan["mapped_tower"] == mmproj.mapped_bytes


def test_a_mapped_mmproj_plans_as_a_repacked_one():
    plans = [native.Mmproj(pocket_pair().mmproj, repack=repack).plan() for repack in (False, True)]
    assert plans[0] == plans[1]
    assert sum(plans[0].values()) - plans[0]["compute"] <= pocket_pair().mmproj.stat().st_size * 1.1


def test_without_copies_the_weights_are_read_in_the_files(sizes):
    """All of the mmproj but its patch embedding, which is copied as F32."""
    mapped = read_sizes(pocket_pair(), repack=False)
    assert mapped.text_copied == 0 and mapped.text_mapped == sizes.text_copied + sizes.text_mapped
    copied = native.Mmproj(pocket_pair().mmproj).plan()
    assert mapped.mmproj_mapped == copied["copied_cross"] + copied["mapped_cross"]
    assert 0 < mapped.mmproj_copied <= copied["copied_tower"]


def test_what_is_repacked():
    assert not native.cpu_repacks("f32", 256, 256)
    with pytest.raises(ValueError, match="q9"):
        native.cpu_repacks("q9", 256, 256)


def test_the_context():
    """llama.cpp's own figures for Llama 3.1 8B: 128 KiB a position in F16."""
    parts = memory_need(BIG, MemorySettings(8192)).phases[TEXT]
    assert parts["context of 8192 (f16)"] == 8192 * 128 * 1024
    assert memory_need(BIG, MemorySettings(8192, "q8_0")).parts["context of 8192 (q8_0)"] == 8192 * 68 * 1024
    assert memory_need(BIG, MemorySettings(8000)).parts["context of 8000 (f16)"] == 8192 * 128 * 1024, "in steps of 256"


def test_the_phases():
    need = memory_need(BIG)
    assert need.peak == TEXT and need.total == sum(need.phases[TEXT].values())
    assert need.picture == 8 * 2 * 1024 * 6404 * 2
    small = replace(BIG, text_copied=1 << 20, text_mapped=1 << 20, text_file=2 << 20, n_cross=1, mmproj_mapped=0)
    assert memory_need(small, MemorySettings(n_ctx=256)).peak == PICTURE, "the tower takes more than a small text model"
    wide = memory_need(replace(BIG, tower=0))
    assert wide.phases[PICTURE]["computing"] > need.picture, "the states become keys and values"
    assert memory_need(BIG, MemorySettings(32768)).total > need.total
    assert need.fits(int(1.06 * need.total)) and not need.fits(need.total)


@pytest.mark.parametrize(
    ("n_ctx", "available", "expected"),
    [
        (4096, 16 * GIB, []),
        (32768, 9 * GIB, ["--kv-type"]),
        (131072, 16 * GIB, ["--kv-type"]),
        (131072, 9 * GIB, ["--ctx-size"]),
        (4096, 4 * GIB, []),
    ],
)
def test_advice(n_ctx, available, expected):
    need = memory_need(BIG, MemorySettings(n_ctx))
    options = advice(BIG, need, available)
    assert [option.split()[0] for option in options] == expected
    if options:
        named = dict(option.split() for option in options)
        after = MemorySettings(
            int(named.get("--ctx-size", n_ctx)), named.get("--kv-type", "f16"), named.get("--cross-kv-type", "f16")
        )
        assert memory_need(BIG, after).fits(available), "what is advised fits"


def test_advice_changes_all_where_one_is_not_enough():
    tight = -(-memory_need(BIG, MemorySettings(1024, "q8_0", "q8_0")).total * 105 // 100)
    need = memory_need(BIG, MemorySettings(131072))
    assert advice(BIG, need, tight) == ["--ctx-size 1024", "--kv-type q8_0", "--cross-kv-type q8_0"]
    assert advice(BIG, need, tight - 2) == []
    both = -(-memory_need(BIG, MemorySettings(32768, "q8_0", "q8_0")).total * 105 // 100)
    assert advice(BIG, memory_need(BIG, MemorySettings(32768)), both) == ["--kv-type q8_0", "--cross-kv-type q8_0"]
    odd = replace(BIG, head=80)
    assert advice(odd, need, tight) == [], "q8_0 takes 32 numbers at a time"


def test_advice_for_the_longest_context_there_is(monkeypatch):
    """The longest of two million lengths is not found by trying them all."""
    n_ctx = 2**31 - 1
    need = memory_need(BIG, MemorySettings(n_ctx))
    tried = []
    monkeypatch.setattr(module, "memory_need", lambda *a: tried.append(a) or memory_need(*a))
    (option,) = advice(BIG, need, 16 * GIB)
    name, value = option.split()
    assert name == "--ctx-size" and len(tried) < 100
    longest = int(value)
    assert memory_need(BIG, MemorySettings(longest)).fits(16 * GIB)
    assert not memory_need(BIG, MemorySettings(longest + 1024)).fits(16 * GIB)


def test_what_is_refused():
    pair = pocket_pair()
    with pytest.raises(FormatError, match="mmproj"):
        read_sizes(Pair(pair.mmproj, pair.mmproj))
    with pytest.raises(FormatError, match="no mmproj file"):
        read_sizes(Pair(pair.text, pair.text))
    with pytest.raises(ConfigError, match="kv_type"):
        memory_need(BIG, MemorySettings(kv_type="q4_0"))
    with pytest.raises(ConfigError, match="cross_kv_type"):
        memory_need(BIG, MemorySettings(cross_kv_type="q4_0"))


def test_available_memory(monkeypatch, tmp_path):
    assert available_memory() is None or available_memory() > 0
    (tmp_path / "max").write_text("1000\n")
    (tmp_path / "current").write_text("400\n")
    monkeypatch.setattr("pyvllama.memory_need._CGROUPS", ((tmp_path / "max", tmp_path / "current"),))
    if Path("/proc/meminfo").exists():
        assert available_memory() == 600, "a container's limit counts"
    (tmp_path / "max").write_text("max\n")
    assert available_memory() != 600


@needs_smaps
@pytest.mark.parametrize(
    "options", [{}, {"n_ctx": 8192, "kv_type": "f32"}, {"cross_kv_type": "q8_0", "kv_type": "q8_0"}, {"repack": False}]
)
def test_a_whole_chat(options):
    """5 %, and 16 MB: the pocket model is small beside Python and its packages, which differ between systems."""
    code = """
import json, sys
import numpy as np
import pyvllama
with pyvllama.load(n_threads=1, **json.loads(sys.argv[1])) as llm:
    size = 2 * llm.model.preprocessor.tile_size
    picture = np.zeros((size, size, 3), np.uint8)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "word " * 600}]
    llm.chat([{"role": "user", "content": content}], max_tokens=2)
(peak,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")]
print(1024 * int(peak))
"""
    options = dict(options)
    command = [sys.executable, "-c", code, json.dumps(options)]
    run = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    sizes = read_sizes(pocket_pair(), repack=options.pop("repack", True))
    predicted = memory_need(sizes, MemorySettings(**options)).total
    assert predicted == pytest.approx(int(run.stdout), rel=0.05, abs=16e6 + 0.05 * predicted)
