"""Every text type: what conversion and `quantize` make equals, byte for byte, what llama.cpp's quantizer makes."""

import ctypes

import factories
import numpy as np
import pytest

from pyvllama import quantize
from pyvllama._runtime import llama_cpp
from pyvllama.conversion import convert
from pyvllama.conversion.policy import TEXT_TYPES, FileType, Layer, Role, matrix_type, needs_importance
from pyvllama.gguf_file import GGUFFile

LAYERS = {"num_hidden_layers": 17, "cross_attention_layers": (9,)}  # 16 self layers: eighths and sixteenths differ
GROUPED = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 1}
PLAIN = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}
ODD_ROWS = {"hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 1}
SIZES = {"grouped": GROUPED, "plain": PLAIN, "odd_rows": ODD_ROWS}


def blind(name):
    """Whether a type is made without an importance matrix."""
    chosen = TEXT_TYPES[name]
    layers = [Layer(i, 16, n_gqa=g) for i in range(16) for g in (1, 4)]
    return not any(needs_importance(chosen, role, matrix_type(chosen, role, x, 256)) for role in Role for x in layers)


BLIND = [name for name in TEXT_TYPES if name != "f32" and blind(name)]


@pytest.fixture(scope="module")
def f32(tmp_path_factory):
    """f32(size) -> the pair of a random model with those sizes, in F32."""
    made = {}

    def make(size):
        if size not in made:
            where = tmp_path_factory.mktemp(size)
            checkpoint = factories.write_checkpoint(where / "model", "small", **SIZES[size], **LAYERS)
            made[size] = checkpoint, convert(checkpoint, where / "f32", text_type="f32", mmproj_type="f32")
        return made[size]

    return make


def llama_quantize(source, target, chosen: FileType):
    """llama.cpp's own quantizer."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = chosen.number, 2
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0
    return GGUFFile(target)


def assert_same(ours, theirs):
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, info in ours.tensors.items():
        assert info.type == theirs.tensors[name].type, name
        assert np.array_equal(ours.raw(name), theirs.raw(name)), name
    assert ours.metadata == theirs.metadata


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", BLIND)
def test_types_without_importance_equal_llama_cpps(name, size, f32, tmp_path):
    checkpoint, pair = f32(size)
    theirs = llama_quantize(pair.text, tmp_path / "theirs.gguf", TEXT_TYPES[name])
    assert_same(GGUFFile(convert(checkpoint, tmp_path / "ours", text_type=name).text), theirs)
    if size == "grouped":
        (requantized,) = quantize([pair.text], tmp_path / "again", text_type=name)
        assert_same(GGUFFile(requantized), theirs)
