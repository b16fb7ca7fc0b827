"""Grafting: an mmproj on a text GGUF that knows no image token, as Llama 3.1's do not."""

import struct
from pathlib import Path

import gguf_bytes
import numpy as np
import pytest
from gguf_bytes import Gguf
from grafts import N_VOCAB, cut_array, cut_to_lm_head, with_own_tokens, without_image_token

import pyvllama
from pyvllama.errors import FormatError

EXACT = {"kv_type": "f32", "cross_kv_type": "f32", "flash_attn": False}


@pytest.fixture(scope="module")
def llama31(pocket_pair, module_path) -> Path:
    return without_image_token(pocket_pair.text, module_path / "Own-8B-F32.gguf")


def messages(samples):
    content = [
        {"type": "image", "image": samples[0]["path"]},
        {"type": "text", "text": "Describe the image."},
        {"type": "image", "image": samples[3]["path"]},
        {"type": "image", "image": samples[1]["path"]},
        {"type": "text", "text": "And these?"},
    ]
    return [{"role": "user", "content": content}]


def test_logits_are_those_of_the_pair(pocket_pair, llama31, samples):
    """The image token's row comes by way of an embedding instead of the table: the same numbers, bit for bit."""
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, n_ctx=256, n_threads=1, **EXACT) as llm:
        want, answer = llm.logits(messages(samples)), llm.chat(messages(samples), temperature=0, max_tokens=12)
    with pyvllama.load(llama31, pocket_pair.mmproj, n_ctx=256, n_threads=1, **EXACT) as llm:
        got, grafted = llm.logits(messages(samples)), llm.chat(messages(samples), temperature=0, max_tokens=12)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.sqrt(np.mean(want**2)))
    assert grafted["choices"][0]["message"] == answer["choices"][0]["message"]
    assert grafted["usage"] == answer["usage"]


LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + "
    "'<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def test_other_peoples_template(pocket_pair, llama31, tmp_path, samples):
    """A template for texts alone is the one that is used, and images have their place in it."""

    def change(g: Gguf) -> None:
        g.set("tokenizer.chat_template", gguf_bytes.STRING, gguf_bytes.string(LLAMA3))

    text = gguf_bytes.rewrite(llama31, tmp_path / "Own-8B-F32.gguf", change)
    question = messages(samples)
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, n_ctx=256, n_threads=1, **EXACT) as llm:
        want = llm.logits(question)
    with pyvllama.load(text, pocket_pair.mmproj, n_ctx=256, n_threads=1, **EXACT) as llm:
        assert llm.model.template.source == LLAMA3
        got = llm.logits(question)  # pocket's template writes the same
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.sqrt(np.mean(want**2)))


@pytest.mark.parametrize("n_more", [1, 5])
def test_a_text_model_with_tokens_of_its_own(pocket_pair, tmp_path, samples, n_more):
    """They stand where the pair has its image token: the image's row is the mmproj's all the same, and they may be
    said.
    """
    text = with_own_tokens(pocket_pair.text, tmp_path / "Own-8B-F32.gguf", n_more)
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, n_ctx=256, n_threads=1, **EXACT) as llm:
        want = llm.logits(messages(samples))
    with pyvllama.load(text, pocket_pair.mmproj, n_ctx=256, n_threads=1, **EXACT) as llm:
        assert llm.model.image_token == N_VOCAB + n_more
        got = llm.logits(messages(samples))
    assert got.shape[1] == N_VOCAB + n_more
    with pytest.raises(FormatError, match="different vocabularies"):
        pyvllama.evaluate(text, pocket_pair.text, [], mmproj=pocket_pair.mmproj)
    np.testing.assert_allclose(got[:, :N_VOCAB], want, rtol=0, atol=1e-5 * np.sqrt(np.mean(want**2)))


def test_another_fine_tune_of_the_same_shape_is_a_graft(pocket_pair, tmp_path, samples):
    """Other norms, another pairing hash: allowed, and the pictures still reach the text."""

    def change(g: Gguf) -> None:
        norm = g.tensor("blk.0.attn_norm.weight")
        norm.data = (np.frombuffer(norm.data, np.float32) * np.float32(1.01)).tobytes()

    text = gguf_bytes.rewrite(pocket_pair.text, tmp_path / "FineTune-F32.gguf", change)
    with pyvllama.load(text, pocket_pair.mmproj, n_ctx=256, n_threads=1) as llm:
        assert llm.model.is_graft
        assert np.isfinite(llm.logits(messages(samples))).all()
    with pyvllama.load(pocket_pair.text, pocket_pair.mmproj, n_ctx=256, n_threads=1) as llm:
        assert not llm.model.is_graft


@pytest.mark.parametrize(
    ("key", "value"), [("llama.block_count", 4), ("llama.attention.head_count_kv", 4), ("llama.embedding_length", 128)]
)
def test_shapes_that_do_not_fit_are_refused_by_name(pocket_pair, tmp_path, key, value):
    """Both files and both values are in the message."""

    def change(g: Gguf) -> None:
        g.set(key, gguf_bytes.U32, struct.pack("<I", value))

    text = gguf_bytes.rewrite(pocket_pair.text, tmp_path / "Other-F32.gguf", change)
    with pytest.raises(FormatError) as caught:
        pyvllama.load(text, pocket_pair.mmproj)
    for word in ("Other-F32.gguf", pocket_pair.mmproj.name, key, str(value)):
        assert word in str(caught.value)


def test_a_vocabulary_smaller_than_lm_head_is_refused(pocket_pair, tmp_path):
    def change(g: Gguf) -> None:
        cut_to_lm_head(g)
        for name in ("token_embd.weight", "output.weight"):
            tensor = g.tensor(name)
            tensor.data = tensor.data[: len(tensor.data) // 2]
            tensor.dims[1] //= 2
        for key in g.keys:
            if key.name.startswith("tokenizer.ggml.token") and key.kind == gguf_bytes.ARRAY:
                key.payload = cut_array(key.payload, N_VOCAB // 2)

    text = gguf_bytes.rewrite(pocket_pair.text, tmp_path / "Small-F32.gguf", change)
    with pytest.raises(FormatError, match="640"):
        pyvllama.load(text, pocket_pair.mmproj)
