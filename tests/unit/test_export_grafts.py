"""Exports of a text model that is not the mmproj's own: they work, or are refused."""

import json
import struct

import gguf_bytes
import numpy as np
import pytest
from exports import assert_same_tensors, changed, leaves_nothing, load, strings, u32

import pyvllama
from pyvllama.conversion import checkpoint_export, convert, export
from pyvllama.conversion.checkpoint import Checkpoint, to_f32
from pyvllama.errors import FormatError
from pyvllama.gguf_file import GGUFFile

EMBED = "language_model.model.embed_tokens.weight"
N = 320  # tokens of the small model's lm_head


@pytest.fixture
def pair(tiny_pair):
    return tiny_pair("small")


def cut_array(payload, n):
    kind, _ = struct.unpack_from("<IQ", payload)
    at = 12
    for _ in range(n):
        at += 8 + struct.unpack_from("<Q", payload, at)[0] if kind == gguf_bytes.STRING else 4
    return struct.pack("<IQ", kind, n) + payload[12:at]


def cut_to_lm_head(g):
    """As somebody else's Llama 3.1: no image token, no padding, no template for images."""
    for name in ("token_embd.weight", "output.weight"):
        tensor = g.tensor(name)
        tensor.data = tensor.data[: len(tensor.data) // tensor.dims[1] * N]
        tensor.dims[1] = N
    for key in g.keys:
        if key.name in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
            key.payload = cut_array(key.payload, N)
    g.set("llama.vocab_size", gguf_bytes.U32, struct.pack("<I", N))
    g.set("tokenizer.chat_template", gguf_bytes.STRING, gguf_bytes.string("no pictures"))


@pytest.fixture
def llama31(pair, tmp_path):
    return changed(pair.text, tmp_path, cut_to_lm_head)


def test_a_graft_is_the_whole_model(llama31, pair, tiny_checkpoint, tmp_path):
    """The image token, its row and its chat template come from the mmproj."""
    out = export(llama31, tmp_path / "out", mmproj=pair.mmproj)
    source, ours = Checkpoint(tiny_checkpoint("small")), Checkpoint(out)
    assert ours.tensors.keys() == source.tensors.keys()
    for name, t in source.tensors.items():
        rows = np.arange(t.n_rows if name != EMBED else N + 1)  # behind the image token's there are fillings
        assert (ours.tensors[name].type, ours.tensors[name].shape) == (t.type, t.shape), name
        assert np.array_equal(ours.tensors[name].rows(rows), t.rows(rows)), name
    assert load(out, "tokenizer.json")["added_tokens"][-1]["content"] == "<|image|>"
    assert load(out, "chat_template.json") == load(tiny_checkpoint("small"), "chat_template.json")
    again = convert(out, tmp_path / "again", text_type="f32", mmproj_type="f32", name="tiny-small")
    assert again.mmproj.read_bytes() == pair.mmproj.read_bytes()
    tokens = GGUFFile(pair.text).metadata["tokenizer.ggml.tokens"]
    assert GGUFFile(again.text).metadata["tokenizer.ggml.tokens"] == tokens


def test_a_graft_of_another_type(pair, tiny_pair, tmp_path):
    """A BF16 text model and an F32 mmproj: the image token's row is rounded to the embedding's type."""
    text = changed(tiny_pair("small", "bf16").text, tmp_path, cut_to_lm_head)
    row = GGUFFile(pair.mmproj).f32("mm.image_token_embd.weight")
    embed = Checkpoint(export(text, tmp_path / "out", mmproj=pair.mmproj)).tensors[EMBED]
    assert embed.type == "bf16"
    np.testing.assert_allclose(to_f32(embed.rows(np.arange(N, N + 8))), np.tile(row, (8, 1)), rtol=2**-8)


def test_a_graft_on_other_weights_says_so(pair, tmp_path):
    def change(g):
        norm = g.tensor("blk.0.attn_norm.weight")
        norm.data = (np.frombuffer(norm.data, np.float32) * np.float32(2)).tobytes()

    text = changed(pair.text, tmp_path, change)
    (note,) = checkpoint_export.plan_export(text, mmproj=pair.mmproj).notes
    assert "was made with other text weights" in note
    assert checkpoint_export.plan_export(pair.text).notes == ()
    out = Checkpoint(export(text, tmp_path / "out", mmproj=pair.mmproj))
    norm = out.tensors["language_model.model.layers.0.input_layernorm.weight"]
    assert np.array_equal(norm.rows(np.arange(1))[0], GGUFFile(text).f32("blk.0.attn_norm.weight"))


def test_a_text_model_whose_image_token_is_an_ordinary_one(llama31, pair, tmp_path):
    mmproj = changed(pair.mmproj, tmp_path, u32("clip.mllama.image_token_id", N - 3))
    with leaves_nothing(tmp_path / "out", FormatError, match="no rows behind its 320 tokens"):
        export(llama31, tmp_path / "out", mmproj=mmproj)


def test_a_text_model_with_another_token_in_the_images_place(pair, tmp_path):
    def change(g):
        tokens = list(GGUFFile(pair.text).metadata["tokenizer.ggml.tokens"])
        tokens[N] = "<|im_start|>"
        g.set("tokenizer.ggml.tokens", gguf_bytes.ARRAY, strings(*tokens))

    with leaves_nothing(tmp_path / "out", FormatError, match=r"token 320 is '<\|im_start\|>'.*cannot have both"):
        export(changed(pair.text, tmp_path, change), tmp_path / "out", mmproj=pair.mmproj)


def test_an_image_token_under_another_id(pair, tmp_path):
    def change(g):
        cut_to_lm_head(g)
        tokens = GGUFFile(pair.text).metadata["tokenizer.ggml.tokens"][:N]
        tokens[310] = "<|image|>"
        g.set("tokenizer.ggml.tokens", gguf_bytes.ARRAY, strings(*tokens))

    text = changed(pair.text, tmp_path, change)
    with leaves_nothing(tmp_path / "out", FormatError, match=r"'<\|image\|>' is token 310"):
        export(text, tmp_path / "out", mmproj=pair.mmproj)


def test_the_bundled_model(tmp_path):
    """Quantized, as it is: its rounded weights make a checkpoint whose model gives the same answers."""
    from pyvllama.locate import pocket_pair

    pair = pocket_pair()
    out = export(pair.text, tmp_path / "out", dequantize=True)
    again = convert(out, tmp_path / "again", text_type="bf16", mmproj_type="bf16")
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert_same_tensors(export(again.text, tmp_path / "second"), out)
    with pyvllama.load(again.text, n_ctx=64, n_threads=1) as llm:
        assert llm.chat([{"role": "user", "content": "Hi"}], max_tokens=4)["choices"][0]["message"]["content"]
