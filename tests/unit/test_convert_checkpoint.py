import json
import struct

import factories
import numpy as np
import pytest

from pyvllama.conversion.checkpoint import Checkpoint, listing, to_f32
from pyvllama.errors import CheckpointError, ModelNotFound


def write(directory, header, data=b"", name="model.safetensors"):
    """A directory with one safetensors file whose header is a dict or raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (directory / "config.json").write_text("{}")
    (directory / name).write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return directory


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_rows_are_read_exactly(tmp_path, dtype):
    values = np.random.default_rng(0).standard_normal((300, 4, 3)).astype(np.float32)
    stored = factories.STORED[dtype](values)
    (tmp_path / "config.json").write_text("{}")
    factories.write_safetensors(tmp_path / "model.safetensors", {"first": values[:5], "x": values}, dtype)
    tensor = Checkpoint(tmp_path).tensors["x"]
    assert (tensor.type, tensor.shape, tensor.n_rows, tensor.n_per_row) == (dtype.lower(), (300, 4, 3), 300, 12)
    flat = stored.reshape(300, 12)
    for index in (np.arange(300), np.array([7]), np.array([299, 0]), np.array([5, 4, 5]), np.arange(100, 200)[::-1]):
        rows = tensor.rows(index)
        assert rows.dtype == stored.dtype
        assert np.array_equal(rows, flat[index])
    expected = (flat.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else flat.astype(np.float32)
    assert np.array_equal(to_f32(tensor.rows(np.arange(300))), expected)


def test_vectors_and_scalars_are_one_row(tmp_path):
    header = {
        "v": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]},
        "s": {"dtype": "F32", "shape": [], "data_offsets": [12, 16]},
    }
    tensors = Checkpoint(write(tmp_path, header, struct.pack("<4f", 1, 2, 3, 4))).tensors
    assert tensors["v"].rows(np.array([0])).tolist() == [[1, 2, 3]]
    assert tensors["s"].rows(np.array([0])).tolist() == [[4]]


def test_both_layouts_have_one_name(tiny_checkpoint):
    hub = Checkpoint(tiny_checkpoint("small"))
    new = Checkpoint(tiny_checkpoint("small", layout="transformers5"))
    assert hub.tensors.keys() == new.tensors.keys()
    assert new.tensors["language_model.lm_head.weight"].name == "lm_head.weight"


def test_one_tensor_under_both_layouts_is_refused(tmp_path):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    header = {"lm_head.weight": entry, "language_model.lm_head.weight": entry | {"data_offsets": [4, 8]}}
    with pytest.raises(CheckpointError, match="are one tensor, but their values differ"):
        Checkpoint(write(tmp_path, header, struct.pack("<2f", 1, 2)))


def test_sharded_equals_single(tiny_checkpoint):
    single, sharded = Checkpoint(tiny_checkpoint("small")), Checkpoint(tiny_checkpoint("small", n_shards=3))
    assert single.tensors.keys() == sharded.tensors.keys()
    assert len({t.path for t in sharded.tensors.values()}) == 3


def test_numbered_shards_without_an_index(tmp_path):
    factories.write_checkpoint(tmp_path, "small", n_shards=3)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert len({t.path for t in Checkpoint(tmp_path).tensors.values()}) == 3
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 3 shards.*\n  model-00001-of-00003\.safetensors"):
        Checkpoint(tmp_path)


def test_missing_shards_are_all_named(tmp_path):
    factories.write_checkpoint(tmp_path, "small", n_shards=4)
    for i in (2, 4):
        (tmp_path / f"model-{i:05}-of-00004.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"(?s)lacks 2 of 4 shards.*model-00002-of.*model-00004-of"):
        Checkpoint(tmp_path)


def test_tensors_of_the_index_that_no_shard_holds(tmp_path):
    factories.write_checkpoint(tmp_path, "small", n_shards=2)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["vision_model.lost.weight"] = "model-00002-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"vision_model\.lost\.weight \(in model-00002"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_an_index_cannot_name_files_elsewhere(tmp_path, name):
    # a downloaded index must not make us read another of the user's files
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match="outside of the directory"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("index", ["[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{}", "[" * 100000])
def test_damaged_index(tmp_path, index):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        Checkpoint(tmp_path)


def entry(**changes):
    return {"x": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]} | changes}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "no valid JSON"),
        (b"[]", b"", "must be a JSON object"),
        (entry(), bytes(15), "truncated: x ends at byte"),
        (entry(dtype="I8", shape=[4, 4]), bytes(16), "of type I8"),
        (entry(dtype="U8", shape=[16]), bytes(16), "of type U8"),
        (entry(dtype="I32"), bytes(16), "of type I32"),
        (entry(dtype="F8_E4M3"), bytes(16), "already quantized"),
        (entry(dtype=7), bytes(16), "damaged"),
        (entry(shape=[2, 3]), bytes(16), "does not fill its 16 bytes"),
        (entry(shape=[-2, -2]), bytes(16), "damaged"),
        (entry(shape=[2.0, 2.0]), bytes(16), "damaged"),
        (entry(shape=[2**62, 4]), bytes(16), "does not fill"),
        (entry(data_offsets=[-16, 0]), bytes(16), "damaged"),
        (entry(data_offsets=[16, 0]), bytes(16), "does not fill"),
        (entry(data_offsets=[2**63, 2**63 + 16]), bytes(16), "truncated"),
        (entry(data_offsets=[0]), bytes(16), "damaged"),
        ({"x": 5}, bytes(16), "damaged"),
    ],
)
def test_damaged_safetensors(tmp_path, header, data, message):
    with pytest.raises(CheckpointError, match=message) as e:
        Checkpoint(write(tmp_path, header, data))
    assert "model.safetensors" in str(e.value)


@pytest.mark.parametrize("raw", [b"", b"1234", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_header_that_does_not_fit(tmp_path, raw):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match="no safetensors file, or truncated"):
        Checkpoint(tmp_path)


def test_file_cut_after_it_was_opened(tmp_path, tiny_checkpoint):
    raw = (tiny_checkpoint("small") / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(raw)
    tensors = Checkpoint(tmp_path).tensors
    last = max(tensors.values(), key=lambda t: t.offset)
    (tmp_path / "model.safetensors").write_bytes(raw[:-1])
    with pytest.raises(CheckpointError, match="the file ends inside"):
        last.rows(np.arange(last.n_rows))


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ModelNotFound, match="no directory"):
        Checkpoint(tmp_path / "nothing")
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        Checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="save as safetensors"):
        Checkpoint(tmp_path)


def test_check_reports_everything_at_once(tiny_checkpoint):
    checkpoint = Checkpoint(tiny_checkpoint("small", layout="transformers5"))
    expected = {name: t.shape for name, t in checkpoint.tensors.items()}
    checkpoint.check(expected)
    del expected["vision_model.class_embedding"]
    expected["language_model.model.norm.weight"] = (7,)
    expected["multi_modal_projector.extra"] = (1,)
    with pytest.raises(CheckpointError) as e:
        checkpoint.check(expected)
    message = str(e.value)
    assert "missing: multi_modal_projector.extra" in message
    assert "unknown: model.vision_model.class_embedding" in message  # as the file spells it
    assert "model.language_model.norm.weight: shape [128], but config.json asks for [7]" in message


def test_listing_is_cut():
    assert listing(["a", "b", "c"], limit=2) == "  a\n  b\n  ... and 1 more"


def test_json_files(tmp_path, tiny_checkpoint):
    checkpoint = Checkpoint(tiny_checkpoint("small"))
    assert checkpoint.json("config.json")["model_type"] == "mllama"
    assert checkpoint.optional_json("nothing.json") is None
    assert checkpoint.optional_text("nothing.txt") is None
    with pytest.raises(CheckpointError, match=r"lacks nothing\.json"):
        checkpoint.json("nothing.json")
