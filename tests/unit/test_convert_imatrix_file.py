"""Importance matrices in files: llama.cpp's forms, and files from strangers."""

import math
import struct

import gguf_bytes
import numpy as np
import pytest

from pyvllama.conversion.imatrix_file import ColumnSums, ImportanceMatrix
from pyvllama.errors import ConfigError, FormatError, ModelNotFound


def entry(values, n_rows=2):
    return ColumnSums(np.asarray(values, np.float64), n_rows)


MATRIX = ImportanceMatrix(
    {"blk.1.ffn_up.weight": entry([2.0, 4.0, 1e-3], 1025), "blk.0.attn_q.weight": entry([6.0, 0.0], 3)},
    ("chats.jsonl", "wiki.txt"),
)


@pytest.fixture
def path(tmp_path):
    MATRIX.write(tmp_path / "imatrix-a.gguf")
    return tmp_path / "imatrix-a.gguf"


# --- llama.cpp's form ---


def test_the_file_is_laid_out_as_llama_imatrix_does(path):
    """tools/imatrix/imatrix.cpp, save_imatrix: no architecture, four keys, tensors by name, each sum with its count."""
    file = gguf_bytes.read(path)
    keys = {key.name: (key.kind, key.payload) for key in file.keys}
    assert list(keys) == ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    assert keys["general.type"] == (gguf_bytes.STRING, gguf_bytes.string("imatrix"))
    names = [gguf_bytes.string("chats.jsonl"), gguf_bytes.string("wiki.txt")]
    assert keys["imatrix.datasets"] == (gguf_bytes.ARRAY, gguf_bytes.array(gguf_bytes.STRING, names))
    assert keys["imatrix.chunk_count"] == (gguf_bytes.U32, struct.pack("<I", 3))  # 1025 rows in chunks of 512
    assert keys["imatrix.chunk_size"] == (gguf_bytes.U32, struct.pack("<I", 512))
    assert [(t.name, t.dims, t.kind) for t in file.tensors] == [
        ("blk.0.attn_q.weight.in_sum2", [2], gguf_bytes.TYPE_F32),
        ("blk.0.attn_q.weight.counts", [1], gguf_bytes.TYPE_F32),
        ("blk.1.ffn_up.weight.in_sum2", [3], gguf_bytes.TYPE_F32),
        ("blk.1.ffn_up.weight.counts", [1], gguf_bytes.TYPE_F32),
    ]
    assert struct.unpack("<2f", file.tensors[0].data[:8]) == (6.0, 0.0)
    assert struct.unpack("<f", file.tensors[3].data[:4]) == (1025.0,)


def test_what_is_written_is_read(path):
    read = ImportanceMatrix.read(path)
    assert read.datasets == MATRIX.datasets and read.chunk_size == 512 and read.chunk_count == 3
    assert len(read) == 2 and set(read.entries) == set(MATRIX.entries)
    for name, want in MATRIX.entries.items():
        np.testing.assert_array_equal(read.entries[name].sums, want.sums.astype(np.float32))
        assert read.entries[name].n_rows == want.n_rows


def test_values_are_mean_squares_divided_as_llama_quantize_does(path):
    values = ImportanceMatrix.read(path).values("blk.1.ffn_up.weight")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.float32([2.0, 4.0, 1e-3]) / np.float32(1025))


def test_a_weight_without_rows_has_equal_columns_and_an_unknown_one_none():
    matrix = ImportanceMatrix({"a.weight": entry([0.0, 0.0, 0.0], 0)})
    np.testing.assert_array_equal(matrix.values("a.weight"), np.ones(3, np.float32))
    assert matrix.values("b.weight") is None


def test_several_files_are_added_up(tmp_path, path):
    other = {"blk.0.attn_q.weight": entry([1.0, 5.0], 2), "v.blk.0.attn_q.weight": entry([1.0], 1)}
    ImportanceMatrix(other, ("chats.jsonl", "more.jsonl")).write(tmp_path / "b.gguf")
    both = ImportanceMatrix.read(path, tmp_path / "b.gguf")
    assert len(both) == 3 and both.datasets == ("chats.jsonl", "wiki.txt", "more.jsonl")
    np.testing.assert_array_equal(both.values("blk.0.attn_q.weight"), np.float32([7 / 5, 1]))


def test_files_of_different_models_are_refused(tmp_path, path):
    ImportanceMatrix({"blk.0.attn_q.weight": entry([1.0])}).write(tmp_path / "b.gguf")
    with pytest.raises(FormatError, match="1 columns here, 2 in another file"):
        ImportanceMatrix.read(path, tmp_path / "b.gguf")


def test_a_file_is_replaced_on_demand_only(path):
    with pytest.raises(ConfigError, match=r"exists? already"):
        MATRIX.write(path)
    MATRIX.write(path, overwrite=True)


# --- the older form ---


def old_file(entries, calls=7, dataset=b"wiki.txt", n=None):
    out = [struct.pack("<i", len(entries) if n is None else n)]
    for name, n_calls, values in entries:
        out.append(struct.pack("<i", len(name)) + name + struct.pack("<ii", n_calls, len(values)))
        out.append(struct.pack(f"<{len(values)}f", *values))
    return b"".join(out) + (struct.pack("<ii", calls, len(dataset)) + dataset if dataset is not None else b"")


def test_the_older_form_is_read(tmp_path):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(old_file([(b"blk.0.attn_q.weight", 4, (8.0, 2.0)), (b"blk.1.attn_q.weight", 0, (0.5,))]))
    matrix = ImportanceMatrix.read(path)
    assert matrix.datasets == ("wiki.txt",)
    np.testing.assert_array_equal(matrix.values("blk.0.attn_q.weight"), np.float32([2.0, 0.5]))
    np.testing.assert_array_equal(matrix.values("blk.1.attn_q.weight"), np.float32([0.5]))
    path.write_bytes(old_file([(b"a", 1, (1.0,))], dataset=None))  # the oldest ones end here
    assert ImportanceMatrix.read(path).datasets == ()


OLD = old_file([(b"blk.0.attn_q.weight", 4, (8.0, 2.0))])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x00\x00",
        b"hello, this is no matrix",
        struct.pack("<i", -1) + OLD[4:],
        struct.pack("<i", 2**31 - 1) + OLD[4:],
        OLD[:4] + struct.pack("<i", -5) + OLD[8:],
        OLD[:4] + struct.pack("<i", 2**31 - 1) + OLD[8:],
        old_file([(b"a", 1, ())] * 9),
        old_file([(b"a", -1, (1.0,))] * 2),
        old_file([(b"a", 1, (1.0,)), (b"a", 1, (1.0,))]),
        old_file([(b"a", 1, (math.nan,))]),
        old_file([(b"a", 1, (-1.0,))]),
    ],
    ids=range(12),
)
def test_damaged_old_files_are_refused(tmp_path, data):
    (tmp_path / "a.dat").write_bytes(data)
    with pytest.raises(FormatError, match=r"a\.dat"):
        ImportanceMatrix.read(tmp_path / "a.dat")


def test_every_truncation_of_an_old_file_is_refused(tmp_path):
    end = len(OLD) - len(b"wiki.txt")
    whole = {end - 8, end - 4}  # without dataset, without calls: older still
    for n in set(range(len(OLD))) - whole:
        (tmp_path / "a.dat").write_bytes(OLD[:n])
        with pytest.raises(FormatError):
            ImportanceMatrix.read(tmp_path / "a.dat")


# --- files from strangers ---


def set_data(name, data):
    def edit(file):
        tensor = file.tensor(name)
        tensor.data = struct.pack(f"<{len(data)}f", *data)
        tensor.dims = [len(data)]

    return edit


def rename(old, new):
    def edit(file):
        file.tensor(old).name = new

    return edit


def change_type(file):
    tensor = file.tensor("blk.0.attn_q.weight.counts")
    tensor.kind, tensor.data = gguf_bytes.TYPE_F16, b"\x00\x3c"


Q, COUNTS = "blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"
EVIL = {
    "negative sum": (set_data(Q, [1.0, -1.0]), "negative, infinite or not a number"),
    "infinite sum": (set_data(Q, [1.0, math.inf]), "negative, infinite or not a number"),
    "sum is no number": (set_data(Q, [math.nan, 1.0]), "negative, infinite or not a number"),
    "negative count": (set_data(COUNTS, [-1.0]), r"counts -1\.0 rows"),
    "count is no number": (set_data(COUNTS, [math.nan]), "counts nan rows"),
    "infinite count": (set_data(COUNTS, [math.inf]), "counts inf rows"),
    "experts": (set_data(COUNTS, [1.0, 2.0]), "mixture of experts"),
    "sum without count": (rename(COUNTS, "x.counts"), "has no"),
    "count without sum": (rename(Q, "x.in_sum2"), "has no"),
    "another tensor": (rename(Q, "blk.0.attn_q.weight"), "neither sums nor counts"),
    "another type": (change_type, "of type f16, expected f32"),
    "empty": (lambda file: file.tensors.clear(), "is empty"),
    "datasets": (lambda f: f.set("imatrix.datasets", gguf_bytes.STRING, gguf_bytes.string("a")), "no list of texts"),
    "chunk size": (lambda f: f.set("imatrix.chunk_size", gguf_bytes.I32, struct.pack("<i", -1)), "no size"),
    "a model": (
        lambda f: f.set("general.architecture", gguf_bytes.STRING, gguf_bytes.string("llama")),
        "this is a model, not an importance matrix",
    ),
}


@pytest.mark.parametrize("name", EVIL)
def test_files_of_strangers(path, name):
    edit, message = EVIL[name]
    file = gguf_bytes.read(path)
    edit(file)
    path.write_bytes(file.to_bytes())
    with pytest.raises(FormatError, match=message) as caught:
        ImportanceMatrix.read(path)
    assert str(caught.value).startswith(str(path))


def test_missing_files_and_directories(tmp_path):
    with pytest.raises(ModelNotFound, match="there is no such importance matrix"):
        ImportanceMatrix.read(tmp_path / "a.gguf")
    with pytest.raises(FormatError, match="cannot be read"):
        ImportanceMatrix.read(tmp_path)
