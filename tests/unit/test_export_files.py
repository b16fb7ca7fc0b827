"""The JSON files of an exported checkpoint, the keys that they come from, and the programs that read them."""

import dataclasses
import json
import shutil
import struct

import gguf_bytes
import numpy as np
import pytest
from exports import load, there_and_back
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_configs import CONFIGS, LLAMA3_ROPE

from pyvllama.config import Llama3Rope, MllamaConfig
from pyvllama.conversion import convert, export
from pyvllama.conversion.checkpoint import Checkpoint
from pyvllama.conversion.metadata import shortest_decimal
from pyvllama.conversion.rope_scaling import find_rope_scaling
from pyvllama.conversion.transforms import rope_factors
from pyvllama.conversion.vocab import read_vocabulary
from pyvllama.errors import FormatError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.json")


def change_json(directory, name, change):
    value = load(directory, name)
    change(value)
    (directory / name).write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture
def checkpoint(tmp_path, tiny_checkpoint):
    """A copy of a tiny checkpoint, free to be changed."""
    return shutil.copytree(tiny_checkpoint("small"), tmp_path / "checkpoint")


@pytest.fixture(scope="module")
def pocket_export(pocket_pairs, module_path):
    return export(pocket_pairs("bf16", "bf16").text, module_path / "pocket")


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "tokenizer_config.json", "special_tokens_map.json",
             "chat_template.json"],
)  # fmt: skip
def test_the_pockets_own_files(name, pocket_export, pocket_checkpoint):
    assert load(pocket_export, name) == load(pocket_checkpoint, name)


def test_the_pockets_other_files(pocket_export, pocket_checkpoint):
    """But for a flag of transformers, and for the spelling of merges."""
    generation = load(pocket_checkpoint, "generation_config.json")
    del generation["_from_model_config"]
    assert load(pocket_export, "generation_config.json") == generation
    ours, own = (load(d, "tokenizer.json") for d in (pocket_export, pocket_checkpoint))
    own["model"]["merges"] = [" ".join(pair) for pair in own["model"]["merges"]]
    assert ours == own


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_come_back(name, tiny_pair, tiny_checkpoint, tmp_path):
    exported = Checkpoint(export(tiny_pair(name).text, tmp_path / "out"))
    source = Checkpoint(tiny_checkpoint(name))
    ours, own = (MllamaConfig.from_hf_json(c.json("config.json")) for c in (exported, source))
    assert ours == own
    assert read_vocabulary(exported, ours.text) == read_vocabulary(source, own.text)


@pytest.mark.parametrize(
    "generation",
    [
        {},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        {"do_sample": False},
        {"do_sample": False, "temperature": 0.7, "top_p": 0.9},
        {"do_sample": False, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1},
    ],
)
def test_generation(generation, checkpoint, tmp_path):
    """The same bytes in GGUF again, and what was said without contradiction literally."""
    ids = {"eos_token_id": load(checkpoint, "generation_config.json")["eos_token_id"]}
    (checkpoint / "generation_config.json").write_text(json.dumps(generation | ids))
    exported = load(there_and_back(checkpoint, tmp_path, "f32"), "generation_config.json")
    assert exported["eos_token_id"] == ids["eos_token_id"]
    said = {key: value for key, value in exported.items() if "token_id" not in key}
    if generation.get("do_sample") is False:
        assert said == generation | ({"temperature": 1.0} if "temperature" in generation else {})
    else:
        assert said == generation | ({"do_sample": True} if generation else {})


@pytest.mark.parametrize("value", [1e-5, 1e-6, 0.6, 0.9, 500000.0, 10000.0, 0.48145466, 3.0])
def test_shortest_decimal(value):
    assert np.float32(shortest_decimal(float(np.float32(value)))) == np.float32(value)
    assert shortest_decimal(float(np.float32(value))) == pytest.approx(value, rel=3e-8)
    assert len(str(shortest_decimal(float(np.float32(value))))) <= len(str(value))


def test_other_means_than_clips(checkpoint, tmp_path):
    means = [0.5, 0.485, 0.1]
    change_json(checkpoint, "preprocessor_config.json", lambda p: p.update(image_mean=means, rescale_factor=1 / 127))
    exported = load(there_and_back(checkpoint, tmp_path, "f32"), "preprocessor_config.json")
    assert exported["image_mean"] == means
    assert exported["rescale_factor"] == 1 / 127


# --- rope scaling ---


def text_config(tiny_checkpoint, name="base", **text):
    config = load(tiny_checkpoint(name), "config.json")
    config["text_config"] |= text
    return MllamaConfig.from_hf_json(config).text


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("length", [16, 512, 8192])
@pytest.mark.parametrize("factor", [2.0, 4.0, 8.0, 16.0, 32.0])
def test_rope_scaling_is_found(factor, length, theta, tiny_checkpoint):
    """Or one that is the same: small heads have no wave between the two limits."""
    rope = LLAMA3_ROPE | {"factor": factor, "original_max_position_embeddings": length}
    config = text_config(tiny_checkpoint, rope_scaling=rope, rope_theta=theta, num_attention_heads=2)
    factors = rope_factors(config)
    found = find_rope_scaling(config, factors)
    assert found.factor == factor
    assert np.array_equal(rope_factors(dataclasses.replace(config, rope_scaling=found)), factors)


def test_rope_scaling_of_other_arithmetic(tiny_checkpoint):
    """llama.cpp's converter computes with other roundings; the last bits must not matter."""
    config = text_config(tiny_checkpoint)
    factors = rope_factors(config)
    assert find_rope_scaling(config, np.nextafter(factors, np.float32(np.inf))) == Llama3Rope(8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize(
    "spoil", [lambda f: f * 1.1, lambda f: f[:-1], lambda f: f * np.nan, lambda f: f * 0, np.negative]
)
def test_rope_factors_of_another_kind(spoil, tiny_checkpoint):
    config = text_config(tiny_checkpoint)
    assert find_rope_scaling(config, spoil(rope_factors(config)).astype(np.float32)) is None


def test_rope_factors_that_no_config_gives(tiny_pair, tmp_path):
    pair = tiny_pair("base")

    def change(g):
        t = g.tensor("rope_freqs.weight")
        t.data = (np.frombuffer(t.data, np.float32) * np.float32(1.5)).tobytes()

    text = gguf_bytes.rewrite(pair.text, tmp_path / "odd.gguf", change)
    with pytest.raises(FormatError, match=r"odd\.gguf: rope_freqs\.weight holds factors that no rope_scaling"):
        export(text, tmp_path / "out", mmproj=pair.mmproj)
    assert not (tmp_path / "out").exists()


# --- tokens ---


def test_added_tokens_of_all_kinds(checkpoint, tmp_path):
    """Ordinary words as added tokens, one that merges are made of, ids that nobody uses."""

    def change(tokenizer):
        merged = "".join(tokenizer["model"]["merges"][0])
        ordinary = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        tokenizer["added_tokens"] = [
            t for t in tokenizer["added_tokens"] if "reserved_special_token_4" not in t["content"]
        ]
        tokenizer["added_tokens"].append({"id": 321, "content": "a word of mine", **ordinary})
        tokenizer["added_tokens"].append({"id": tokenizer["model"]["vocab"][merged], "content": merged, **ordinary})

    change_json(checkpoint, "tokenizer.json", change)
    exported = there_and_back(checkpoint, tmp_path, "f32")
    ours, own = (load(d, "tokenizer.json") for d in (exported, checkpoint))
    assert ours["model"]["vocab"] == own["model"]["vocab"]
    by_id = {t["id"]: t for t in own["added_tokens"]}
    assert {t["id"]: t for t in ours["added_tokens"]} == by_id


def test_ends_of_its_own(checkpoint, tmp_path):
    """Tokens that llama.cpp does not know to be ends, in an order that is not that of their ids."""

    def rename(tokenizer):
        for t in tokenizer["added_tokens"]:
            t["content"] = {"<|eot_id|>": "<|fin|>", "<|eom_id|>": "<|pause|>"}.get(t["content"], t["content"])

    change_json(checkpoint, "tokenizer.json", rename)
    ids = {t["content"]: t["id"] for t in load(checkpoint, "tokenizer.json")["added_tokens"]}
    ends = [ids["<|fin|>"], ids["<|pause|>"], ids["<|end_of_text|>"]]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        change_json(checkpoint, name, lambda c: c.update(eos_token="<|end_of_text|>"))
    for name in ("config.json", "generation_config.json"):
        change_json(checkpoint, name, lambda c: c.update(eos_token_id=ends))
    change_json(checkpoint, "config.json", lambda c: c["text_config"].update(eos_token_id=ends))
    exported = there_and_back(checkpoint, tmp_path, "f32")
    assert load(exported, "config.json")["eos_token_id"] == ends
    assert load(exported, "tokenizer_config.json")["eos_token"] == "<|end_of_text|>"


def test_without_a_padding_token(checkpoint, tmp_path):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        change_json(checkpoint, name, lambda c: c.pop("pad_token"))
    for name in ("config.json", "generation_config.json"):
        change_json(checkpoint, name, lambda c: c.pop("pad_token_id"))
    change_json(checkpoint, "config.json", lambda c: c["text_config"].pop("pad_token_id"))
    exported = there_and_back(checkpoint, tmp_path, "f32")
    assert "pad_token" not in load(exported, "tokenizer_config.json")
    assert "pad_token_id" not in load(exported, "config.json")


def test_several_chat_templates(checkpoint, tmp_path):
    named = [{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ tools }}"}]
    (checkpoint / "chat_template.json").unlink()
    change_json(checkpoint, "tokenizer_config.json", lambda c: c.update(chat_template=named))
    assert load(there_and_back(checkpoint, tmp_path, "f32"), "tokenizer_config.json")["chat_template"] == named


def test_no_chat_template(checkpoint, tmp_path):
    (checkpoint / "chat_template.json").unlink()
    change_json(checkpoint, "tokenizer_config.json", lambda c: c.pop("chat_template"))
    exported = there_and_back(checkpoint, tmp_path, "f32")
    assert not (exported / "chat_template.json").exists()
    assert "chat_template" not in load(exported, "tokenizer_config.json")


def test_no_first_token_where_the_file_wants_none(tiny_pair, tmp_path):
    pair = tiny_pair("small")
    text = gguf_bytes.rewrite(
        pair.text,
        tmp_path / "bare.gguf",
        lambda g: g.set("tokenizer.ggml.add_bos_token", gguf_bytes.BOOL, struct.pack("<?", False)),
    )
    tokenizer = load(export(text, tmp_path / "out", mmproj=pair.mmproj), "tokenizer.json")
    assert [p["type"] for p in tokenizer["post_processor"]["processors"]] == ["ByteLevel"]


# --- the real readers ---


@pytest.fixture(scope="module")
def tokenizers(pocket_export, pocket_checkpoint):
    """(exported, original) in the `tokenizers` library."""
    library = pytest.importorskip("tokenizers")
    return tuple(library.Tokenizer.from_file(str(d / "tokenizer.json")) for d in (pocket_export, pocket_checkpoint))


PIECES = st.sampled_from(
    [
        "<|image|>",
        "<|eot_id|>",
        "<|begin_of_text|>",
        "<|start_header_id|>user<|end_header_id|>\n\n",
        " the",
        "'s",
        "123",
    ]
)
TEXTS = st.lists(st.text() | PIECES).map("".join)


@pytest.mark.reference
@settings(max_examples=300, deadline=None)
@given(text=TEXTS, pair=TEXTS | st.none())
def test_the_same_ids(tokenizers, text, pair):
    ours, own = tokenizers
    for special in (True, False):
        a, b = (t.encode(text, pair, add_special_tokens=special) for t in (ours, own))
        assert (a.ids, a.type_ids, a.offsets) == (b.ids, b.type_ids, b.offsets)
    for keep in (True, False):
        assert ours.decode(b.ids, skip_special_tokens=keep) == own.decode(b.ids, skip_special_tokens=keep)


@pytest.mark.reference
def test_transformers_loads_it(pocket_export, pocket_checkpoint, samples):
    """Its processor makes the same inputs, and its model of them the same logits, bit for bit."""
    import torch
    from PIL import Image
    from transformers import AutoProcessor, MllamaForConditionalGeneration

    parts = [{"type": "image"}, {"type": "text", "text": "How many shapes are there?"}]
    results = []
    for directory in (pocket_export, pocket_checkpoint):
        processor = AutoProcessor.from_pretrained(directory)
        prompt = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
        with Image.open(samples[0]["path"]) as image:
            inputs = processor(
                text=prompt, images=[image.convert("RGB")], add_special_tokens=False, return_tensors="pt"
            )
        model, info = MllamaForConditionalGeneration.from_pretrained(directory, dtype="auto", output_loading_info=True)
        assert not any(info.values()), info
        assert model.dtype == torch.bfloat16
        with torch.no_grad():
            results.append((inputs, model.eval()(**inputs).logits, model.generation_config, model.config))
    (inputs, logits, generation, config), (own_inputs, own_logits, own_generation, own_config) = results
    assert inputs.keys() == own_inputs.keys()
    assert all(torch.equal(inputs[key], own_inputs[key]) for key in inputs)
    assert torch.equal(logits, own_logits)
    assert torch.isfinite(logits).all()
    for ours, own in ((generation, own_generation), (config, own_config)):
        marks = {"_from_model_config": None, "_name_or_path": None}  # where it was read from
        assert ours.to_dict() | marks == own.to_dict() | marks


@pytest.mark.reference
@pytest.mark.parametrize("name", ["base", "six_tiles"])
def test_transformers_computes_the_same(name, tiny_pair, tiny_checkpoint, oracle, tmp_path):
    from cases import all_cases

    exported = oracle(export(tiny_pair(name).text, tmp_path / "out"))
    for case in all_cases(name)[:3]:
        expected = oracle(tiny_checkpoint(name)).logits(case.token_ids, case.images)
        assert np.array_equal(exported.logits(case.token_ids, case.images), expected), case.name


def test_convert_finds_what_it_needs(pocket_export, tmp_path):
    """Nothing of the exported files refers to where they came from."""
    moved = shutil.copytree(pocket_export, tmp_path / "elsewhere" / "moved")
    pair = convert(moved, tmp_path / "out", text_type="f16", mmproj_type="f16")
    assert pair.text.name == "moved-F16.gguf"
