"""Adapters as llama.cpp's LoRA GGUF, and what stock llama.cpp makes of them."""

import ctypes
import json
import shutil

import lora_files
import numpy as np
import pytest
from cases import Case
from harness import Decoder
from lora_files import EMBED, HEAD, MLP, PREFIX, SELF, write_adapter
from tiny_configs import CONFIGS

from pyvllama._runtime import llama_cpp
from pyvllama.conversion import convert
from pyvllama.conversion.lora_gguf import convert_lora
from pyvllama.errors import CheckpointError, ConfigError, ModelNotFound
from pyvllama.gguf_file import GGUFFile

SMALL = CONFIGS["small"]
SELF_Q, SELF_K = SELF.format(0) + "q_proj", SELF.format(5) + "k_proj"  # of six layers, 2 and 4 see pictures
CROSS_UP = MLP.format(2) + "up_proj"
TOKENS = np.random.RandomState(0).randint(0, SMALL.vocab_size - 16, 24)


def logits(text, adapter=None, scale=1.0):
    """[n_tokens, n_vocab] of stock llama.cpp, with an adapter put on or not."""
    case = Case("text", token_ids=tuple(TOKENS.tolist()), images=(), image_token=SMALL.image_token)
    with Decoder(text) as decoder:
        if adapter is not None:
            loaded = llama_cpp.llama_adapter_lora_init(decoder.model, str(adapter).encode())
            assert loaded, "llama.cpp does not load the adapter"
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(loaded)
            status = llama_cpp.llama_set_adapters_lora(decoder.context, adapters, 1, (ctypes.c_float * 1)(scale))
            assert status == 0
        return decoder.logits(case)


def largest_difference(a, b):
    """Relative to the logits' spread, over the tokens that can be sampled."""
    return np.abs(a - b)[:, : SMALL.vocab_size].max() / a.std()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"q_proj": 3, "down_proj": 20}, "rank_pattern": {r"layers\.1\.mlp\.up_proj": 7}},
        {"layout": "transformers5"},
    ],
    ids=["plain", "rslora", "patterns", "transformers5"],
)
def test_llama_cpp_computes_what_the_merged_model_computes(settings, tmp_path, tiny_checkpoint, tiny_pair):
    """In F32: only the order of additions differs. That is 1e-7 a product; six layers and a change as large as the
    weights themselves make up to 7e-5 of it, where the adapter itself changes the logits by more than 0.5."""
    modules = lora_files.text_modules(SMALL)
    ranks = {MLP.format(1) + "up_proj": 7} if "rank_pattern" in settings else None
    adapter = write_adapter(tmp_path / "adapter", modules, embeddings=[EMBED], ranks=ranks, **settings)
    base = tiny_checkpoint("small")
    merged = convert(base, tmp_path / "merged", lora=[adapter], text_type="f32", mmproj_type="f32")
    lora = convert_lora(adapter, tmp_path / "lora", base=base, type="f32")
    expected, stock = logits(merged.text), logits(tiny_pair("small").text)
    assert largest_difference(expected, stock) > 0.5
    assert largest_difference(expected, logits(tiny_pair("small").text, lora)) < 2e-4
    assert np.array_equal(stock, logits(tiny_pair("small").text, lora, scale=0))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_precision(kind, tmp_path, tiny_checkpoint, tiny_pair):
    adapter = write_adapter(tmp_path / "adapter", lora_files.text_modules(SMALL), dtype=kind.upper())
    base = tiny_checkpoint("small")
    exact = convert_lora(adapter, tmp_path / "f32", base=base, type="f32")
    half = convert_lora(adapter, tmp_path / "half", base=base, type=kind)
    a, b = GGUFFile(exact), GGUFFile(half)
    assert {t.type for t in b.tensors.values()} == {kind}
    for name in a.tensors:  # the adapter holds nothing that its own type cannot
        assert np.array_equal(a.f32(name), b.f32(name)), name
    text = tiny_pair("small").text
    # llama.cpp rounds what it multiplies with such matrices to their type, 11 bits or 8
    effect = largest_difference(logits(text), logits(text, exact))
    assert largest_difference(logits(text, exact), logits(text, half)) < (0.02 if kind == "f16" else 0.16) * effect


def test_lm_head(tmp_path, tiny_checkpoint, tiny_pair):
    """Its rows for the tokens behind vocab_size are left alone."""
    adapter = write_adapter(tmp_path / "adapter", [HEAD])
    base = tiny_checkpoint("small")
    merged = convert(base, tmp_path / "merged", lora=[adapter], text_type="f32", mmproj_type="f32")
    lora = convert_lora(adapter, tmp_path / "lora", base=base, type="f32")
    text = tiny_pair("small").text
    ours, stock = logits(text, lora), logits(text)
    assert largest_difference(logits(merged.text), ours) < 1e-5
    assert largest_difference(stock, ours) > 0.1
    assert np.array_equal(ours[:, SMALL.vocab_size :], stock[:, SMALL.vocab_size :])


def test_the_file(tmp_path, tiny_checkpoint):
    adapter = write_adapter(tmp_path / "my-adapter", [SELF_Q, SELF_K], rank=3, alpha=12, embeddings=[EMBED])
    path = convert_lora(adapter, tmp_path / "new" / "out", base=tiny_checkpoint("small"))
    assert path == tmp_path / "new" / "out" / "my-adapter-F16-LoRA.gguf"
    file = GGUFFile(path)
    keys = ("general.architecture", "general.type", "general.name", "general.file_type", "adapter.type")
    assert [file.metadata[key] for key in keys] == ["llama", "adapter", "my-adapter", 1, "lora"]
    assert file.metadata["adapter.lora.alpha"] == 12
    d, n_tok = SMALL.hidden_size, SMALL.vocab_size + 8
    assert {name: t.shape for name, t in file.tensors.items()} == {
        "token_embd.weight.lora_a": (n_tok, 3),
        "token_embd.weight.lora_b": (d, 3),
        "blk.0.attn_q.weight.lora_a": (3, d),
        "blk.0.attn_q.weight.lora_b": (d, 3),
        "blk.3.attn_k.weight.lora_a": (3, d),  # layer 5 is the fourth that sees no pictures
        "blk.3.attn_k.weight.lora_b": (d // 4, 3),
    }


def test_the_base_that_the_adapter_names(tmp_path, tiny_checkpoint):
    base = str(tiny_checkpoint("small"))
    named = write_adapter(tmp_path / "named", [SELF_Q], base_model_name_or_path=base)
    assert convert_lora(named, tmp_path / "out", name="other").name == "other-F16-LoRA.gguf"
    unnamed = write_adapter(tmp_path / "unnamed", [SELF_Q])
    with pytest.raises(ConfigError, match=r"config\.json.*--base"):
        convert_lora(unnamed, tmp_path / "out")
    lost = write_adapter(tmp_path / "lost", [SELF_Q], base_model_name_or_path="/home/somebody/model")
    with pytest.raises(ModelNotFound, match=r"trained on /home/somebody/model.*--base"):
        convert_lora(lost, tmp_path / "out")
    only_tokenizer = tmp_path / "tokenizer"
    only_tokenizer.mkdir()
    shutil.copy(f"{base}/tokenizer.json", only_tokenizer)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        convert_lora(named, tmp_path / "out", base=only_tokenizer)


@pytest.mark.parametrize(
    ("modules", "extra", "message"),
    [
        ([CROSS_UP], {}, r"changes language_model\.model\.layers\.2\.mlp\.up_proj"),
        (["language_model.model.layers.4.cross_attn.q_proj"], {}, "cross_attn"),
        (["vision_model.transformer.layers.0.mlp.fc1"], {}, "vision_model"),
        (["multi_modal_projector"], {}, "multi_modal_projector"),
        ([], {f"{PREFIX}{HEAD}.weight": np.ones((320, 128))}, "replaces language_model.lm_head.weight"),
        ([], {f"{PREFIX}language_model.model.norm.weight": np.ones(128)}, "replaces .*norm"),
        ([], {f"{PREFIX}{SELF_Q}.lora_magnitude_vector": np.ones(128)}, "by DoRA"),
        ([], {f"{PREFIX}{SELF_Q}.lora_B.bias": np.ones(128)}, "changes .*bias"),
    ],
)
def test_what_a_lora_of_the_text_model_cannot_do(modules, extra, message, tmp_path, tiny_checkpoint):
    adapter = write_adapter(tmp_path / "a", [SELF_Q, *modules], extra=extra)
    with pytest.raises(CheckpointError, match=rf"(?s)pyvllama convert BASE --lora.*{message}") as e:
        convert_lora(adapter, tmp_path / "out", base=tiny_checkpoint("small"))
    assert len(str(e.value).splitlines()) == 2
    assert not (tmp_path / "out").exists()


def test_other_refusals(tmp_path, tiny_checkpoint):
    base = tiny_checkpoint("small")
    adapter = write_adapter(tmp_path / "a", [SELF_Q])
    with pytest.raises(ConfigError, match=r"q4_k_m.*f32, f16, bf16"):
        convert_lora(adapter, tmp_path / "out", base=base, type="q4_k_m")
    with pytest.raises(ConfigError, match="file name"):
        convert_lora(adapter, tmp_path / "out", base=base, name="../x")
    with pytest.raises(CheckpointError, match=r"does not fit its base model:\n.*\[128, 128\].*\[256, 256\]"):
        convert_lora(adapter, tmp_path / "out", base=tiny_checkpoint("base"))
    convert_lora(adapter, tmp_path / "out", base=base)
    with pytest.raises(ConfigError, match=r"exists? already"):
        convert_lora(adapter, tmp_path / "out", base=base)
    convert_lora(adapter, tmp_path / "out", base=base, overwrite=True)
    huge = {f"{PREFIX}{SELF_Q}.lora_B.weight": np.full((128, 4), 1e6)}
    adapter = write_adapter(tmp_path / "huge", [SELF_Q], extra=huge)
    with pytest.raises(CheckpointError, match="no finite F16"):
        convert_lora(adapter, tmp_path / "out", base=base)
    convert_lora(adapter, tmp_path / "out", base=base, type="BF16")


def test_tied_embeddings(tmp_path, tiny_checkpoint):
    base = shutil.copytree(tiny_checkpoint("small"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="which is the output as well"):
        convert_lora(write_adapter(tmp_path / "a", [SELF_Q], embeddings=[EMBED]), tmp_path / "out", base=base)
