"""Names as training leaves them, tensors saved twice, adapters that were never merged."""

import factories
import numpy as np
import pytest
import raw_safetensors
from tiny_configs import CONFIGS

from pyvllama.conversion import convert
from pyvllama.conversion.checkpoint import Checkpoint
from pyvllama.conversion.prefixes import unwrapped
from pyvllama.conversion.tensor_map import canonical_name
from pyvllama.errors import CheckpointError

NAMES = sorted(factories.tensor_shapes(CONFIGS["small"]))
LAYOUTS = {"hub": str, "transformers5": factories.hub_to_transformers5}


def inside(segment):
    """A wrapper around every layer and around the model."""

    def rename(name):
        parts = name.split(".")
        places = [i + 1 for i, part in enumerate(parts) if part.isdigit()]
        for i in reversed(places):
            parts.insert(i, segment)
        return ".".join([segment, *parts])

    return rename


WRAPPERS = {
    "peft": lambda n: f"base_model.model.{n}",
    "compile": lambda n: f"_orig_mod.{n}",
    "compiled_layers": inside("_orig_mod"),
    "ddp": lambda n: f"module.{n}",
    "deepspeed_compiled": lambda n: f"module._orig_mod.{n}",
    "fsdp": inside("_fsdp_wrapped_module"),
    "checkpointing": inside("_checkpoint_wrapped_module"),
    "fabric": lambda n: f"_forward_module.{n}",
    "model": lambda n: f"model.{n}",
    "models": lambda n: f"model.model.model.{n}",
    "base_layer": lambda n: n.replace("_proj.", "_proj.base_layer."),
    "all": lambda n: inside("_fsdp_wrapped_module")(f"module._orig_mod.base_model.model.model.{n}"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_names(layout, wrapper):
    for name in NAMES:
        assert canonical_name(WRAPPERS[wrapper](LAYOUTS[layout](name))) == name


def test_names_that_nothing_wraps_stay():
    for name in NAMES:
        assert unwrapped(name) == name
    assert unwrapped("model.language_model.norm.weight") == "model.language_model.norm.weight"


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight", "model", "module", ""]
)
def test_what_is_no_mllama_tensor_keeps_its_name(name):
    assert canonical_name(name) == name


@pytest.mark.parametrize("wrapper", ["fsdp", "models", "all"])
def test_a_wrapped_checkpoint_converts_to_the_same_bytes(wrapper, tmp_path, tiny_checkpoint, tiny_pair):
    def wrap(tensors):
        extra = {"model.language_model.rotary_emb.inv_freq": ("F32", np.ones(8, np.float32))}
        return {WRAPPERS[wrapper](name): stored for name, stored in (tensors | extra).items()}

    checkpoint = raw_safetensors.rewrite(tiny_checkpoint("small"), tmp_path / "tiny-small", wrap)
    pair = convert(checkpoint, tmp_path / "out", text_type="f32", mmproj_type="f32")
    assert pair.text.read_bytes() == tiny_pair("small").text.read_bytes()
    assert pair.mmproj.read_bytes() == tiny_pair("small").mmproj.read_bytes()


def test_tensors_saved_twice(tmp_path, tiny_checkpoint):
    """Under both layouts' names: taken once where they are equal, refused where they are not."""
    head = "language_model.lm_head.weight"

    def twice(tensors):
        return tensors | {"lm_head.weight": tensors[head], f"_orig_mod.{head}": tensors[head]}

    checkpoint = raw_safetensors.rewrite(tiny_checkpoint("small"), tmp_path / "twice", twice)
    values = Checkpoint(checkpoint).tensors[head].rows(np.arange(3))
    assert np.array_equal(values, Checkpoint(tiny_checkpoint("small")).tensors[head].rows(np.arange(3)))

    def differing(tensors):
        changed = tensors[head][1].copy()
        changed[-1, -1] += 1
        return tensors | {"lm_head.weight": ("F32", changed)}

    checkpoint = raw_safetensors.rewrite(tiny_checkpoint("small"), tmp_path / "differing", differing)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.* are one tensor, but their values differ"):
        Checkpoint(checkpoint)


def test_strange_extras_are_listed_with_what_is_missing(tmp_path, tiny_checkpoint):
    def odd(tensors):
        del tensors["language_model.model.norm.weight"]
        return tensors | {"value_head.weight": ("F32", np.ones((2, 2), np.float32))}

    checkpoint = raw_safetensors.rewrite(tiny_checkpoint("small"), tmp_path / "odd", odd)
    with pytest.raises(CheckpointError) as e:
        convert(checkpoint, tmp_path / "out")
    assert "unknown: value_head.weight" in str(e.value)
    assert "missing: language_model.model.norm.weight" in str(e.value)


@pytest.mark.parametrize(
    "suffix", ["lora_A.weight", "lora_B.default.weight", "lora_embedding_A", "modules_to_save.default.weight"]
)
def test_an_adapter_that_was_not_merged(suffix, tmp_path, tiny_checkpoint):
    name = f"base_model.model.language_model.model.layers.0.self_attn.q_proj.{suffix}"

    def unmerged(tensors):
        return {n.replace("q_proj.weight", "q_proj.base_layer.weight"): stored for n, stored in tensors.items()} | {
            name: ("F32", np.ones((2, 2), np.float32))
        }

    checkpoint = raw_safetensors.rewrite(tiny_checkpoint("small"), tmp_path / "unmerged", unmerged)
    with pytest.raises(CheckpointError, match=r"(?s)not been merged.*merge_and_unload.*--lora ADAPTER.*q_proj"):
        Checkpoint(checkpoint)
