"""Meta's own checkpoints convert into the very bytes that the same weights in Hugging Face's form give."""

import json
import re
from dataclasses import replace

import meta_files
import numpy as np
import pytest

from pyvllama._runtime import llama_cpp
from pyvllama.conversion import convert
from pyvllama.conversion.checkpoint import Checkpoint
from pyvllama.conversion.meta import TABLE, MetaCheckpoint, is_meta_checkpoint
from pyvllama.conversion.meta_config import cross_attention_layers
from pyvllama.errors import CheckpointError, ConfigError, ModelNotFound
from pyvllama.gguf_file import GGUFFile

TOKEN_KEYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges", "tokenizer.chat_template", "clip.mllama.chat_template")


def convert_small(source, out_dir, **options):
    return convert(source, out_dir, **({"text_type": "f32", "mmproj_type": "f32", "name": "model"} | options))


@pytest.fixture(scope="module")
def hf(module_path):
    return meta_files.write_hf(module_path / "hf" / "model")


@pytest.fixture(scope="module")
def hf_pair(hf, module_path):
    return convert_small(hf, module_path / "hf-gguf")


@pytest.fixture(scope="module")
def meta_pair(module_path):
    source = meta_files.write_meta(module_path / "meta" / "model")
    return convert_small(source, module_path / "meta-gguf")


def assert_same_tensors(ours, theirs):
    for a, b in ((GGUFFile(ours.text), GGUFFile(theirs.text)), (GGUFFile(ours.mmproj), GGUFFile(theirs.mmproj))):
        assert [(t.name, t.shape, t.type) for t in a.tensors.values()] == [
            (t.name, t.shape, t.type) for t in b.tensors.values()
        ]
        for name in a.tensors:
            assert np.array_equal(a.raw(name), b.raw(name)), name


def test_the_tensors_are_those_of_the_hf_form(meta_pair, hf_pair):
    assert_same_tensors(meta_pair, hf_pair)


def test_the_metadata_are_those_of_the_hf_form(meta_pair, hf_pair):
    for kind in ("text", "mmproj"):
        ours, theirs = (dict(GGUFFile(getattr(pair, kind)).metadata) for pair in (meta_pair, hf_pair))
        for key in TOKEN_KEYS:
            assert (key in ours) == (key in theirs)
            ours.pop(key, None), theirs.pop(key, None)
        assert ours == theirs


@pytest.mark.parametrize("n_parts", [2])
@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_files_of_a_model_cut_for_several_gpus(n_parts, dtype, tmp_path):
    meta = meta_files.write_meta(tmp_path / "meta", n_parts=n_parts, dtype=dtype)
    hf = meta_files.write_hf(tmp_path / "hf", dtype=dtype)
    options = {"text_type": "q8_0", "mmproj_type": "bf16" if dtype == "BF16" else "f16"}
    assert_same_tensors(convert_small(meta, tmp_path, **options), convert_small(hf, tmp_path / "b", **options))


def test_rows_in_any_slices(hf, tmp_path):
    """What a conversion in small slices asks for: any rows, of tensors in parts too."""
    meta, theirs = MetaCheckpoint(meta_files.write_meta(tmp_path, n_parts=2)), Checkpoint(hf)
    assert meta.tensors.keys() == theirs.tensors.keys()
    for name, tensor in meta.tensors.items():
        other = theirs.tensors[name]
        assert (tensor.shape, tensor.type) == (other.shape, other.type), name
        n = tensor.n_rows
        for index in (np.arange(n), np.arange(n)[::-1], np.arange(n // 3, n - n // 4), np.array([n - 1, 0, n - 1])):
            assert np.array_equal(tensor.rows(index), other.rows(index)), name


@pytest.mark.reference
def test_files_that_torch_saves(tmp_path, hf_pair):
    """Parameters, an OrderedDict with its attributes, shared storages: as torch.save writes them."""
    import torch

    source = meta_files.write_meta(tmp_path / "meta")
    (source / "consolidated.00.pth").unlink()
    tensors = meta_files.meta_tensors(meta_files.CONFIG, meta_files.hf_tensors(meta_files.CONFIG))
    state = torch.nn.Module().state_dict()
    both = torch.from_numpy(np.concatenate([x.ravel() for x in list(tensors.values())[:2]]))
    for i, (name, values) in enumerate(tensors.items()):
        tensor = torch.from_numpy(values)
        if i < 2:
            tensor = both[: values.size] if i == 0 else both[-values.size :]
            tensor = tensor.view(values.shape)
        state[name] = torch.nn.Parameter(tensor) if i == 3 else tensor
    state["text_model.layers.0.attention._extra_state"] = None
    torch.save(state, source / "consolidated.pth")
    assert_same_tensors(convert_small(source, tmp_path), hf_pair)


def test_the_11b_and_90b_schedules():
    assert cross_attention_layers(32, 8) == (3, 8, 13, 18, 23, 28, 33, 38)
    assert cross_attention_layers(80, 20) == tuple(range(3, 100, 5))
    assert cross_attention_layers(6, 2) == (2, 6)


def test_the_table_knows_what_metas_code_makes():
    tensors = meta_files.meta_tensors(meta_files.CONFIG, meta_files.hf_tensors(meta_files.CONFIG))
    assert {re.sub(r"\.\d+\.", ".{i}.", name) for name in tensors} == TABLE.keys()


def test_text_is_cut_into_the_same_tokens(meta_pair, hf_pair):
    texts = [
        "A picture of a red square",
        " next to\n\n a blue circle: 0123456789!",
        "日本語 naïve 🦙\t\x00",
        "yesterday's",
    ]

    def tokens(path):
        llm = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
        found = [llm.tokenize(t.encode(), add_bos=True, special=False) for t in texts]
        llm.close()
        return found

    assert tokens(meta_pair.text) == tokens(hf_pair.text)


def test_special_tokens(meta_pair):
    metadata = GGUFFile(meta_pair.text).metadata
    tokens, vocab_size = metadata["tokenizer.ggml.tokens"], meta_files.CONFIG.vocab_size
    assert tokens[vocab_size] == "<|image|>"
    assert tokens[vocab_size - 1] == f"<|reserved_special_token_{16 - 11 + 1}|>"
    assert tokens[metadata["tokenizer.ggml.eos_token_id"]] == "<|eot_id|>"
    assert tokens[metadata["tokenizer.ggml.bos_token_id"]] == "<|begin_of_text|>"


def test_the_chat_template(meta_pair):
    from pyvllama.template import ChatTemplate

    template = ChatTemplate(GGUFFile(meta_pair.text).metadata["tokenizer.chat_template"], bos_token="<B>", eos_token="")
    messages = [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
    ]
    assert template.render(messages, add_generation_prompt=True) == (
        "<B><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n<|image|>What is it?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_which_directories_are_metas(hf, tmp_path):
    assert not is_meta_checkpoint(hf)
    assert not is_meta_checkpoint(tmp_path / "nothing")
    (tmp_path / "params.json").write_text("{}")
    assert is_meta_checkpoint(tmp_path)


def edit_params(directory, **changes):
    path = directory / "params.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_tensors(change):
    def damage(directory):
        tensors = meta_files.meta_tensors(meta_files.CONFIG, meta_files.hf_tensors(meta_files.CONFIG))
        change(tensors)
        meta_files.write_pth(directory / "consolidated.00.pth", tensors)

    return damage


VISION = "vision_model.vision_encoder."


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda d: (d / "params.json").unlink(), CheckpointError, r"lacks params\.json"),
        (lambda d: (d / "tokenizer.model").unlink(), CheckpointError, r"lacks tokenizer\.model"),
        (lambda d: (d / "consolidated.00.pth").unlink(), ModelNotFound, "neither|no config|lacks"),
        (lambda d: (d / "consolidated.00.pth").rename(d / "consolidated.01.pth"), CheckpointError, r"only parts \[1\]"),
        (lambda d: edit_params(d, dim=None, n_heads=None), ConfigError, "missing dim, n_heads|missing n_heads, dim"),
        (lambda d: edit_params(d, dim=64), CheckpointError, r"params\.json"),
        (lambda d: edit_params(d, n_layers=5), CheckpointError, "text_model.layers.5"),
        (lambda d: edit_params(d, vision_chunk_size=42), CheckpointError, "has 5 positions.*asks for 10"),
        (lambda d: edit_params(d, vision_max_num_chunks=2), CheckpointError, "vision_max_num_chunks is 2"),
        (
            edit_tensors(lambda t: t.pop("text_model.norm.weight")),
            CheckpointError,
            "missing: language_model.model.norm",
        ),
        (edit_tensors(lambda t: t.pop(VISION + "class_embedding")), CheckpointError, "lacks tensors.*text model"),
        (edit_tensors(lambda t: t.update(strange=np.zeros(3))), CheckpointError, "unknown: strange"),
        (
            edit_tensors(lambda t: t.update({VISION + "gated_positional_embedding": np.zeros((4, 3))})),
            CheckpointError,
            r"expected \[tiles, tiles",
        ),
        (
            edit_tensors(lambda t: t.update({VISION + "gated_positional_embedding": np.zeros((65, 65, 1))})),
            CheckpointError,
            "for 65 tiles; at most 64",
        ),
        (
            edit_tensors(lambda t: t.update({"text_model.tok_embeddings.weight": np.zeros((10**12, 0))})),
            CheckpointError,
            "lacks tensors.*text model.*\n  text_model.tok_embeddings.weight",
        ),
        (lambda d: (d / "tokenizer.model").write_bytes(b"\x08\x01 binary"), CheckpointError, "SentencePiece"),
        (lambda d: (d / "tokenizer.model").write_bytes(b"YQ== 0\n"), CheckpointError, "bytes have no token"),
        (lambda d: (d / "tokenizer.model").write_bytes(b"YQ== 1\n"), CheckpointError, "ranks 0 to 0"),
        (
            lambda d: (d / "tokenizer.model").write_bytes(meta_files.tokenizer_model(400)),
            CheckpointError,
            "do not fit into vocab_size = 320",
        ),
    ],
)
def test_damaged(damage, error, message, tmp_path):
    source = meta_files.write_meta(tmp_path / "meta")
    damage(source)
    if error is ModelNotFound:
        error = (ModelNotFound, CheckpointError)
    with pytest.raises(error, match=message):
        convert_small(source, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").iterdir()]


def test_parts_that_do_not_fit_together(tmp_path):
    source = meta_files.write_meta(tmp_path / "meta", n_parts=2)
    parts = meta_files.split_for(
        2, meta_files.meta_tensors(meta_files.CONFIG, meta_files.hf_tensors(meta_files.CONFIG))
    )
    name = "text_model.output.weight"
    meta_files.write_pth(source / "consolidated.01.pth", parts[1] | {name: parts[1][name][:, :-1]})
    with pytest.raises(CheckpointError, match=r"the parts of text_model\.output\.weight do not fit together"):
        MetaCheckpoint(source)
    meta_files.write_pth(source / "consolidated.01.pth", {k: v for k, v in parts[1].items() if k != name})
    with pytest.raises(CheckpointError, match=r"not every consolidated.*pth holds\n  text_model.output.weight"):
        MetaCheckpoint(source)


def test_a_vocabulary_size_of_minus_one_is_the_tokenizers(tmp_path):
    source = meta_files.write_meta(tmp_path / "meta")
    edit_params(source, vocab_size=-1)
    assert MetaCheckpoint(source).json("config.json")["text_config"]["vocab_size"] == meta_files.CONFIG.vocab_size


def test_other_head_counts(tmp_path):
    """No grouped heads: params.json may leave n_kv_heads out."""
    config = replace(meta_files.CONFIG, num_key_value_heads=4, rope_scaling=None)
    meta = meta_files.write_meta(tmp_path / "meta", config)
    edit_params(meta, n_kv_heads=None, use_scaled_rope=None)
    hf = meta_files.write_hf(tmp_path / "hf", config)
    assert_same_tensors(convert_small(meta, tmp_path), convert_small(hf, tmp_path / "b"))
