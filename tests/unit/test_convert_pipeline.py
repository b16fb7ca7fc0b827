import ctypes
import json

import factories
import numpy as np
import pytest
from tiny_configs import CONFIGS

from pyvllama._runtime import llama_cpp, set_fields
from pyvllama.conversion import convert, typed_rows
from pyvllama.gguf_file import GGUFFile
from pyvllama.types import Pair

LLAMA_FTYPES = {"f16": 1, "q8_0": 7, "q4_k_m": 15, "bf16": 32}


def contents(directory):
    """Everything below a directory, hidden files too."""
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*"))


def convert_small(checkpoint, out_dir, **options):
    return convert(checkpoint, out_dir, **({"text_type": "f32", "mmproj_type": "f32"} | options))


def llama_quantize(source, target, ftype):
    """llama.cpp's own quantizer."""
    params = llama_cpp.llama_model_quantize_default_params()
    set_fields(params, ftype=ftype, nthread=2)
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0


def assert_equals_llama_quantize(f32, ours, ftype, tmp_path):
    llama_quantize(f32, tmp_path / "theirs.gguf", ftype)
    a, b = GGUFFile(ours), GGUFFile(tmp_path / "theirs.gguf")
    assert a.tensors.keys() == b.tensors.keys()
    for name, info in a.tensors.items():
        assert info.type == b.tensors[name].type, name
        assert np.array_equal(a.raw(name), b.raw(name)), name
    assert a.metadata == b.metadata


@pytest.mark.parametrize("text_type", LLAMA_FTYPES)
def test_pocket_equals_llama_cpps_quantizer(text_type, pocket_pairs, tmp_path):
    ours = pocket_pairs(text_type, "f32").text
    assert_equals_llama_quantize(pocket_pairs("f32", "f32").text, ours, LLAMA_FTYPES[text_type], tmp_path)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("text_type", ["q8_0", "q4_k_m"])
def test_tiny_models_equal_llama_cpps_quantizer(name, text_type, tiny_pair, tmp_path):
    """Rows of any length: Q4_K where they fit, its stand-ins and F16 where they do not."""
    ours = tiny_pair(name, text_type).text
    assert_equals_llama_quantize(tiny_pair(name).text, ours, LLAMA_FTYPES[text_type], tmp_path)


def test_80_layers_equal_llama_cpps_quantizer(tmp_path):
    """llama.cpp takes 80 layers with grouped heads for a 70B model: so does the 90B's text half."""
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    layers = {"num_hidden_layers": 81, "cross_attention_layers": (40,)}
    checkpoint = factories.write_checkpoint(tmp_path / "model", "small", **sizes, **layers)
    f32 = convert_small(checkpoint, tmp_path / "f32")
    ours = convert_small(checkpoint, tmp_path / "q4", text_type="q4_k_m")
    assert "q5_K" in {t.type for t in GGUFFile(ours.text).tensors.values()}
    assert_equals_llama_quantize(f32.text, ours.text, 15, tmp_path)


def test_cross_layers_get_the_text_mixture(pocket_pairs):
    """Counted over the cross-attention layers: of three, 2 // 8 = 0 at the front and the third have more bits."""
    tensors = GGUFFile(pocket_pairs("q4_k_m", "q8_0").mmproj).tensors
    types = {
        name: tensors[f"xattn.blk.{name}.weight"].type for name in ("1.attn_v", "3.attn_v", "6.attn_v", "6.attn_q")
    }
    assert types == {"1.attn_v": "q4_K", "3.attn_v": "q4_K", "6.attn_v": "q6_K", "6.attn_q": "q4_K"}
    assert tensors["xattn.blk.6.ffn_down.weight"].type == "q6_K"
    assert tensors["xattn.blk.6.attn_norm.weight"].type == tensors["xattn.blk.6.gate_attn"].type == "f32"
    assert tensors["mm.0.weight"].type == tensors["v.global.blk.1.ffn_up.weight"].type == "q8_0"
    tables = ("v.patch_embd.weight", "v.position_embd.weight", "v.tile_position_embd.weight")
    assert {tensors[name].type for name in tables} == {"bf16"}
    assert tensors["mm.image_token_embd.weight"].type == tensors["v.class_embd"].type == "f32"


def test_cross_type_of_its_own(pocket_pairs):
    tensors = GGUFFile(pocket_pairs("q4_k_m", "q4_k", cross_type="bf16").mmproj).tensors
    assert tensors["xattn.blk.6.attn_v.weight"].type == "bf16"
    assert tensors["mm.0.weight"].type == "q4_K"


def test_stock_llama_cpp_generates(pocket_pairs):
    for text_type in ("f32", "q4_k_m"):
        path = pocket_pairs(text_type, "f32").text
        llm = llama_cpp.Llama(str(path), n_ctx=64, n_threads=2, verbose=False)
        answer = llm.create_chat_completion([{"role": "user", "content": "hello"}], max_tokens=8, temperature=0)
        assert answer["choices"][0]["message"]["content"]
        llm.close()


def test_file_names_and_general_keys(tmp_path, tiny_checkpoint):
    pair = convert(tiny_checkpoint("small"), tmp_path / "new" / "directory", text_type="Q4_K_M", mmproj_type="BF16")
    assert pair == Pair(
        text=tmp_path / "new/directory/tiny-small-Q4_K_M.gguf",
        mmproj=tmp_path / "new/directory/mmproj-tiny-small-BF16.gguf",
    )
    assert contents(tmp_path / "new/directory") == ["mmproj-tiny-small-BF16.gguf", "tiny-small-Q4_K_M.gguf"]
    text, mmproj = GGUFFile(pair.text).metadata, GGUFFile(pair.mmproj).metadata
    assert (text["general.architecture"], text["general.type"], text["general.file_type"]) == ("llama", "model", 15)
    assert (mmproj["general.architecture"], mmproj["general.type"], mmproj["general.file_type"]) == (
        "clip",
        "mmproj",
        32,
    )
    assert text["general.name"] == mmproj["general.name"] == "tiny-small"
    assert text["general.sampling.temp"] == pytest.approx(0.6)
    assert text["general.sampling.top_p"] == pytest.approx(0.9)


def test_permissions_are_those_of_any_new_file(tmp_path, tiny_checkpoint):
    pair = convert_small(tiny_checkpoint("small"), tmp_path)
    (tmp_path / "plain").write_bytes(b"")
    assert pair.text.stat().st_mode == pair.mmproj.stat().st_mode == (tmp_path / "plain").stat().st_mode


MMPROJ_KEYS = {
    "clip.has_vision_encoder": True,
    "clip.projector_type": "mllama",
    "clip.vision.image_size": 112,
    "clip.vision.patch_size": 14,
    "clip.vision.embedding_length": 256,
    "clip.vision.feed_forward_length": 1024,
    "clip.vision.block_count": 4,
    "clip.vision.attention.head_count": 4,
    "clip.vision.projection_dim": 256,
    "clip.mllama.format_version": 1,
    "clip.mllama.global_block_count": 2,
    "clip.mllama.max_num_tiles": 4,
    "clip.mllama.intermediate_layers_indices": [1, 2, 3],
    "clip.mllama.supported_aspect_ratios": [1, 1, 1, 2, 1, 3, 1, 4, 2, 1, 2, 2, 3, 1, 4, 1],
    "clip.mllama.cross_attention_layers": [1, 3, 6],
    "clip.mllama.text.block_count": 8,
    "clip.mllama.text.embedding_length": 256,
    "clip.mllama.text.feed_forward_length": 768,
    "clip.mllama.text.vocab_size": 1280,
    "clip.mllama.text.attention.head_count": 4,
    "clip.mllama.text.attention.head_count_kv": 2,
    "clip.mllama.image_token_id": 1280,
    "clip.mllama.preprocessor.resample": 2,
    "clip.mllama.preprocessor.rescale_factor": 0.00392156862745098,
}


def test_mmproj_keys(pocket_pair):
    metadata = GGUFFile(pocket_pair.mmproj).metadata
    assert {key: metadata[key] for key in MMPROJ_KEYS} == MMPROJ_KEYS
    assert metadata["clip.vision.image_mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert metadata["clip.vision.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert metadata["clip.mllama.text.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert "<|image|>" in metadata["clip.mllama.chat_template"]
    assert len(metadata["clip.mllama.pairing_hash"]) == 64


def test_greedy_models_say_so(pocket_pair):
    assert GGUFFile(pocket_pair.text).metadata["general.sampling.temp"] == 0.0


@pytest.mark.parametrize("options", [{"n_threads": 1}, {"n_threads": 3}])
@pytest.mark.parametrize("slice_elements", [1, 1000, 1 << 24])
def test_slices_and_threads_do_not_matter(options, slice_elements, tmp_path, tiny_checkpoint, tiny_pair, monkeypatch):
    monkeypatch.setattr(typed_rows, "_SLICE_ELEMENTS", slice_elements)
    types = {"text_type": "q4_k_m", "mmproj_type": "q8_0"}
    pair = convert(tiny_checkpoint("small"), tmp_path, **types, **options)
    expected = tiny_pair("small", "q4_k_m", "q8_0")
    assert pair.text.read_bytes() == expected.text.read_bytes()
    assert pair.mmproj.read_bytes() == expected.mmproj.read_bytes()


def test_layout_shards_and_file_names_do_not_matter(tmp_path, tiny_checkpoint, tiny_pair):
    other = tiny_checkpoint("small", layout="transformers5", n_shards=3)
    pair = convert_small(other, tmp_path, name="tiny-small")
    assert pair.text.read_bytes() == tiny_pair("small").text.read_bytes()
    assert pair.mmproj.read_bytes() == tiny_pair("small").mmproj.read_bytes()


@pytest.mark.reference
def test_what_transformers_5_saves(tmp_path, pocket_checkpoint, pocket_pair):
    """Loaded and saved again (other files, other spellings of the configuration), the result is the same."""
    import torch
    from transformers import AutoProcessor, MllamaForConditionalGeneration

    model = MllamaForConditionalGeneration.from_pretrained(pocket_checkpoint, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "saved")
    AutoProcessor.from_pretrained(pocket_checkpoint).save_pretrained(tmp_path / "saved")
    pair = convert_small(tmp_path / "saved", tmp_path / "out", name="pocket-vllama")
    for ours, expected in ((pair.text, pocket_pair.text), (pair.mmproj, pocket_pair.mmproj)):
        assert GGUFFile(ours).metadata == GGUFFile(expected).metadata
        assert ours.read_bytes() == expected.read_bytes()


def test_tied_embeddings(tmp_path):
    def untie(name, values):
        return None if name == "language_model.lm_head.weight" else values

    checkpoint = factories.write_checkpoint(tmp_path / "tied", "small", edit=untie)
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (checkpoint / "config.json").write_text(json.dumps(config))
    file = GGUFFile(convert_small(checkpoint, tmp_path / "out").text)
    n = CONFIGS["small"].vocab_size
    assert np.array_equal(file.f32("output.weight")[:n], file.f32("token_embd.weight")[:n])


def test_peak_memory_is_a_few_slices(tmp_path, tiny_checkpoint, monkeypatch):
    import tracemalloc

    layers = {"num_hidden_layers": 3, "cross_attention_layers": (1,), "intermediate_size": 32768}
    checkpoint = factories.write_checkpoint(tmp_path / "model", "small", **layers)
    biggest = 4 * 32768 * 128
    monkeypatch.setattr(typed_rows, "_SLICE_ELEMENTS", 1 << 16)
    tracemalloc.start()
    convert_small(checkpoint, tmp_path / "out", text_type="q8_0")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < biggest / 2


def test_progress_adds_up(tmp_path, tiny_checkpoint):
    calls = []
    pair = convert_small(tiny_checkpoint("small"), tmp_path, progress=lambda *call: calls.append(call))
    done = [c[0] for c in calls]
    assert done == sorted(done)
    assert {c[1] for c in calls} == {done[-1]}
    assert done[-1] == sum(t.n_bytes for p in (pair.text, pair.mmproj) for t in GGUFFile(p).tensors.values())
    assert any("blk.0.attn_q" in c[2] for c in calls)
