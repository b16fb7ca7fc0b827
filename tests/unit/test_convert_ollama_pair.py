"""Ollama's files become the pair that the converter would have made of the checkpoint, byte for byte."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import factories
import numpy as np
import ollama_store
import pytest
from old_template import OLD
from tiny_configs import LLAMA3_ROPE

import pyvllama
from pyvllama.conversion import family_template, typed_rows
from pyvllama.conversion.chat_templates import corrected
from pyvllama.conversion.ollama_tensors import invert_tanh
from pyvllama.conversion.output import write_files
from pyvllama.conversion.pipeline import plan_conversion
from pyvllama.errors import CheckpointError
from pyvllama.gguf_file import GGUFFile, pairing_hash
from pyvllama.types import Pair

# rope_freqs: Ollama computes them in other precisions. mm.image_token_embd: a quantized row, dequantized. Tile tables
# are always F32 in Ollama's files. All three are compared by value instead.
BY_VALUE = ("rope_freqs.weight", "mm.image_token_embd.weight", "tile_position_embd.weight")
VISION_MIX = (r"v\..*attn_v=q6_K", r"v\..*ffn_down=q4_K")
CASES = [
    ("base", "q4_k_m", "q4_k", VISION_MIX),
    ("base", "f32", "f32", ()),
    ("small", "q8_0", "f16", ()),
    ("two_tiles", "bf16", "q8_0", ()),  # fc1 and fc2 have one shape there: only the names tell them apart
    ("adjacent", "q4_0", "bf16", ()),
    ("odd_rows", "f16", "f16", ()),
    ("six_tiles", "q5_1", "q8_0", ()),
]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ollama_store.Store:
    """An empty store that OLLAMA_MODELS names."""
    made = ollama_store.Store(tmp_path / "ollama")
    monkeypatch.setenv("OLLAMA_MODELS", str(made.path))
    return made


@pytest.fixture(scope="module")
def tiny(module_path: Path) -> tuple[Path, Pair]:
    """The smallest configuration with Llama 3's rotary scaling, and what the converter makes of it."""
    checkpoint = factories.write_checkpoint(module_path / "checkpoint", "small")
    return checkpoint, pyvllama.convert(checkpoint, module_path, text_type="q8_0", mmproj_type="f16")


def import_model(model: ollama_store.Model, store: ollama_store.Store, out_dir: Path, **options: Any) -> Pair:
    store.add_model(model)
    return pyvllama.convert("ollama:llama3.2-vision", out_dir, **options)


def files(pair: Pair) -> tuple[GGUFFile, GGUFFile]:
    return GGUFFile(pair.text), GGUFFile(pair.mmproj)


def assert_same(found: Pair, expected: Pair) -> int:
    """Compare all tensors; returns how many were compared byte for byte."""
    n_equal = 0
    for ours, theirs in zip(files(found), files(expected), strict=True):
        assert list(ours.tensors) == list(theirs.tensors)
        for name, info in theirs.tensors.items():
            assert ours.tensors[name].shape == info.shape, name
            if name.endswith(BY_VALUE):
                if name != "mm.image_token_embd.weight":
                    np.testing.assert_allclose(ours.f32(name), theirs.f32(name), rtol=1e-6, err_msg=name)
            elif "gate" in name and name.startswith("v."):  # tanh in the file: within 4 units of it in the last place
                mine, yours = np.tanh(ours.f32(name).astype(float)), np.tanh(theirs.f32(name).astype(float))
                assert abs(mine - yours) <= 5 * np.spacing(np.abs(yours).astype(np.float32)), name
            else:
                assert ours.tensors[name].type == info.type, name
                assert np.array_equal(ours.raw(name), theirs.raw(name)), name
                n_equal += 1
    image_token = files(expected)[1].metadata["clip.mllama.image_token_id"]
    text, mmproj = files(found)
    np.testing.assert_array_equal(mmproj.f32("mm.image_token_embd.weight"), text.f32("token_embd.weight")[image_token])
    assert mmproj.metadata["clip.mllama.pairing_hash"] == pairing_hash(text)
    return n_equal


@pytest.mark.parametrize("generation", ["G1", "G3"])
@pytest.mark.parametrize(("config", "text_type", "mmproj_type", "tensor_types"), CASES)
def test_all_bytes_are_those_of_a_conversion(
    generation: str,
    config: str,
    text_type: str,
    mmproj_type: str,
    tensor_types: tuple[str, ...],
    store: ollama_store.Store,
    tmp_path: Path,
) -> None:
    changes = {} if config in ("base", "small", "odd_rows", "six_tiles") else {"rope_scaling": LLAMA3_ROPE}
    checkpoint = factories.write_checkpoint(tmp_path / "checkpoint", config, **changes)
    expected = pyvllama.convert(
        checkpoint, tmp_path, text_type=text_type, mmproj_type=mmproj_type, tensor_types=tensor_types
    )
    found = import_model(ollama_store.build(checkpoint, expected, generation), store, tmp_path / "out")
    n_equal = assert_same(found, expected)
    assert n_equal > 0.9 * sum(len(file.tensors) for file in files(expected))


@pytest.mark.parametrize("generation", ["G1", "G3"])
def test_keys_are_those_of_a_conversion(
    generation: str, tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path
) -> None:
    checkpoint, expected = tiny
    found = import_model(ollama_store.build(checkpoint, expected, generation), store, tmp_path)
    assert (found.text.name, found.mmproj.name) == ("llama3.2-vision-Q8_0.gguf", "mmproj-llama3.2-vision-F16.gguf")
    own = {"general.license", "tokenizer.chat_template", "clip.mllama.chat_template"}
    of_the_name = {"general.name", "general.basename", "general.finetune", "general.version", "general.size_label"}
    own |= of_the_name | {key for file in files(found) for key in file.metadata if key.startswith("general.base_model")}
    for ours, theirs in zip(files(found), files(expected), strict=True):
        assert {k: v for k, v in ours.metadata.items() if k not in own} == {
            k: v for k, v in theirs.metadata.items() if k not in own
        }
        assert ours.metadata["general.license"] == "llama3.2"
        assert ours.metadata["general.name"] == "llama3.2-vision"
        assert family_template.FAMILY_TEMPLATE in ours.metadata.values()


def test_bos_is_added_whatever_ollama_wrote(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    model = ollama_store.build(*tiny, "G3")
    assert model.text_keys["tokenizer.ggml.add_bos_token"] is False
    text, _ = files(import_model(model, store, tmp_path))
    assert text.metadata["tokenizer.ggml.add_bos_token"] is True


def test_gates_of_a_bf16_checkpoint_come_back_exactly(
    pocket_checkpoint: Path, pocket_pairs: Callable[..., Pair], store: ollama_store.Store, tmp_path: Path
) -> None:
    expected = pocket_pairs("q4_k_m", "f16")
    found = import_model(ollama_store.build(pocket_checkpoint, expected, "G3"), store, tmp_path)
    ours, theirs = files(found)[1], files(expected)[1]
    gates = [name for name in theirs.tensors if "gate" in name and theirs.tensors[name].shape == (1,)]
    assert len(gates) == 3 + 2 * 2 + 2 * 3  # positions, two global layers, three cross-attention layers
    assert [ours.f32(name) for name in gates] == [theirs.f32(name) for name in gates]


def test_plain_cross_rows_stay_where_they_are(
    tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path
) -> None:
    checkpoint, expected = tiny
    plain = ollama_store.build(checkpoint, expected, "G1", cross_qk="plain")
    assert_same(import_model(plain, store, tmp_path / "plain", cross_qk_order="plain"), expected)
    wrong = files(import_model(plain, store, tmp_path / "wrong"))[1]
    right = files(expected)[1]
    moved = {name for name in right.tensors if not np.array_equal(wrong.raw(name), right.raw(name))}
    cross = {f"xattn.blk.{il}.attn_{x}.weight" for il in (2, 4) for x in "qk"}
    assert {name for name in moved if not name.endswith((*BY_VALUE, "gate", "gate_attn", "gate_ffn"))} == cross


def test_norms_of_f16_are_widened(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    checkpoint, expected = tiny
    found = files(import_model(ollama_store.build(checkpoint, expected, "G1", norm_type="f16"), store, tmp_path))
    for ours, theirs in zip(found, files(expected), strict=True):
        for name in (n for n in theirs.tensors if n.endswith(("norm.weight", "ln1.bias", "class_embd"))):
            assert ours.tensors[name].type == "f32"
            np.testing.assert_array_equal(ours.f32(name), theirs.f32(name).astype(np.float16).astype(np.float32))


def test_mlp_halves_are_told_apart_by_shape(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    checkpoint, expected = tiny
    model = ollama_store.build(checkpoint, expected, "G3")
    for name in [n for n in model.vision if ".ffn_up." in n]:
        other = name.replace("ffn_up", "ffn_down")
        model.vision[name], model.vision[other] = model.vision[other], model.vision[name]
    assert_same(import_model(model, store, tmp_path), expected)


def test_tokens_up_to_the_rows_of_the_embedding(
    tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path
) -> None:
    model = ollama_store.build(*tiny, "G3")
    n_text = int(model.text_keys["mllama.vocab_size"])
    assert len(model.text_keys["tokenizer.ggml.tokens"]) == n_text + 1  # 128257 of 128264 in the real files
    text, _ = files(import_model(model, store, tmp_path))
    tokens = text.metadata["tokenizer.ggml.tokens"]
    assert tokens[n_text:] == ["<|image|>", *(f"[PAD{i}]" for i in range(n_text + 1, n_text + 8))]
    output = text.raw("output.weight")
    filler = tokens.index("<|reserved_special_token_7|>")
    assert (output[n_text:] == output[filler]).all()
    assert text.metadata["tokenizer.ggml.token_type"][n_text:] == [3, *[5] * 7]


def test_rows_in_small_slices_and_a_filler_far_away(
    tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typed_rows, "_SLICE_ELEMENTS", 1 << 12)
    checkpoint, expected = tiny
    assert_same(import_model(ollama_store.build(checkpoint, expected, "G3"), store, tmp_path / "small"), expected)
    model = ollama_store.build(checkpoint, expected, "G3")
    model.text_keys["tokenizer.ggml.tokens"] = [
        token.replace("reserved", "other") for token in model.text_keys["tokenizer.ggml.tokens"]
    ]
    model.text_keys["tokenizer.ggml.padding_token_id"] = np.uint32(5)  # what fills then: no text needs it
    output = files(import_model(model, store, tmp_path / "far"))[0].raw("output.weight")
    assert (output[320:] == output[5]).all()
    assert np.array_equal(output[:320], files(expected)[0].raw("output.weight")[:320])


def test_a_blob_that_vanishes_while_it_is_copied(
    tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path
) -> None:
    store.add_model(ollama_store.build(*tiny, "G3"))
    planned = plan_conversion("ollama:llama3.2-vision", tmp_path / "out")
    blob = store.layer("model")
    blob.rename(blob.with_suffix(".gone"))
    with pytest.raises(CheckpointError, match=rf"{blob}: token_embd.weight cannot be read: No such file"):
        write_files(planned.files)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_image_token_that_the_tokenizer_lacks(
    tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path
) -> None:
    model = ollama_store.build(*tiny, "G1")
    for key in ("tokens", "token_type"):
        model.text_keys[f"tokenizer.ggml.{key}"] = model.text_keys[f"tokenizer.ggml.{key}"][:-1]
    text, _ = files(import_model(model, store, tmp_path))
    assert text.metadata["tokenizer.ggml.tokens"][320] == "<|image|>"


def test_first_template_of_the_hub_is_replaced(
    tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ollama_store.build(*tiny, "G1")
    model.text_keys["tokenizer.chat_template"] = OLD
    with caplog.at_level("WARNING", "pyvllama"):
        pair = import_model(model, store, tmp_path)
    assert "refuses system prompts beside images; it is replaced by the corrected one" in caplog.text
    for found in files(pair):
        assert OLD not in found.metadata.values()
        assert corrected(OLD) in found.metadata.values()


def test_a_template_of_its_own_is_kept(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    model = ollama_store.build(*tiny, "G3")
    model.text_keys["tokenizer.chat_template"] = "{{ bos_token }}{{ messages }}"
    store.add_model(model)
    planned = plan_conversion("ollama:llama3.2-vision", tmp_path)
    assert planned.text[0].metadata["tokenizer.chat_template"] == ("str", "{{ bos_token }}{{ messages }}")
    assert not any("template" in note for note in planned.notes)


def test_notes_tell_what_cannot_be_taken_over(
    tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path
) -> None:
    model = ollama_store.build(*tiny, "G3")
    model.layers = [("system", b"You are a pirate."), ("template", b"<|im_start|>{{ .Prompt }}"), ("messages", b"[]")]
    store.add_model(model)
    notes = plan_conversion("ollama:llama3.2-vision", tmp_path).notes
    for word in ("--cross-qk-order plain", "a system prompt", "messages to begin with", "Warning: .* not of Llama"):
        assert any(re.search(word, note) for note in notes), (word, notes)
    notes = plan_conversion("ollama:llama3.2-vision", tmp_path, cross_qk_order="interleaved").notes
    assert not any("cross" in note for note in notes)


def test_layers_in_any_order_with_names_in_them(
    tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path
) -> None:
    checkpoint, expected = tiny
    store.add_model(ollama_store.build(checkpoint, expected, "G1"))

    def change(manifest: dict[str, Any]) -> None:
        manifest["layers"] = [
            layer | {"from": "/home/somebody/model.gguf", "name": "x"} for layer in reversed(manifest["layers"])
        ] + [{"mediaType": "application/vnd.other.layer", "digest": "md5:1", "size": -1}]

    store.edit_manifest(change)
    assert_same(pyvllama.convert("ollama:llama3.2-vision", tmp_path), expected)


def test_parameters_become_sampling_keys(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    model = ollama_store.build(*tiny, "G3")
    model.layers = [
        ("params", b'{"temperature":0,"top_k":40.0,"repeat_penalty":1.1,"stop":["x"],"min_p":"no","top_p":-1}')
    ]
    keys = files(import_model(model, store, tmp_path))[0].metadata
    sampling = {k.removeprefix("general.sampling."): v for k, v in keys.items() if "sampling" in k}
    assert sampling == {"temp": 0.0, "top_k": 40, "penalty_repeat": pytest.approx(1.1)}


def test_other_licences_are_named(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    model = ollama_store.build(*tiny, "G3")
    model.layers = [("license", b"\n# My own licence\n\nNo warranty.")]
    keys = files(import_model(model, store, tmp_path))[1].metadata
    assert (keys["general.license"], keys["general.license.name"]) == ("other", "My own licence")


def test_names_of_the_files(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    names = {
        "llama3.2-vision:11b": "llama3.2-vision-11b",
        "llama3.2-vision:11b-instruct-q4_K_M": "llama3.2-vision-11b-instruct",
        "me/eyes:fp16": "eyes",
        "example.org:5000/me/eyes:v2": "eyes-v2",
    }
    model = ollama_store.build(*tiny, "G3")
    for name, expected in names.items():
        store.add_model(model, name)
        planned = plan_conversion(f"ollama:{name}", tmp_path)
        assert [file.path.name for file in planned.files] == [f"{expected}-Q8_0.gguf", f"mmproj-{expected}-F16.gguf"]
    assert plan_conversion("ollama:me/eyes:fp16", tmp_path, name="mine").name == "mine"


def test_shards_and_the_mmproj_alone(tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path) -> None:
    store.add_model(ollama_store.build(*tiny, "G3"))
    planned = plan_conversion("ollama:llama3.2-vision", tmp_path, split_max_bytes=200_000)
    assert len(planned.text) > 2
    assert sum(len(file.tensors) for file in planned.text) == len(files(tiny[1])[0].tensors)
    alone = plan_conversion("ollama:llama3.2-vision", tmp_path, mmproj_only=True)
    assert [file.path.name for file in alone.files] == ["mmproj-llama3.2-vision-F16.gguf"]


def test_a_damaged_blob_leaves_nothing_behind(
    tiny: tuple[Path, Pair], store: ollama_store.Store, tmp_path: Path
) -> None:
    store.add_model(ollama_store.build(*tiny, "G3"))
    blob = store.layer("model")
    raw = bytearray(blob.read_bytes())
    raw[-40] ^= 1  # in the data: nothing but the digest can tell
    blob.write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"{blob.name} is damaged: its SHA-256 is .*ollama pull"):
        pyvllama.convert("ollama:llama3.2-vision", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(CheckpointError, match="damaged"):  # the mmproj alone checks it as well
        write_files(plan_conversion("ollama:llama3.2-vision", tmp_path / "out", mmproj_only=True).files)


class TestGates:
    def test_every_bf16_gate_below_seven(self) -> None:
        bits = np.arange(1 << 16, dtype=np.uint32) << 16
        gates = bits.view(np.float32)
        gates = gates[np.abs(gates) < 7]
        with np.errstate(under="ignore"):
            assert all(invert_tanh(np.tanh(g)) == g for g in gates[::7])

    def test_error_of_other_gates(self) -> None:
        rng = np.random.RandomState(0)
        for g in rng.uniform(-8, 8, 2000).astype(np.float32):
            value = np.tanh(g)
            error = abs(np.tanh(np.float64(invert_tanh(value))) - np.float64(value))
            assert error <= 4 * np.spacing(np.abs(value))

    @pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
    def test_ends_and_zero_are_met_exactly(self, value: float) -> None:
        assert np.tanh(invert_tanh(np.float32(value))) == np.float32(value)
