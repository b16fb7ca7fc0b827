"""GGUF back to Hugging Face: every tensor bit for bit and in its type, and converting again gives the same pair."""

import json

import factories
import gguf_bytes
import meta_files
import numpy as np
import pytest
from exports import assert_same_pair, assert_same_tensors, bits, there_and_back
from tiny_configs import CONFIGS

from pyvllama.conversion import checkpoint_export, convert, export, typed_rows, writer
from pyvllama.conversion.checkpoint import Checkpoint, to_f32
from pyvllama.gguf_file import GGUFFile

EMBED, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


@pytest.mark.parametrize("layout", ["hub", "transformers5"])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", ["small", "odd_rows"])
def test_tiny_models_come_back(name, dtype, layout, tiny_checkpoint, tmp_path):
    checkpoint = tiny_checkpoint(name, dtype=dtype, layout=layout)
    exported = there_and_back(checkpoint, tmp_path, dtype.lower())
    assert_same_tensors(exported, checkpoint)
    config = json.loads((exported / "config.json").read_text())
    assert config["torch_dtype"] == config["text_config"]["torch_dtype"] == factories.TORCH_NAMES[dtype]


@pytest.mark.parametrize("name", CONFIGS.keys() - {"small", "odd_rows"})
def test_all_sizes_come_back(name, tiny_checkpoint, tmp_path):
    checkpoint = tiny_checkpoint(name, dtype="BF16")
    assert_same_tensors(there_and_back(checkpoint, tmp_path, "bf16"), checkpoint)


def test_the_pocket_model_comes_back(pocket_checkpoint, tmp_path):
    assert_same_tensors(there_and_back(pocket_checkpoint, tmp_path, "bf16"), pocket_checkpoint)


def test_f32_holds_every_type(pocket_checkpoint, tmp_path):
    """A BF16 checkpoint through F32 files: other types, the same numbers."""
    exported = Checkpoint(there_and_back(pocket_checkpoint, tmp_path, "f32"))
    for name, t in Checkpoint(pocket_checkpoint).tensors.items():
        rows = np.arange(t.n_rows)
        assert exported.tensors[name].type == "f32", name
        assert np.array_equal(bits(exported.tensors[name].rows(rows)), bits(to_f32(t.rows(rows)))), name


def test_the_hubs_names_in_files_of_transformers(tiny_checkpoint, tmp_path):
    exported = there_and_back(tiny_checkpoint("small", layout="transformers5"), tmp_path, "f32")
    assert [t.name for t in Checkpoint(exported).tensors.values()] == list(Checkpoint(exported).tensors)
    assert HEAD in Checkpoint(exported).tensors


def odd_values(dtype):
    """Zeros with a sign, the smallest and the largest numbers of a type, as float32."""
    if dtype == "F16":
        return np.array([-0.0, 0.0, 6e-8, -6e-8, 6.1e-5, 65504, -65504, 1 / 3], np.float16).astype(np.float32)
    patterns = [0x8000, 0x0000, 0x0001, 0x8001, 0x007F, 0x7F7F, 0xFF7F, 0x3EAB]
    return (np.array(patterns, np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_odd_numbers_come_back(dtype, tmp_path):
    """In a matrix, which is copied, and in a bias, which goes through F32."""

    def edit(name, values):
        if name in ("multi_modal_projector.bias", "language_model.model.layers.0.mlp.up_proj.weight"):
            values = values.copy()
            values.reshape(-1)[:8] = odd_values(dtype)
        return values

    checkpoint = factories.write_checkpoint(tmp_path / "odd", "small", dtype=dtype, edit=edit)
    exported = there_and_back(checkpoint, tmp_path, dtype.lower())
    assert_same_tensors(exported, checkpoint)
    bias = Checkpoint(exported).tensors["multi_modal_projector.bias"]
    assert bias.type == dtype.lower()
    assert np.array_equal(bits(to_f32(bias.rows(np.arange(1)))[0, :8]), bits(odd_values(dtype)))


def test_vectors_that_do_not_fit_stay_f32(tiny_checkpoint, tmp_path):
    """An F32 checkpoint in BF16 files: its norms were never rounded, and are not now."""
    source = tiny_checkpoint("small")
    pair = convert(source, tmp_path / "pair", text_type="bf16", mmproj_type="bf16", name="model")
    exported, original = Checkpoint(export(pair.text, tmp_path / "out")), Checkpoint(source)
    one_row = np.arange(1)
    kinds = {}
    for name, t in exported.tensors.items():
        kinds.setdefault(t.type, set()).add(name)
        if len(t.shape) == 1:
            assert np.array_equal(to_f32(t.rows(one_row)), original.tensors[name].rows(one_row)), name
    assert "language_model.model.norm.weight" in kinds["f32"]
    assert "language_model.model.layers.0.mlp.up_proj.weight" in kinds["bf16"]
    assert not {name for name in kinds["f32"] if "_proj" in name and name.startswith("language_model")}
    again = convert(exported.path, tmp_path / "again", text_type="bf16", mmproj_type="bf16", name="model")
    assert again.text.read_bytes() == pair.text.read_bytes()
    ours, before = GGUFFile(again.mmproj), GGUFFile(pair.mmproj)
    different = [name for name in before.tensors if not np.array_equal(ours.raw(name), before.raw(name))]
    assert different == ["mm.image_token_embd.weight"]  # exact in the mmproj, but rounded in the embedding


@pytest.mark.parametrize(("text_type", "mmproj_type"), [("f32", "f16"), ("bf16", "f16"), ("f16", "f32")])
def test_each_file_has_its_own_type(text_type, mmproj_type, pocket_checkpoint, tmp_path):
    exported = Checkpoint(there_and_back(pocket_checkpoint, tmp_path, text_type, mmproj_type=mmproj_type))
    assert exported.tensors[EMBED].type == exported.tensors[HEAD].type == text_type
    tower = "vision_model.transformer.layers.0.mlp.fc1.weight"
    assert exported.tensors[tower].type == exported.tensors["multi_modal_projector.weight"].type == mmproj_type


def test_slices_do_not_matter(tiny_pair, tmp_path, monkeypatch):
    whole = export(tiny_pair("small").text, tmp_path / "whole")
    monkeypatch.setattr(typed_rows, "_SLICE_ELEMENTS", 1000)
    monkeypatch.setattr("pyvllama.conversion.pair_tensors._SCAN_ELEMENTS", 7)
    sliced = export(tiny_pair("small").text, tmp_path / "sliced")
    assert (sliced / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_peak_memory_is_a_few_slices(tmp_path, monkeypatch):
    import tracemalloc

    layers = {"num_hidden_layers": 3, "cross_attention_layers": (1,), "intermediate_size": 32768}
    checkpoint = factories.write_checkpoint(tmp_path / "model", "small", **layers)
    pair = convert(checkpoint, tmp_path / "pair", text_type="f32", mmproj_type="f32")
    monkeypatch.setattr(typed_rows, "_SLICE_ELEMENTS", 1 << 16)
    monkeypatch.setattr(writer, "_READ_BYTES", 1 << 16)
    tracemalloc.start()
    export(pair.text, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 32768 * 128 / 2


def test_several_files_and_their_index(pocket_checkpoint, tmp_path, monkeypatch):
    limit = 4_000_000
    monkeypatch.setattr(checkpoint_export, "MAX_FILE_BYTES", limit)
    exported = there_and_back(pocket_checkpoint, tmp_path, "bf16")
    assert_same_tensors(exported, pocket_checkpoint)
    files = sorted(p.name for p in exported.glob("*.safetensors"))
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    assert len(files) > 5
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    tensors = Checkpoint(exported).tensors
    assert index["weight_map"] == {name: t.path.name for name, t in tensors.items()}
    assert index["metadata"]["total_size"] == sum(2 * int(np.prod(t.shape)) for t in tensors.values())
    for name in files:
        assert sum(2 * int(np.prod(t.shape)) for t in tensors.values() if t.path.name == name) <= limit


def test_the_safetensors_library_reads_the_files(pocket_checkpoint, tmp_path, tiny_checkpoint):
    """Types mixed in one file, too."""
    numpy = pytest.importorskip("safetensors.numpy")
    exported = there_and_back(tiny_checkpoint("small", dtype="F16"), tmp_path, "f16", mmproj_type="f32")
    loaded = numpy.load_file(exported / "model.safetensors")
    tensors = Checkpoint(exported).tensors
    assert loaded.keys() == tensors.keys()
    assert {t.type for t in tensors.values()} == {"f16", "f32"}
    for name, values in loaded.items():
        rows = tensors[name].rows(np.arange(tensors[name].n_rows))
        assert np.array_equal(bits(values).reshape(-1), bits(rows).reshape(-1)), name


def test_split_text_models(pocket_checkpoint, tmp_path):
    types = {"text_type": "bf16", "mmproj_type": "bf16"}
    pair = convert(pocket_checkpoint, tmp_path / "split", split_max_bytes=2_000_000, **types)
    assert "-00001-of-" in pair.text.name
    assert_same_tensors(export(pair.text, tmp_path / "out"), pocket_checkpoint)


def test_metas_layout(tmp_path):
    """Through Meta's files the same checkpoint comes out as from Hugging Face's."""
    meta, hf = meta_files.write_meta(tmp_path / "meta"), meta_files.write_hf(tmp_path / "hf")
    assert_same_tensors(there_and_back(meta, tmp_path, "f32"), hf)


@pytest.mark.parametrize(
    ("n_embed", "n_head"), [(321, 320), (321, 321), (328, 328), (384, 384), (360, 320), (360, 340)]
)
def test_other_vocabularies_come_back_as_they_were_taken(n_embed, n_head, tmp_path):
    """Cut and enlarged ones: the rows that conversion has filled up stay."""

    def edit(name, values):
        n_rows = {EMBED: n_embed, HEAD: n_head}.get(name, len(values))
        return np.resize(values, (n_rows, *values.shape[1:]))

    checkpoint = factories.write_checkpoint(tmp_path / "model", "small", edit=edit)
    exported, source = Checkpoint(there_and_back(checkpoint, tmp_path, "f32")), Checkpoint(checkpoint)
    rows = np.arange(n_embed)
    assert np.array_equal(exported.tensors[EMBED].rows(rows), source.tensors[EMBED].rows(rows))
    assert exported.tensors[EMBED].n_rows == exported.tensors[HEAD].n_rows + 8


def test_tied_embeddings_become_two_tensors(tmp_path):
    def untie(name, values):
        return None if name == HEAD else values

    checkpoint = factories.write_checkpoint(tmp_path / "tied", "small", edit=untie)
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (checkpoint / "config.json").write_text(json.dumps(config))
    exported = Checkpoint(there_and_back(checkpoint, tmp_path, "f32"))
    rows = np.arange(exported.tensors[HEAD].n_rows)
    assert np.array_equal(exported.tensors[HEAD].rows(rows), exported.tensors[EMBED].rows(rows))


def test_a_text_file_without_an_output_matrix(tiny_pair, tmp_path):
    """llama.cpp's converter leaves it out where it is the embedding."""
    pair = tiny_pair("small")

    def drop(g):
        g.tensors = [t for t in g.tensors if t.name != "output.weight"]

    text = gguf_bytes.rewrite(pair.text, tmp_path / "tied.gguf", drop)
    exported = Checkpoint(export(text, tmp_path / "out", mmproj=pair.mmproj))
    rows = np.arange(exported.tensors[HEAD].n_rows)
    assert np.array_equal(exported.tensors[HEAD].rows(rows), exported.tensors[EMBED].rows(rows))


@pytest.mark.parametrize(("text_type", "mmproj_type"), [("q8_0", "q8_0"), ("q4_k_m", "bf16"), ("f16", "q5_k")])
def test_dequantized(text_type, mmproj_type, pocket_pairs, tmp_path):
    """The rounded weights as BF16, the unquantized ones as they are."""
    pair = pocket_pairs(text_type, mmproj_type)
    exported = export(pair.text, tmp_path / "out", dequantize=True)
    tensors = Checkpoint(exported).tensors
    text, mmproj = GGUFFile(pair.text), GGUFFile(pair.mmproj)
    for file, gguf_name, name in (
        (text, "blk.0.ffn_down.weight", "language_model.model.layers.0.mlp.down_proj.weight"),
        (text, "blk.1.attn_v.weight", "language_model.model.layers.2.self_attn.v_proj.weight"),
        (mmproj, "v.blk.1.attn_q.weight", "vision_model.transformer.layers.1.self_attn.q_proj.weight"),
        (mmproj, "xattn.blk.3.ffn_up.weight", "language_model.model.layers.3.mlp.up_proj.weight"),
    ):
        values, kind = file.f32(gguf_name), file.tensors[gguf_name].type
        got = tensors[name]
        assert got.type == (kind if kind in ("f32", "f16", "bf16") else "bf16"), name
        rounded = factories.to_bf16(values) if got.type == "bf16" else values.astype(np.float16)
        assert np.array_equal(bits(got.rows(np.arange(got.n_rows))), bits(rounded)), name
    norm = tensors["language_model.model.norm.weight"]
    assert norm.type == ("f16" if text_type == "f16" else "bf16")
    assert np.array_equal(to_f32(norm.rows(np.arange(1)))[0], text.f32("output_norm.weight"))


def test_the_same_pair_through_quantizing(pocket_checkpoint, tmp_path):
    """What is made of the exported checkpoint is what is made of the original, in any type."""
    exported = there_and_back(pocket_checkpoint, tmp_path, "bf16")
    types = {"text_type": "q4_k_m", "mmproj_type": "q8_0", "name": "model"}
    assert_same_pair(convert(exported, tmp_path / "a", **types), convert(pocket_checkpoint, tmp_path / "b", **types))
