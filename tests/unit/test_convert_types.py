"""Every text type: what conversion and `quantize` make equals, byte for byte, what llama.cpp's quantizer makes."""

import ctypes

import factories
import numpy as np
import pytest

from pyvllama import quantize
from pyvllama._runtime import llama_cpp, set_fields
from pyvllama.conversion import convert
from pyvllama.conversion.imatrix_file import ColumnSums, ImportanceMatrix
from pyvllama.conversion.policy import TEXT_TYPES, FileType, Layer, Role, matrix_type, needs_importance
from pyvllama.errors import ConfigError
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


def mostly_empty(name, values):
    """Seven rows of eight of a matrix zero, at random places: a quantizer searches long for the best of the others."""
    if values.ndim == 2 and ".layers." in name:
        values[factories.random_state("empty", name).permutation(len(values))[len(values) // 8 :]] = 0
    return values


@pytest.fixture(scope="module")
def f32(module_path):
    """f32(size) -> the pair of a random model with those sizes, in F32."""
    made = {}

    def make(size):
        if size not in made:
            where = module_path / size
            checkpoint = factories.write_checkpoint(
                where / "model", "small", edit=mostly_empty, **SIZES[size], **LAYERS
            )
            made[size] = checkpoint, convert(checkpoint, where / "f32", text_type="f32", mmproj_type="f32")
        return made[size]

    return make


def llama_quantize(source, target, chosen: FileType, importance=None):
    """llama.cpp's own quantizer; `importance`: tensor name -> float32 [n_per_row]."""
    params = llama_cpp.llama_model_quantize_default_params()
    set_fields(params, ftype=chosen.number, nthread=2)
    if importance is not None:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), len(values)
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        set_fields(params, imatrix=ctypes.cast(entries, type(params.imatrix)))
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


def random_importance(text, path):
    """An importance matrix for all matrices of a text model but output and embedding, in a file and as values."""
    rng = np.random.default_rng(3)
    entries = {
        name: ColumnSums(rng.gamma(0.5, size=t.shape[-1]) * 100, 100)
        for name, t in GGUFFile(text).tensors.items()
        if len(t.shape) == 2 and name.startswith("blk.")
    }
    ImportanceMatrix(entries, ("random",)).write(path)
    matrix = ImportanceMatrix.read(path)
    return {name: np.ascontiguousarray(matrix.values(name)) for name in entries}


@pytest.mark.parametrize("size", ["grouped", "plain"])
@pytest.mark.parametrize("name", [*(n for n in TEXT_TYPES if n not in BLIND and n != "f32"), "q4_0", "iq4_xs", "q2_k"])
def test_types_with_importance_equal_llama_cpps(name, size, f32, tmp_path):
    checkpoint, pair = f32(size)
    importance = random_importance(pair.text, tmp_path / "imatrix.gguf")
    theirs = llama_quantize(pair.text, tmp_path / "theirs.gguf", TEXT_TYPES[name], importance)
    with pytest.raises(ConfigError, match="needs an importance matrix"):  # of the cross-attention layers there is none
        convert(checkpoint, tmp_path / "never", text_type="iq2_xs", imatrix=tmp_path / "imatrix.gguf")
    ours = convert(checkpoint, tmp_path, text_type=name, cross_type="q4_k_m", imatrix=tmp_path / "imatrix.gguf")
    file = GGUFFile(ours.text)
    noted = {key: file.metadata.pop(key) for key in [*file.metadata] if key.startswith("quantize.imatrix.")}
    assert noted == {"quantize.imatrix.file": "imatrix.gguf", "quantize.imatrix.entries_count": len(importance)}
    assert_same(file, theirs)


def test_an_importance_matrix_of_another_model(f32, tmp_path):
    checkpoint, _pair = f32("plain")
    random_importance(f32("grouped")[1].text, tmp_path / "imatrix.gguf")
    with pytest.raises(ConfigError, match="made with another model"):
        convert(checkpoint, tmp_path / "out", text_type="q4_k_m", imatrix=tmp_path / "imatrix.gguf")
