"""GGUF to GGUF of another type, both files; overrides, and what is refused."""

import shutil

import numpy as np
import pytest

from pyvllama import quantize
from pyvllama.conversion import convert
from pyvllama.errors import ConfigError, FormatError, ModelNotFound
from pyvllama.gguf_file import GGUFFile


def types(path):
    return {name: t.type for name, t in GGUFFile(path).tensors.items()}


@pytest.mark.parametrize(
    "options",
    [
        {"text_type": "q4_k_m", "mmproj_type": "q8_0"},
        {"text_type": "q3_k_l", "mmproj_type": "q5_k", "cross_type": "q6_k"},
        {"text_type": "f16", "mmproj_type": "f16"},
        {"text_type": "q5_k_m", "tensor_types": [r"xattn\.blk\.1\..*=bf16", "attn_v=q8_0"]},
    ],
)
def test_quantizing_equals_converting(options, pocket_pairs, pocket_checkpoint, tmp_path):
    """From F32 it makes no difference on which way; the mmproj's tables stay as they are in the source."""
    source = pocket_pairs("f32", "bf16", cross_type="f32")
    mmproj = source.mmproj if options.get("mmproj_type") != "f16" else pocket_pairs("f32", "f32").mmproj
    direct = convert(pocket_checkpoint, tmp_path / "direct", **options)
    text, vision = quantize([source.text, mmproj], tmp_path / "again", **options)
    assert text.name == direct.text.name
    assert vision.name == direct.mmproj.name
    assert text.read_bytes() == direct.text.read_bytes()
    ours, theirs = GGUFFile(vision), GGUFFile(direct.mmproj)
    assert ours.metadata == theirs.metadata
    for name, t in theirs.tensors.items():
        if ours.tensors[name].type != t.type:  # the tables of an F32 file
            assert (ours.tensors[name].type, t.type) == ("f32", "bf16"), name
        assert np.array_equal(ours.f32(name), theirs.f32(name)), name


def test_overrides_decide_before_the_mixture(pocket_checkpoint, tmp_path):
    overrides = ["xattn.*ffn=q8_0", "xattn=q5_K", r"^v\.blk\.0\.=f16", "output=q4_k"]
    pair = convert(pocket_checkpoint, tmp_path, text_type="q4_k_m", mmproj_type="q8_0", tensor_types=overrides)
    text, mmproj = types(pair.text), types(pair.mmproj)
    assert mmproj["xattn.blk.1.ffn_up.weight"] == "q8_0"
    assert mmproj["xattn.blk.1.attn_q.weight"] == "q5_K"
    assert mmproj["v.blk.0.attn_q.weight"] == "f16"
    assert mmproj["v.blk.1.attn_q.weight"] == "q8_0"
    assert text["output.weight"] == text["blk.0.attn_output.weight"] == "q4_K"
    assert text["blk.0.attn_norm.weight"] == text["output_norm.weight"] == "f32"
    assert mmproj["v.patch_embd.weight"] == "bf16"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("q8_0", "expected REGEX=TYPE"),
        ("=q8_0", "expected REGEX=TYPE"),
        ("xattn=q9_0", "'q9_0' is no type; there are f32, f16"),
        ("xattn(=q8_0", "no regular expression"),
        ("xattention=q8_0", "matches no matrix"),
        ("norm=q8_0", "matches no matrix"),
    ],
)
def test_overrides_that_mean_nothing(override, message, tiny_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match=message):
        convert(tiny_checkpoint("small"), tmp_path / "out", tensor_types=[override])
    assert not (tmp_path / "out").exists()


def test_types_that_need_an_importance_matrix(pocket_pairs, pocket_checkpoint, tmp_path):
    for make in (
        lambda: convert(pocket_checkpoint, tmp_path / "out", text_type="iq2_m"),
        lambda: quantize([pocket_pairs("f32", "f32").text], tmp_path / "out", text_type="q2_k_s"),
    ):
        with pytest.raises(ConfigError, match=r"needs an importance matrix.*--imatrix"):
            make()
    assert not (tmp_path / "out").exists()


def test_what_is_quantized_already(pocket_pairs, tmp_path):
    pair = pocket_pairs("q8_0", "q8_0")
    with pytest.raises(ConfigError, match=r"q8_0 already.*--allow-requantize"):
        quantize([pair.text], tmp_path, text_type="q4_k_m")
    (path,) = quantize([pair.text], tmp_path, text_type="q4_k_m", allow_requantize=True)
    assert types(path)["blk.0.attn_q.weight"] == "q4_K"
    (same,) = quantize([pair.mmproj], tmp_path, mmproj_type="q8_0", cross_type="q8_0")  # nothing to do but copy
    assert same.read_bytes() == pair.mmproj.read_bytes()


def test_files_that_are_none(pocket_pairs, tmp_path):
    with pytest.raises(ModelNotFound, match="does not exist"):
        quantize([tmp_path / "nothing.gguf"], tmp_path)
    (tmp_path / "junk.gguf").write_bytes(b"junk" * 100)
    with pytest.raises(FormatError, match="no GGUF"):
        quantize([tmp_path / "junk.gguf"], tmp_path)
    pair = pocket_pairs("f32", "f32")
    copy = shutil.copy(pair.text, tmp_path / "pocket-vllama-Q8_0.gguf")
    with pytest.raises(ConfigError, match="the source itself"):
        quantize([copy], tmp_path, text_type="q8_0", overwrite=True)
    assert copy.read_bytes() == pair.text.read_bytes()
