"""Embeddings and lm_heads of other sizes than the original's: cut, enlarged, tied."""

import json

import factories
import numpy as np
import pytest
from tiny_configs import CONFIGS

from pyvllama.conversion import convert
from pyvllama.conversion.pipeline import plan_conversion
from pyvllama.errors import CheckpointError
from pyvllama.gguf_file import GGUFFile

EMBED, HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
N = CONFIGS["small"].vocab_size  # 128256 of the real model
IMAGE = CONFIGS["small"].image_token


def resized(values, n_rows):
    """The first rows, or rows added that are unlike all others."""
    more = 100 + np.arange(max(0, n_rows - len(values)), dtype=np.float32)[:, None] + np.zeros_like(values[:1])
    return np.concatenate([values[:n_rows], more])


def write(tmp_path, n_embed, n_head, *, vocab_size=N, tied=False, **config):
    def edit(name, values):
        if name == EMBED:
            return resized(values, n_embed)
        if name == HEAD:
            return None if n_head is None else resized(values, n_head)
        return values

    directory = factories.write_checkpoint(tmp_path / "model", "small", edit=edit)
    path = directory / "config.json"
    values = json.loads(path.read_text())
    values["text_config"] |= {"vocab_size": vocab_size, "tie_word_embeddings": tied}
    path.write_text(json.dumps(values | config))
    return directory


def converted(directory, tmp_path):
    pair = convert(directory, tmp_path / "out", text_type="f32", mmproj_type="f32")
    return GGUFFile(pair.text), GGUFFile(pair.mmproj)


def filler(directory):
    tokens = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    return max(t["id"] for t in tokens if "reserved_special" in t["content"])


@pytest.mark.parametrize(
    ("n_embed", "n_head", "vocab_size", "expected"),
    [
        (N + 8, N, N, N),  # as it was made
        (N + 1, N, N, N),  # cut to the tokenizer: 128257
        (N + 5, N, N, N),
        (N + 1, N + 1, N + 1, N + 1),  # resize_token_embeddings(len(tokenizer))
        (N + 1, N + 1, N, N + 1),  # the same, and config.json forgotten
        (N + 8, N + 8, N + 8, N + 8),  # 128264 both
        (N + 64, N + 64, N + 64, N + 64),  # rounded up
        (N + 40, N, N, N + 32),  # the embedding alone enlarged
        (N + 40, N + 20, N + 20, N + 32),
        (N + 8, N, N + 8, N),  # config.json counts the embedding's rows
    ],
)
def test_sizes(n_embed, n_head, vocab_size, expected, tmp_path):
    directory = write(tmp_path, n_embed, n_head, vocab_size=vocab_size)
    text, mmproj = converted(directory, tmp_path)
    assert len(text.metadata["tokenizer.ggml.tokens"]) == text.metadata["llama.vocab_size"] == expected + 8
    assert mmproj.metadata["clip.mllama.text.vocab_size"] == expected
    shapes = factories.tensor_shapes(CONFIGS["small"])
    values = {name: factories.tensor_values(CONFIGS["small"], name, shapes[name]) for name in (EMBED, HEAD)}
    embed, head = resized(values[EMBED], n_embed), resized(values[HEAD], n_head)
    token_embd, output = text.f32("token_embd.weight"), text.f32("output.weight")
    assert token_embd.shape[0] == output.shape[0] == expected + 8
    unused = filler(directory)
    assert np.array_equal(token_embd[:n_embed], embed)
    assert (token_embd[n_embed:] == embed[unused]).all()
    own = np.arange(n_head) != IMAGE
    assert np.array_equal(output[:n_head][own], head[own])
    assert (output[n_head:] == head[unused]).all()
    assert (output[IMAGE] == head[unused]).all(), "the image token must not be an answer"
    assert np.array_equal(mmproj.f32("mm.image_token_embd.weight"), embed[IMAGE])


def test_another_size_is_noted(tmp_path):
    directory = write(tmp_path, N + 40, N + 20)
    sizes = f"the embedding has {N + 40} rows and the output {N + 20}, where vocab_size = {N}"
    assert [note for note in plan_conversion(directory, tmp_path).notes if sizes in note]
    assert not plan_conversion(write(tmp_path / "usual", N + 8, N), tmp_path).notes


@pytest.mark.parametrize("n_embed", [N + 1, N + 8, N + 40])
@pytest.mark.parametrize("n_head", [None, N])
def test_tied(n_embed, n_head, tmp_path):
    """The output is the embedding, whether or not the file has an lm_head of its own."""
    text, mmproj = converted(write(tmp_path, n_embed, n_head, tied=True), tmp_path)
    token_embd, output = text.f32("token_embd.weight"), text.f32("output.weight")
    assert token_embd.shape == output.shape
    assert np.array_equal(output[:N], token_embd[:N])
    assert mmproj.metadata["clip.mllama.text.vocab_size"] == max(N, n_embed - 8)


def test_an_image_token_within_the_vocabulary(tmp_path):
    """128256 rows in all do, where config.json names one of them for images."""
    directory = write(tmp_path, N, N, image_token_index=N - 3)
    text, mmproj = converted(directory, tmp_path)
    assert mmproj.metadata["clip.mllama.image_token_id"] == N - 3
    row = text.f32("token_embd.weight")[N - 3]
    assert np.array_equal(mmproj.f32("mm.image_token_embd.weight"), row)


@pytest.mark.parametrize("n_rows", [N + 1, N + 64])
def test_a_resized_model_sees_pictures(n_rows, tmp_path, tiny_pair):
    """Its logits are those of the original, whose weights it has, but for the rows that were added."""
    import pyvllama

    directory = write(tmp_path, n_rows, n_rows, vocab_size=n_rows)
    pair = pyvllama.convert(directory, tmp_path / "out", text_type="f32", mmproj_type="f32")
    picture = np.arange(50 * 60 * 3, dtype=np.uint8).reshape(50, 60, 3)
    part = [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]
    logits = []
    for path in (pair.text, tiny_pair("small").text):
        with pyvllama.load(path, n_ctx=256, n_threads=2) as llm:
            logits.append(llm.logits([{"role": "user", "content": part}]))
    assert logits[0].shape[1] == n_rows
    np.testing.assert_allclose(logits[0][:, :N], logits[1][:, :N], atol=1e-5)  # other kernels for other row counts


def without_image_token(directory):
    """As tokenizers of text models are: 128256 tokens."""
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["id"] < N]
    path.write_text(json.dumps(tokenizer))


def test_a_tokenizer_that_knows_fewer_tokens(tmp_path):
    directory = write(tmp_path, N + 8, N)
    without_image_token(directory)
    text, _ = converted(directory, tmp_path)
    assert text.metadata["tokenizer.ggml.tokens"][N] == f"[PAD{N}]"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_embed": N, "n_head": N}, rf"has {N} rows, so none for the image token {N}.*base model's embed_tokens"),
        ({"n_embed": N, "n_head": None, "tied": True}, "none for the image token"),
        ({"n_embed": N + 1, "n_head": N + 8}, rf"embed_tokens has {N + 1} rows, but lm_head has {N + 8}"),
        (
            {"n_embed": N + 1, "n_head": None, "tied": True, "vocab_size": N + 8},
            rf"embed_tokens has {N + 1} rows, but vocab_size is {N + 8}",
        ),
        ({"n_embed": N + 8, "n_head": None}, "missing: language_model.lm_head.weight"),
        ({"n_embed": N + 1, "n_head": 5}, r"lm_head\.weight: shape \[5, 128\]"),
    ],
)
def test_what_cannot_be_converted(sizes, message, tmp_path):
    directory = write(tmp_path, **sizes)
    with pytest.raises(CheckpointError, match=message):
        converted(directory, tmp_path)
    assert not (tmp_path / "out").exists()
