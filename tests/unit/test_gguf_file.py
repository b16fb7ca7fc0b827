import struct

import gguf
import gguf_bytes as gb
import numpy as np
import pytest

from pyvllama._runtime import native
from pyvllama.errors import FormatError, ModelNotFound
from pyvllama.gguf_file import GGML_TYPES, GGUFFile, pairing_hash, row_bytes


def write(path, keys=(), tensors=(), **options):
    path.write_bytes(gb.Gguf([gb.Key(*k) for k in keys], [gb.Tensor(*t) for t in tensors], **options).to_bytes())
    return path


def test_types_are_those_of_the_pinned_llama_cpp():
    for name, info in GGML_TYPES.items():
        assert native.type_size(name) == (info.block_elements, info.block_bytes), name
    numbers = {t.name.lower(): t.value for t in gguf.GGMLQuantizationType}
    assert {n.lower(): t.number for n, t in GGML_TYPES.items() if n.lower() in numbers} == {
        n: v for n, v in numbers.items() if n in {m.lower() for m in GGML_TYPES}
    }


def test_every_kind_of_value(tmp_path):
    keys = [
        ("u8", gb.U8, gb.scalar(gb.U8, 255)),
        ("i8", gb.I8, gb.scalar(gb.I8, -1)),
        ("u16", gb.U16, gb.scalar(gb.U16, 65535)),
        ("i32", gb.I32, gb.scalar(gb.I32, -7)),
        ("f32", gb.F32, gb.scalar(gb.F32, 0.5)),
        ("u64", gb.U64, gb.scalar(gb.U64, 2**64 - 1)),
        ("f64", gb.F64, gb.scalar(gb.F64, 1 / 255)),
        ("yes", gb.BOOL, gb.scalar(gb.BOOL, True)),
        ("text", gb.STRING, gb.string("größer")),
        ("bad text", gb.STRING, gb.string(b"\xff!")),
        ("empty", gb.ARRAY, gb.array(gb.F32, [])),
        ("bools", gb.ARRAY, gb.array(gb.BOOL, [b"\x01", b"\x00"])),
        ("ints", gb.ARRAY, gb.array(gb.I32, [gb.scalar(gb.I32, i) for i in (-1, 2)])),
        ("texts", gb.ARRAY, gb.array(gb.STRING, [gb.string("a"), gb.string(""), gb.string("漢")])),
    ]
    metadata = GGUFFile(write(tmp_path / "x.gguf", keys)).metadata
    assert metadata == {
        "u8": 255,
        "i8": -1,
        "u16": 65535,
        "i32": -7,
        "f32": 0.5,
        "u64": 2**64 - 1,
        "f64": 1 / 255,
        "yes": True,
        "text": "größer",
        "bad text": "\ufffd!",
        "empty": [],
        "bools": [True, False],
        "ints": [-1, 2],
        "texts": ["a", "", "漢"],
    }
    assert metadata["yes"] is True


@pytest.mark.parametrize("ggml_type", ["f32", "f16", "bf16", "q8_0", "q4_0", "q5_0", "q4_K", "q6_K"])
def test_tensor_data(tmp_path, ggml_type):
    values = np.random.default_rng(1).standard_normal((3, 2, 256)).astype(np.float32)
    blocks = native.quantize(values.reshape(6, 256), ggml_type)
    number = GGML_TYPES[ggml_type].number
    small = np.arange(8, dtype=np.float32)
    tensors = [("a", [8], 0, small.tobytes()), ("b", [256, 2, 3], number, blocks.tobytes())]
    file = GGUFFile(write(tmp_path / "x.gguf", tensors=tensors))
    assert list(file.tensors) == ["a", "b"]
    info = file.tensors["b"]
    assert (info.shape, info.type, info.n_bytes) == ((3, 2, 256), ggml_type, blocks.nbytes)
    assert np.array_equal(file.raw("b"), blocks)
    assert np.array_equal(file.f32("a"), small)
    assert file.f32("b").shape == values.shape
    assert np.array_equal(file.f32("b").reshape(6, 256), native.dequantize(blocks, ggml_type))
    assert np.abs(file.f32("b") - values).max() < 0.3


def test_other_alignments(tmp_path):
    keys = [("general.alignment", gb.U32, gb.scalar(gb.U32, 128))]
    tensors = [(name, [3], 0, np.full(3, i, np.float32).tobytes()) for i, name in enumerate("ab")]
    file = GGUFFile(write(tmp_path / "x.gguf", keys, tensors, alignment=128))
    assert file.f32("b").tolist() == [1, 1, 1]
    assert file.tensors["b"].offset % 128 == 0


def test_no_such_tensor(tmp_path):
    with pytest.raises(FormatError, match=r"x\.gguf.*no tensor 'z'"):
        GGUFFile(write(tmp_path / "x.gguf")).f32("z")


def test_no_such_file(tmp_path):
    with pytest.raises(ModelNotFound, match=r"nothing\.gguf"):
        GGUFFile(tmp_path / "nothing.gguf")
    with pytest.raises(ModelNotFound, match="not a file"):
        GGUFFile(tmp_path)


@pytest.mark.parametrize(
    ("keys", "tensors", "message"),
    [
        ([("", gb.U8, b"\0")], [], "no name"),
        ([("a", gb.BOOL, b"\x02")], [], "neither 0 nor 1"),
        ([("a", gb.ARRAY, gb.array(99, []))], [], "unknown type 99"),
        ([("a", 77, b"")], [], "unknown type 77"),
        ([("a", gb.STRING, struct.pack("<Q", 2**63))], [], "ends at byte"),
        ([("a", gb.ARRAY, gb.array(gb.STRING, [], claimed=2**60))], [], "array of"),
        ([(b"\xff", gb.U8, b"\0")], [], "not UTF-8"),
        ([("a", gb.U8, b"\0")] * 2, [], "twice"),
        ([("general.alignment", gb.U32, gb.scalar(gb.U32, 24))], [], "power of two"),
        ([], [("a", [0], 0, b"")], "impossible shape"),
        ([], [("a", [2**62, 2**62], 0, b"")], "impossible shape"),
        ([], [("a", [32], 4, b"")], "unknown type 4"),
        ([], [("a", [33], 8, b"")], "no whole number of q8_0 blocks"),
        ([], [("a", [64], 0, bytes(4))], "truncated"),
        ([], [("a", [8], 0, bytes(32), 0), ("b", [8], 0, bytes(32), 0)], "overlap"),
        ([], [("a", [8], 0, bytes(32)), ("a", [8], 0, bytes(32))], "twice"),
        ([], [("a", [8], 0, bytes(32), 8)], "no multiple"),
        ([], [("a" * 64, [8], 0, bytes(32))], "longer than"),
        ([], [("a", [1] * 5, 0, bytes(32))], "5 dimensions"),
    ],
)
def test_damage_is_named(tmp_path, keys, tensors, message):
    path = write(tmp_path / "evil.gguf", keys, tensors)
    with pytest.raises(FormatError, match=message) as e:
        GGUFFile(path)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("content", [b"", b"GG", b"<html>", b"GGUF", b"GGUF" + struct.pack(">I", 3) + bytes(40)])
def test_no_gguf(tmp_path, content):
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError):
        GGUFFile(path)


def test_cut_anywhere(tmp_path, tiny_pair):
    """Whatever is missing at the end, it is a FormatError."""
    raw = tiny_pair("small").mmproj.read_bytes()
    last = max(GGUFFile(tiny_pair("small").mmproj).tensors.values(), key=lambda t: t.offset)
    path = tmp_path / "cut.gguf"
    for end in (*range(0, 3000, 7), *np.linspace(3000, last.offset + last.n_bytes - 1, 40, dtype=int)):
        path.write_bytes(raw[:end])
        with pytest.raises(FormatError):
            GGUFFile(path)


def test_a_large_vocabulary_is_read(tmp_path):
    tokens = [gb.string(f"token{i}") for i in range(128264)]
    merges = [gb.string(f"left{i} right{i}") for i in range(280147)]
    keys = [
        ("tokenizer.ggml.tokens", gb.ARRAY, gb.array(gb.STRING, tokens)),
        ("tokenizer.ggml.merges", gb.ARRAY, gb.array(gb.STRING, merges)),
        ("tokenizer.ggml.token_type", gb.ARRAY, gb.array(gb.I32, [gb.scalar(gb.I32, 1)] * len(tokens))),
    ]
    path = write(tmp_path / "vocab.gguf", keys)

    metadata = GGUFFile(path).metadata
    assert metadata["tokenizer.ggml.tokens"][::128263] == ["token0", "token128263"]
    assert len(metadata["tokenizer.ggml.merges"]) == 280147
    assert metadata["tokenizer.ggml.merges"][-1] == "left280146 right280146"


def test_pairing_hash_is_of_the_weights_not_of_their_quantization(tiny_pair, tiny_checkpoint, converted):
    digest = pairing_hash(GGUFFile(tiny_pair("small").text))
    assert len(digest) == 64
    assert pairing_hash(GGUFFile(tiny_pair("small", "q4_k_m").text)) == digest
    assert GGUFFile(tiny_pair("small").mmproj).metadata["clip.mllama.pairing_hash"] == digest
    other = converted(tiny_checkpoint("small", seed=1))
    assert pairing_hash(GGUFFile(other.text)) != digest


def test_pairing_hash_needs_a_text_model(tiny_pair):
    with pytest.raises(FormatError, match="no Llama text model"):
        pairing_hash(GGUFFile(tiny_pair("small").mmproj))


def test_row_bytes():
    assert row_bytes("q4_K", 512) == 288
    with pytest.raises(ValueError, match="no whole number"):
        row_bytes("q4_K", 300)
