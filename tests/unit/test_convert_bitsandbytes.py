"""Checkpoints that bitsandbytes quantized: nf4, fp4 (double-quantized or not) and int8."""

import json

import bnb_quantizer
import factories
import numpy as np
import pytest
import raw_safetensors
from raw_safetensors import f32, plain

from pyvllama.conversion import convert
from pyvllama.conversion.bitsandbytes import CODES, dequantized
from pyvllama.conversion.checkpoint import Checkpoint
from pyvllama.conversion.safetensors_reader import read_safetensors
from pyvllama.conversion.source_tensor import from_f32, to_f32
from pyvllama.errors import CheckpointError
from pyvllama.gguf_file import GGUFFile

NAME = "model.language_model.layers.0.mlp.up_proj.weight"


def open_file(tmp_path, tensors):
    path = raw_safetensors.write(tmp_path / "model.safetensors", tensors)
    return dequantized({t.name: t for t in read_safetensors(path)})


def weights(shape, dtype="BF16", seed=0):
    return plain(np.random.RandomState(seed).standard_normal(shape).astype(np.float32) * 0.05, dtype)


@pytest.mark.parametrize("kind", CODES)
def test_code_tables_are_the_librarys(kind):
    assert np.array_equal(CODES[kind], np.array(bnb_quantizer.TABLES[kind], np.float32))


def test_fp4_table_as_the_library_prints_it():
    assert np.array_equal(CODES["fp4"].round(4), np.array(bnb_quantizer.FP4_ROUNDED, np.float32))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((40, 128), 64),
        ((300, 64), 64),  # more than one group of scales
        ((24, 96), 64),  # blocks reach over the ends of rows
        ((33, 37), 64),  # and rows begin within a byte
        ((7, 4096), 4096),
    ],
)
def test_four_bits(kind, nested, dtype, shape, block, tmp_path):
    weight = weights(shape, dtype)
    stored, expected = bnb_quantizer.four_bit(NAME, weight, kind, block=block, nested=nested)
    tensors = open_file(tmp_path, stored)
    assert list(tensors) == [NAME]
    tensor = tensors[NAME]
    assert (tensor.type, tensor.shape, tensor.n_rows, tensor.n_per_row) == (dtype.lower(), shape, *shape)
    n = shape[0]
    order = np.random.RandomState(1).permutation(n)
    for index in (np.arange(n), np.array([n - 1]), np.arange(3, 6), order, np.array([n - 1, 0, 0]), np.arange(n)[::-1]):
        rows = tensor.rows(index)
        assert rows.dtype == factories.STORED[dtype](expected).dtype
        assert np.array_equal(to_f32(rows), expected[index])
    error = np.abs(expected - f32(weight)).mean() / np.abs(f32(weight)).mean()
    assert error < 0.2  # four bits are four bits; packed the wrong way round it would be above 1


def test_codes_stored_as_another_type(tmp_path):
    """bnb_4bit_quant_storage, for FSDP."""
    stored, expected = bnb_quantizer.four_bit(NAME, weights((16, 128)), storage="BF16")
    assert np.array_equal(to_f32(open_file(tmp_path, stored)[NAME].rows(np.arange(16))), expected)


def test_int8(tmp_path):
    weight = weights((50, 96))
    stored, expected = bnb_quantizer.int8(NAME, weight)
    tensors = open_file(tmp_path, stored)
    assert list(tensors) == [NAME]
    assert (tensors[NAME].type, tensors[NAME].shape) == ("f32", (50, 96))
    for index in (np.arange(50), np.array([49, 0]), np.arange(50)[::-1]):
        assert np.array_equal(tensors[NAME].rows(index), expected[index])
    assert np.abs(expected - f32(weight)).max() < 0.002


def test_rounding_to_the_dtype():
    values = np.array([0, 1, -1, 1e-40, 1.00390625, 1.01171875, 3.4e38, np.inf, -np.inf, 65519, 65520], np.float32)
    assert np.array_equal(from_f32(values[:7], "bf16"), factories.to_bf16(values[:7]))
    assert to_f32(from_f32(values, "bf16"))[7:9].tolist() == [np.inf, -np.inf]
    assert to_f32(from_f32(values, "f16"))[-2:].tolist() == [65504, np.inf]
    every_nan = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], np.uint32).view(np.float32)
    for kind in ("f32", "f16", "bf16"):
        assert np.isnan(to_f32(from_f32(every_nan, kind))).all()


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_a_quantized_checkpoint_converts_to_its_values(kind, tmp_path, tiny_checkpoint):
    """Byte for byte what a checkpoint with the dequantized values gives; lm_head and norms as they were."""
    source = tiny_checkpoint("small", dtype="BF16", layout="transformers5")

    def quantize(tensors):
        result = dict(tensors)
        for name in bnb_quantizer.linear_weights(tensors):
            make = bnb_quantizer.int8 if kind == "int8" else bnb_quantizer.four_bit
            result |= make(name, tensors[name], *(() if kind == "int8" else (kind,)))[0]
        return result

    def values(tensors):
        result = dict(tensors)
        for name in bnb_quantizer.linear_weights(tensors):
            if kind == "int8":
                result[name] = plain(bnb_quantizer.int8(name, tensors[name])[1])
            else:
                result[name] = plain(bnb_quantizer.four_bit(name, tensors[name], kind)[1], "BF16")
        return result

    pairs = [
        convert(
            raw_safetensors.rewrite(source, tmp_path / what / "model", change),
            tmp_path / what / "out",
            text_type="q8_0",
            mmproj_type="f16",
        )
        for what, change in (("quantized", quantize), ("values", values))
    ]
    assert pairs[0].text.read_bytes() == pairs[1].text.read_bytes()
    assert pairs[0].mmproj.read_bytes() == pairs[1].mmproj.read_bytes()
    original = convert(source, tmp_path / "original", text_type="q8_0", mmproj_type="f16", name="model")
    a, b = GGUFFile(pairs[0].text), GGUFFile(original.text)
    assert np.array_equal(a.raw("output.weight"), b.raw("output.weight"))
    assert not np.array_equal(a.raw("blk.0.attn_q.weight"), b.raw("blk.0.attn_q.weight"))
    np.testing.assert_allclose(a.f32("blk.0.attn_q.weight"), b.f32("blk.0.attn_q.weight"), atol=0.07)


def test_memory_stays_at_the_rows_asked_for(tmp_path):
    import tracemalloc

    shape = (4096, 512)
    stored, _ = bnb_quantizer.four_bit(NAME, weights((64, 512)))
    n = shape[0] * shape[1]
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape)}
    stored = {
        NAME: ("U8", np.zeros((n // 2, 1), np.uint8)),
        f"{NAME}.absmax": ("F32", np.ones(n // 64, np.float32)),
        f"{NAME}.quant_state.bitsandbytes__nf4": ("U8", np.frombuffer(json.dumps(state).encode(), np.uint8)),
    }
    tensor = open_file(tmp_path, stored)[NAME]
    tracemalloc.start()
    tensor.rows(np.arange(100, 116))
    tensor.rows(np.array([0, 4095]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 16 * 512


def edited_state(stored, **changes):
    key = next(name for name in stored if "quant_state" in name)
    state = json.loads(stored[key][1].tobytes()) | changes
    return stored | {key: ("U8", np.frombuffer(json.dumps(state).encode(), np.uint8))}


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [16, 64]},
        {"shape": [-16, -128]},
        {"shape": [2**40, 2**40]},
        {"shape": None},
        {"shape": "16"},
        {"blocksize": 0},
        {"blocksize": 63},
        {"blocksize": "64"},
        {"blocksize": 64.0},
        {"blocksize": 128},
        {"dtype": "float64"},
        {"quant_type": "fp4"},
        {"nested_blocksize": 0},
        {"nested_blocksize": 1},
        {"nested_offset": None},
        {"nested_offset": "0"},
        {"nested_offset": 10**400},
        {"nested_offset": float("nan")},
        {"nested_dtype": "bfloat16"},
    ],
)
def test_damaged_quant_states(changes, tmp_path):
    stored, _ = bnb_quantizer.four_bit(NAME, weights((16, 128)))
    with pytest.raises(CheckpointError, match="up_proj"):
        open_file(tmp_path, edited_state(stored, **changes))


@pytest.mark.parametrize("part", ["", ".absmax", ".nested_absmax", ".nested_quant_map"])
def test_missing_parts(part, tmp_path):
    stored, _ = bnb_quantizer.four_bit(NAME, weights((16, 128)))
    del stored[NAME + part]
    with pytest.raises(CheckpointError, match="up_proj"):
        open_file(tmp_path, stored)


@pytest.mark.parametrize("text", [b"{", b"[]", b"\xff\xfe"])
def test_a_quant_state_that_is_no_json(text, tmp_path):
    stored, _ = bnb_quantizer.four_bit(NAME, weights((16, 128)))
    stored[f"{NAME}.quant_state.bitsandbytes__nf4"] = ("U8", np.frombuffer(text, np.uint8))
    with pytest.raises(CheckpointError, match=r"quant_state\.bitsandbytes__nf4"):
        open_file(tmp_path, stored)


def test_a_foreign_table_is_refused(tmp_path):
    stored, _ = bnb_quantizer.four_bit(NAME, weights((16, 128)))
    stored[f"{NAME}.quant_map"] = ("F32", np.linspace(-1, 1, 16, dtype=np.float32))
    with pytest.raises(CheckpointError, match="quant_map is not that of nf4"):
        open_file(tmp_path, stored)


def test_damaged_int8(tmp_path):
    stored, _ = bnb_quantizer.int8(NAME, weights((50, 96)))
    module = NAME.removesuffix(".weight")
    for change in (
        {f"{module}.SCB": ("F32", np.ones(49, np.float32))},
        {f"{module}.weight_format": ("U8", np.uint8(2))},
        {NAME: weights((50, 96))},
    ):
        with pytest.raises(CheckpointError, match="up_proj"):
            open_file(tmp_path, stored | change)


def test_integers_that_nobody_explains(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    raw_safetensors.write(tmp_path / "model.safetensors", {NAME: ("U8", np.zeros((4, 4), np.uint8))})
    with pytest.raises(CheckpointError, match=r"of type U8 .*convert from the original weights"):
        Checkpoint(tmp_path)
