import json
import math
import string

import factories
import numpy as np
import pytest
from tiny_configs import CONFIGS

from pyvllama.config import MllamaConfig
from pyvllama.conversion import transforms
from pyvllama.conversion.checkpoint import Checkpoint, to_f32
from pyvllama.conversion.policy import Role
from pyvllama.conversion.tensor_map import TABLE, Destination, Rows, canonical_name, is_ignored, plan
from pyvllama.conversion.type_rules import TypeRules
from pyvllama.gguf_file import GGUFFile


def mllama_config(name):
    return MllamaConfig.from_hf_json(factories.config_files(CONFIGS[name])["config.json"])


@pytest.mark.parametrize("name", CONFIGS)
def test_table_is_total(name):
    """Every tensor of a checkpoint is the source of something, with the right shape, and nothing else is asked for."""
    sources = {t.hf: t.hf_shape for t in plan(mllama_config(name), 0) if t.hf}
    assert sources == factories.tensor_shapes(CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_table_is_injective(name):
    """No two tensors get one name, and but for the image token's row nothing is stored twice."""
    planned = plan(mllama_config(name), 0)
    assert len({(t.file, t.name) for t in planned}) == len(planned)
    sources = [t.hf for t in planned if t.hf and t.name != "mm.image_token_embd.weight"]
    assert len(set(sources)) == len(sources)


def test_templates_agree_in_their_placeholders():
    def fields(template):
        return [f for _, f, _, _ in string.Formatter().parse(template) if f]

    for row in TABLE:
        assert fields(row.hf) == fields(row.gguf)
        assert set(fields(row.hf)) <= {"self", "cross", "local", "global"}


def test_names_fit_into_ggml():
    config = json.loads(json.dumps(factories.config_files(CONFIGS["small"])["config.json"]))
    config["text_config"] |= {"num_hidden_layers": 512, "cross_attention_layers": [510]}
    assert max(len(t.name) for t in plan(MllamaConfig.from_hf_json(config), 0)) < 64


def test_vectors_and_norms_are_exact():
    for row in TABLE:
        if len(row.shape) == 1:
            assert row.role is Role.EXACT, row.gguf


def test_self_layers_are_renumbered_and_cross_layers_are_not():
    names = {t.hf: t.name for t in plan(mllama_config("base"), 0)}
    assert names["language_model.model.layers.4.self_attn.q_proj.weight"] == "blk.2.attn_q.weight"
    assert names["language_model.model.layers.6.cross_attn.q_proj.weight"] == "xattn.blk.6.attn_q.weight"


def test_only_self_attention_rows_are_permuted():
    permuted = {row.gguf for row in TABLE if row.rows in (Rows.ROPE_Q, Rows.ROPE_K)}
    assert permuted == {"blk.{self}.attn_q.weight", "blk.{self}.attn_k.weight"}


def test_both_layouts_have_the_same_canonical_names():
    for name in factories.tensor_shapes(CONFIGS["base"]):
        assert canonical_name(name) == name
        assert canonical_name(factories.hub_to_transformers5(name)) == name


def test_ignored_names():
    assert is_ignored("language_model.model.layers.3.self_attn.rotary_emb.inv_freq")
    assert not is_ignored("language_model.model.layers.3.self_attn.q_proj.weight")


def to_hf(pair, config):
    """A pair of GGUF files as {canonical HF name: float32 array}, by the table alone."""
    files = {Destination.TEXT: GGUFFile(pair.text), Destination.MMPROJ: GGUFFile(pair.mmproj)}
    result = {}
    for t in plan(config, 0):
        if t.hf and t.name != "mm.image_token_embd.weight":
            n_rows = t.hf_shape[0] if len(t.hf_shape) > 1 else 1
            rows = files[t.file].f32(t.name).reshape(len(t.index), -1)
            # the padding's rows come last, so the inverse of the gather does not depend on the filler token
            result[t.hf] = rows[transforms.invert(t.index, n_rows)].reshape(t.hf_shape)
    return result


@pytest.mark.parametrize("name", CONFIGS)
def test_f32_round_trip_is_exact(name, tiny_checkpoint, tiny_pair):
    tensors = Checkpoint(tiny_checkpoint(name)).tensors
    restored = to_hf(tiny_pair(name), mllama_config(name))
    assert restored.keys() == tensors.keys()
    for hf, values in restored.items():
        source = to_f32(tensors[hf].rows(np.arange(tensors[hf].n_rows)))
        assert values.tobytes() == source.tobytes(), hf


@pytest.mark.parametrize("types", [("f32", "f32"), ("bf16", "bf16")])
def test_bf16_round_trip_is_exact(types, tiny_checkpoint, converted):
    checkpoint = tiny_checkpoint("odd_rows", dtype="BF16", layout="transformers5", n_shards=2)
    tensors = Checkpoint(checkpoint).tensors
    for hf, values in to_hf(converted(checkpoint, *types), mllama_config("odd_rows")).items():
        source = to_f32(tensors[hf].rows(np.arange(tensors[hf].n_rows)))
        assert values.tobytes() == source.tobytes(), hf


def test_pocket_round_trip_is_exact(pocket_checkpoint, pocket_pair):
    checkpoint = Checkpoint(pocket_checkpoint)
    config = MllamaConfig.from_hf_json(checkpoint.json("config.json"))
    restored = to_hf(pocket_pair, config)
    assert sum(math.prod(v.shape) for v in restored.values()) == 12_734_349  # its README's count
    for hf, values in restored.items():
        t = checkpoint.tensors[hf]
        assert values.tobytes() == to_f32(t.rows(np.arange(t.n_rows))).tobytes(), hf


def test_rows_behind_the_vocabulary(tiny_checkpoint, tiny_pair):
    """8 rows of output.weight copy a reserved token's, token_embd has the checkpoint's own."""
    output = GGUFFile(tiny_pair("small").text).f32("output.weight")
    n = CONFIGS["small"].vocab_size
    tokens = json.loads((tiny_checkpoint("small") / "tokenizer.json").read_text())["added_tokens"]
    reserved = max(t["id"] for t in tokens if "reserved_special" in t["content"])
    assert output.shape[0] == n + 8
    assert (output[n:] == output[reserved]).all()


def test_image_token_row(tiny_pair):
    pair = tiny_pair("small")
    row = GGUFFile(pair.mmproj).f32("mm.image_token_embd.weight")
    assert np.array_equal(row, GGUFFile(pair.text).f32("token_embd.weight")[CONFIGS["small"].image_token])


def test_the_90b_model():
    """By its configuration: 100 layers, of which 20 see pictures (3, 8, ..., 98), hidden size 8192."""
    files = json.loads(json.dumps(factories.config_files(CONFIGS["base"])["config.json"]))
    cross = list(range(3, 100, 5))
    files["text_config"] |= {
        "vocab_size": 128256,
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 100,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "cross_attention_layers": cross,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "pad_token_id": 128004,
    }
    files["vision_config"] |= {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "attention_heads": 16,
        "num_hidden_layers": 32,
        "num_global_layers": 8,
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
        "vision_output_dim": 7680,
        "image_size": 560,
    }
    files |= {"image_token_index": 128256, "bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": 128004}
    planned = {t.name: t for t in plan(MllamaConfig.from_hf_json(files), 128255)}

    blocks = {name.split(".")[1] for name in planned if name.startswith("blk.")}
    assert blocks == {str(i) for i in range(80)}
    self_layers = [i for i in range(100) if i not in cross]
    for il in (0, 2, 3, 39, 79):
        assert planned[f"blk.{il}.attn_q.weight"].hf == (
            f"language_model.model.layers.{self_layers[il]}.self_attn.q_proj.weight"
        )
    assert {name.split(".")[2] for name in planned if name.startswith("xattn.blk.")} == {str(i) for i in cross}
    shapes = {
        "token_embd.weight": (128264, 8192),
        "output.weight": (128264, 8192),
        "blk.79.attn_q.weight": (8192, 8192),
        "blk.79.attn_k.weight": (1024, 8192),
        "blk.79.ffn_down.weight": (8192, 28672),
        "xattn.blk.98.attn_v.weight": (1024, 8192),
        "xattn.blk.98.attn_k_norm.weight": (128,),
        "mm.0.weight": (8192, 7680),
        "v.position_embd.weight": (1601, 1280),
        "v.tile_position_embd.weight": (9, 4 * 1601 * 1280),
    }
    assert {name: planned[name].shape for name in shapes} == shapes
    n_params = sum(math.prod(t.shape) for t in planned.values() if t.hf)
    assert n_params == pytest.approx(88.8e9, rel=0.003)  # its model card says 88.8B
    # llama.cpp gives attn_v of a 70B model more bits, as 8 heads share it; the cross-attention layers too
    rules = TypeRules.from_options("q4_k_m", "q8_0", None, (), has_importance=False)
    types = {
        name: rules.type_of(name, t.role, t.layer, t.shape[-1], "bf16")
        for name, t in planned.items()
        if name.endswith("attn_v.weight") and not name.startswith("v.")
    }
    assert {types[f"blk.{i}.attn_v.weight"] for i in range(80)} == {"q5_K", "q6_K"}
    assert types["blk.0.attn_v.weight"] == "q6_K"
    assert types["blk.11.attn_v.weight"] == "q5_K"
    assert {types[f"xattn.blk.{i}.attn_v.weight"] for i in cross} == {"q5_K", "q6_K"}
