"""Text models in shards: written as llama.cpp's, read by it and by us."""

import shutil

import numpy as np
import pytest

import pyvllama
from pyvllama._runtime import llama_cpp
from pyvllama.conversion import convert
from pyvllama.conversion.splitting import parse_size
from pyvllama.errors import ConfigError, FormatError, ModelNotFound
from pyvllama.gguf_file import GGUFFile, pairing_hash


@pytest.fixture(scope="module")
def split(module_path, pocket_checkpoint):
    """The pocket model in shards of at most 1.5 MB."""
    return convert(pocket_checkpoint, module_path, text_type="q8_0", mmproj_type="q8_0", split_max_bytes=1_500_000)


def test_names_and_sizes(split):
    shards = sorted(split.text.parent.glob("pocket*.gguf"))
    n = len(shards)
    assert n > 2
    assert [p.name for p in shards] == [f"pocket-vllama-Q8_0-{i + 1:05d}-of-{n:05d}.gguf" for i in range(n)]
    assert split.text == shards[0]
    for i, path in enumerate(shards):
        shard = GGUFFile(path, alone=True)
        assert (shard.metadata["split.no"], shard.metadata["split.count"]) == (i, n)
        assert sum(t.n_bytes for t in shard.tensors.values()) <= 1_500_000
        assert ("tokenizer.ggml.tokens" in shard.metadata) == (i == 0)


def test_the_same_tensors_as_in_one_file(split, pocket_pairs):
    ours, whole = GGUFFile(split.text), GGUFFile(pocket_pairs("q8_0", "q8_0").text)
    assert list(ours.tensors) == list(whole.tensors)
    assert ours.metadata["split.tensors.count"] == len(whole.tensors)
    for name in whole.tensors:
        assert np.array_equal(ours.raw(name), whole.raw(name)), name
    assert pairing_hash(ours) == pairing_hash(whole)


def test_llama_cpp_reads_it(split):
    llm = llama_cpp.Llama(str(split.text), n_ctx=32, n_threads=2, verbose=False)
    assert llm.create_completion("hello", max_tokens=2, temperature=0)["choices"][0]["text"] is not None
    llm.close()


def test_a_chat_with_it(split, samples):
    qa = samples[0]["qa"][0]
    content = [{"type": "image", "image": samples[0]["path"]}, {"type": "text", "text": qa["question"]}]
    with pyvllama.load(split.text, n_threads=2) as llm:
        answer = llm.chat([{"role": "user", "content": content}], temperature=0)
    assert answer["choices"][0]["message"]["content"] == qa["expected"]


def test_shards_that_are_not_all_there(split, tmp_path):
    shards = sorted(split.text.parent.glob("pocket*.gguf"))
    for path in shards[:-1]:
        shutil.copy(path, tmp_path)
    with pytest.raises(ModelNotFound, match=f"{shards[-1].name} is missing: .* split into {len(shards)} files"):
        GGUFFile(tmp_path / shards[0].name)
    with pytest.raises(FormatError, match="this is shard 00002; name the first"):
        GGUFFile(shards[1])
    shutil.copy(shards[1], tmp_path / shards[-1].name)
    with pytest.raises(FormatError, match="not shard"):
        GGUFFile(tmp_path / shards[0].name)
    shutil.copy(shards[0], tmp_path / "renamed.gguf")
    with pytest.raises(FormatError, match="must be called NAME-00001-of"):
        GGUFFile(tmp_path / "renamed.gguf")


def test_one_shard_is_no_shard(tiny_checkpoint, tmp_path):
    pair = convert(tiny_checkpoint("small"), tmp_path, split_max_bytes=10**9)
    assert pair.text.name == "tiny-small-Q4_K_M.gguf"
    assert "split.count" not in GGUFFile(pair.text).metadata


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("2G", 2 * 10**9), ("500M", 5 * 10**8), ("1.5 GB", 15 * 10**8), ("7", 7)]
)
def test_sizes(text, n_bytes):
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "2X", "0", "1e9", "nan"])
def test_sizes_that_are_none(text):
    with pytest.raises(ConfigError, match="is no size"):
        parse_size(text)
