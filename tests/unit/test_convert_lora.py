"""LoRA adapters merged while converting."""

import json
import re

import factories
import lora_files
import meta_files
import numpy as np
import pytest
import raw_safetensors
from bnb_quantizer import rounded
from lora_files import EMBED, HEAD, MLP, PREFIX, SELF, change, values, write_adapter
from tiny_configs import CONFIGS

from pyvllama.conversion import convert
from pyvllama.conversion.adapter import find_adapter
from pyvllama.conversion.pipeline import plan_conversion
from pyvllama.conversion.source import find_source
from pyvllama.conversion.source_tensor import to_f32
from pyvllama.errors import CheckpointError, ConfigError, ModelNotFound
from pyvllama.gguf_file import GGUFFile

SMALL = CONFIGS["small"]
Q, V, OUT = (SELF.format(0) + f"{x}_proj" for x in "qvo")
UP, DOWN = MLP.format(1) + "up_proj", MLP.format(2) + "down_proj"
CROSS_Q = "language_model.model.layers.2.cross_attn.q_proj"
FC1 = "vision_model.transformer.layers.0.mlp.fc1"
PROJECTOR = "multi_modal_projector"


def opened(tiny_checkpoint, *adapters, dtype="F32"):
    """module -> its merged weight, of the checkpoint `small`."""
    tensors = find_source(tiny_checkpoint("small", dtype=dtype)).open(lora=adapters).tensors

    def weight(module, suffix="weight"):
        tensor = tensors[f"{module}.{suffix}"]
        return to_f32(tensor.rows(np.arange(tensor.n_rows))).reshape(tensor.shape)

    return weight


def assert_equal(weight, expected):
    np.testing.assert_allclose(weight, expected, rtol=0, atol=4e-7 * np.abs(expected).max())


@pytest.mark.parametrize("layout", ["hub", "transformers5"])
@pytest.mark.parametrize("adapter_dtype", ["F32", "F16", "BF16"])
def test_every_linear_layer(layout, adapter_dtype, tmp_path, tiny_checkpoint):
    modules = lora_files.all_modules(SMALL)
    assert {Q, UP, CROSS_Q, FC1, PROJECTOR, HEAD, "vision_model.patch_embedding"} <= set(modules)
    adapter = write_adapter(tmp_path / "a", modules, layout=layout, dtype=adapter_dtype)
    weight = opened(tiny_checkpoint, adapter)
    for module in modules:
        base = values(SMALL, module)
        a, b = (rounded(x, adapter_dtype) for x in lora_files.factors(module, base.shape, 4))
        assert_equal(weight(module), base + 2 * (b @ a).reshape(base.shape))
    assert np.array_equal(weight("language_model.model.norm"), values(SMALL, "language_model.model.norm"))


def test_the_sum_is_rounded_to_the_checkpoints_type(tmp_path, tiny_checkpoint):
    weight = opened(tiny_checkpoint, write_adapter(tmp_path / "a", [Q]), dtype="BF16")
    exact = rounded(values(SMALL, Q), "BF16") + change(SMALL, Q)
    expected = rounded(exact, "BF16")
    differing = weight(Q) != expected  # the order of additions in B @ A can move a value over the middle
    assert differing.mean() < 1e-3
    assert np.abs(weight(Q) - exact)[differing].max(initial=0) <= np.abs(exact).max() / 256
    assert not np.array_equal(expected, exact)


def test_rows_in_any_order(tmp_path, tiny_checkpoint):
    adapter = write_adapter(tmp_path / "a", [Q], embeddings=[EMBED])
    tensors = find_source(tiny_checkpoint("small")).open(lora=[adapter]).tensors
    for module in (Q, EMBED):
        tensor = tensors[module + ".weight"]
        whole = tensor.rows(np.arange(tensor.n_rows))
        for index in (np.array([5]), np.array([9, 2, 2]), np.random.RandomState(0).permutation(tensor.n_rows)):
            assert_equal(tensor.rows(index), whole[index])


@pytest.mark.parametrize(
    ("settings", "scale_q", "scale_up", "scale_down"),
    [
        ({}, 2, 2, 2),
        ({"use_rslora": True}, 4, 4, 4),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5, 2, 2),
        ({"alpha_pattern": {r"layers\.1\.mlp\.up_proj": 2}}, 2, 0.5, 2),
        ({"alpha_pattern": {UP: 2}}, 2, 0.5, 2),
        ({"alpha_pattern": {"proj": 2}}, 2, 2, 2),  # a whole name between dots, or nothing
        ({"alpha_pattern": {r"layers\.\d+\.mlp\..*": 2}}, 2, 0.5, 0.5),
        ({"fan_in_fan_out": True}, 2, 2, 2),  # PEFT corrects it for linear layers, which all of these are
    ],
)
def test_scales(settings, scale_q, scale_up, scale_down, tmp_path, tiny_checkpoint):
    weight = opened(tiny_checkpoint, write_adapter(tmp_path / "a", [Q, UP, DOWN], **settings))
    for module, scale in ((Q, scale_q), (UP, scale_up), (DOWN, scale_down)):
        assert_equal(weight(module), values(SMALL, module) + change(SMALL, module, scale=scale))


@pytest.mark.parametrize("stabilized", [False, True])
def test_ranks_of_their_own(stabilized, tmp_path, tiny_checkpoint):
    adapter = write_adapter(tmp_path / "a", [Q, UP], ranks={UP: 9}, rank_pattern={"up_proj": 9}, use_rslora=stabilized)
    weight = opened(tiny_checkpoint, adapter)
    assert_equal(weight(Q), values(SMALL, Q) + change(SMALL, Q, scale=4 if stabilized else 2))
    assert_equal(weight(UP), values(SMALL, UP) + change(SMALL, UP, 9, 8 / 3 if stabilized else 8 / 9))


def test_embeddings(tmp_path, tiny_checkpoint):
    tile = "vision_model.gated_positional_embedding.tile_embedding"
    weight = opened(tiny_checkpoint, write_adapter(tmp_path / "a", [HEAD], embeddings=[EMBED, tile]))
    for module in (EMBED, tile, HEAD):
        assert_equal(weight(module), values(SMALL, module) + change(SMALL, module))


def test_the_change_of_an_embedding_is_rounded_by_itself(tmp_path, tiny_checkpoint):
    """As PEFT does it, for embeddings alone."""
    weight = opened(tiny_checkpoint, write_adapter(tmp_path / "a", [], embeddings=[EMBED]), dtype="BF16")
    base, added = rounded(values(SMALL, EMBED), "BF16"), change(SMALL, EMBED)
    twice = rounded(base + rounded(added, "BF16"), "BF16")
    assert (weight(EMBED) != twice).mean() < 1e-3
    assert (rounded(base + added, "BF16") != twice).mean() > 0.01


@pytest.mark.parametrize("suffix", ["", ".weight", ".default.weight"])
def test_dora(suffix, tmp_path, tiny_checkpoint):
    """Rows of W + scale * B @ A, brought to the stored lengths."""
    modules = (Q, FC1, "vision_model.patch_embedding")
    lengths, expected = {}, {}
    for module in modules:
        total = values(SMALL, module) + change(SMALL, module)
        rows = total.reshape(len(total), -1).astype(np.float64)
        length = factories.random_state("dora", module).uniform(0.5, 2, len(rows)).astype(np.float32)
        expected[module] = (rows / np.linalg.norm(rows, axis=1)[:, None] * length[:, None]).reshape(total.shape)
        lengths[f"{PREFIX}{module}.lora_magnitude_vector{suffix}"] = length.reshape(
            (1, -1, 1, 1) if "patch" in module else -1
        )
    weight = opened(tiny_checkpoint, write_adapter(tmp_path / "a", modules, extra=lengths, use_dora=True))
    for module in modules:
        assert_equal(weight(module), expected[module])


def test_several_adapters_add_up(tmp_path, tiny_checkpoint):
    adapters = [write_adapter(tmp_path / str(i), [Q, V][: i + 1], seed=i) for i in range(2)]
    weight = opened(tiny_checkpoint, *adapters)
    assert_equal(weight(Q), values(SMALL, Q) + change(SMALL, Q, seed=0) + change(SMALL, Q, seed=1))
    assert_equal(weight(V), values(SMALL, V) + change(SMALL, V, seed=1))
    assert np.array_equal(weight(OUT), values(SMALL, OUT))


def test_dora_beside_another_adapter_measures_the_base(tmp_path, tiny_checkpoint):
    total = values(SMALL, Q) + change(SMALL, Q, seed=1)
    lengths = np.linalg.norm(total, axis=1) * 3
    first = write_adapter(tmp_path / "0", [Q], seed=0)
    second = write_adapter(
        tmp_path / "1", [Q], seed=1, use_dora=True, extra={f"{PREFIX}{Q}.lora_magnitude_vector": lengths}
    )
    expected = 3 * (values(SMALL, Q) + change(SMALL, Q, seed=0) + change(SMALL, Q, seed=1))
    assert_equal(opened(tiny_checkpoint, first, second)(Q), expected)


@pytest.mark.parametrize("prefix", [PREFIX, ""])
def test_modules_to_save_and_biases(prefix, tmp_path, tiny_checkpoint):
    norm = np.linspace(0, 1, SMALL.hidden_size, dtype=np.float32)
    projector = np.ones((SMALL.hidden_size, SMALL.vision_output_dim), np.float32) / 3
    bias = np.linspace(-1, 1, SMALL.v_intermediate_size, dtype=np.float32)
    extra = {
        f"{prefix}language_model.model.norm.weight": norm,
        f"{prefix}{PROJECTOR}.modules_to_save.default.weight": projector,
        f"{prefix}{PROJECTOR}.modules_to_save.bias": norm,
        f"{prefix}{PROJECTOR}.original_module.weight": projector * 7,  # not used, by PEFT neither
        f"{prefix}{FC1}.bias": bias,
    }
    weight = opened(tiny_checkpoint, write_adapter(tmp_path / "a", [Q, FC1], extra=extra, bias="all"), dtype="BF16")
    assert np.array_equal(weight("language_model.model.norm"), rounded(norm, "BF16"))
    assert np.array_equal(weight(PROJECTOR), rounded(projector, "BF16"))
    assert np.array_equal(weight(PROJECTOR, "bias"), rounded(norm, "BF16"))
    assert np.array_equal(weight(FC1, "bias"), rounded(bias, "BF16"))


def test_the_bias_of_lora_b(tmp_path, tiny_checkpoint):
    bias = np.linspace(-1, 1, SMALL.v_intermediate_size, dtype=np.float32)
    adapter = write_adapter(tmp_path / "a", [FC1], extra={f"{PREFIX}{FC1}.lora_B.bias": bias}, lora_bias=True)
    weight = opened(tiny_checkpoint, adapter)
    name = FC1 + ".bias"
    base = factories.tensor_values(SMALL, name, factories.tensor_shapes(SMALL)[name])
    assert_equal(weight(FC1, "bias"), base + 2 * bias)
    assert_equal(weight(FC1), values(SMALL, FC1) + change(SMALL, FC1))


def test_an_enlarged_embedding_below_a_change(tmp_path, tiny_checkpoint):
    """save_embedding_layers: the adapter brings the resized table, under its own LoRA."""
    table = np.random.RandomState(0).standard_normal((SMALL.vocab_size + 12, SMALL.hidden_size)).astype(np.float32)
    a, b = lora_files.factors(EMBED, table.shape, 4)
    name = f"{PREFIX}{EMBED}"
    extra = {
        f"{name}.base_layer.weight": table,
        f"{name}.lora_embedding_A": b.T,
        f"{name}.lora_embedding_B": a.T,
    }
    assert_equal(opened(tiny_checkpoint, write_adapter(tmp_path / "a", [Q], extra=extra))(EMBED), table + 2 * b @ a)


@pytest.mark.reference
def test_adapter_model_bin(tmp_path, tiny_checkpoint):
    import torch

    adapter = write_adapter(tmp_path / "a", [Q, CROSS_Q])
    tensors = raw_safetensors.read(adapter / "adapter_model.safetensors")
    torch.save({name: torch.from_numpy(x.copy()) for name, (_, x) in tensors.items()}, adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    weight = opened(tiny_checkpoint, adapter)
    assert_equal(weight(CROSS_Q), values(SMALL, CROSS_Q) + change(SMALL, CROSS_Q))


@pytest.mark.reference
def test_what_was_trained_beside_the_adapter(tmp_path, tiny_checkpoint):
    import torch

    adapter = write_adapter(tmp_path / "a", [Q])
    norm = torch.linspace(0, 1, SMALL.hidden_size)
    torch.save({f"{PREFIX}language_model.model.norm.weight": norm}, adapter / "non_lora_state_dict.bin")
    weight = opened(tiny_checkpoint, adapter)
    assert np.array_equal(weight("language_model.model.norm"), norm.numpy())
    assert_equal(weight(Q), values(SMALL, Q) + change(SMALL, Q))


def test_converting_with_an_adapter_equals_converting_the_merged_checkpoint(tmp_path, tiny_checkpoint):
    modules = lora_files.all_modules(SMALL)
    adapter = write_adapter(tmp_path / "a", modules, embeddings=[EMBED])
    base = tiny_checkpoint("small")

    changed = {f"{module}.weight": change(SMALL, module) for module in (*modules, EMBED)}

    def merge(tensors):
        return {name: ("F32", x + changed.get(name, 0)) for name, (_, x) in tensors.items()}

    expected = convert(
        raw_safetensors.rewrite(base, tmp_path / "m", merge), tmp_path / "x", text_type="f32", mmproj_type="f32"
    )
    pair = convert(base, tmp_path / "y", lora=[adapter], text_type="f32", mmproj_type="f32")
    for a, b in ((pair.text, expected.text), (pair.mmproj, expected.mmproj)):
        ours, theirs = GGUFFile(a), GGUFFile(b)
        assert ours.tensors.keys() == theirs.tensors.keys()
        for name in ours.tensors:
            assert_equal(ours.f32(name), theirs.f32(name))


def test_metas_form(tmp_path):
    """Whose q rows lie in another order: the adapter's are those of Hugging Face's."""
    base = meta_files.write_meta(tmp_path / "meta")
    config = meta_files.CONFIG
    adapter = write_adapter(tmp_path / "a", [Q], config=config)
    name = Q + ".weight"
    plain, merged = (find_source(base).open(lora=lora).tensors[name] for lora in ((), (adapter,)))
    index = np.arange(plain.n_rows)
    expected = to_f32(plain.rows(index)) + change(config, Q)
    np.testing.assert_allclose(to_f32(merged.rows(index)), expected, atol=np.abs(expected).max() / 128)


def test_what_was_merged_is_noted(tmp_path, tiny_checkpoint):
    adapter = write_adapter(tmp_path / "my-adapter", [Q, V])
    plan = plan_conversion(tiny_checkpoint("small"), tmp_path / "out", lora=[adapter])
    assert plan.notes == ("the adapter my-adapter is merged into 2 weights",)


def test_what_has_no_place_is_listed_at_once(tmp_path, tiny_checkpoint):
    extra = {
        f"{PREFIX}language_model.model.layers.99.mlp.up_proj.lora_A.weight": np.ones((4, 128), np.float32),
        f"{PREFIX}language_model.model.layers.99.mlp.up_proj.lora_B.weight": np.ones((192, 4), np.float32),
        f"{PREFIX}{V}.lora_A.weight": np.ones((4, 127), np.float32),
        f"{PREFIX}{V}.lora_B.weight": np.ones((32, 4), np.float32),
        f"{PREFIX}score.weight": np.ones((2, 2), np.float32),
        f"{PREFIX}language_model.model.norm.weight": np.ones(3, np.float32),
        f"{PREFIX}{OUT}.lora_A.weight": np.ones((4, 128), np.float32),
        f"{PREFIX}{OUT}.lora_B.weight": np.ones((128, 4), np.float32),
        f"{PREFIX}{OUT}.lora_B.bias": np.ones(128, np.float32),
    }
    adapter = write_adapter(tmp_path / "a", [Q], extra=extra)
    with pytest.raises(CheckpointError) as e:
        find_source(tiny_checkpoint("small")).open(lora=[adapter])
    for pattern in (
        r"no such module: .*layers\.99\.mlp\.up_proj",
        r"layers\.0\.self_attn\.v_proj.*\[32, 127\], but it is \[32, 128\]",
        r"no such tensor: .*score\.weight",
        r"norm\.weight: shape \[3\], but it replaces \[128\]",
        r"no such bias: .*o_proj\.lora_B\.bias",
    ):
        assert re.search(pattern, str(e.value)), pattern


def test_halves_and_wrong_ranks_are_listed_at_once(tmp_path):
    extra = {
        f"{PREFIX}{V}.lora_A.weight": np.ones((4, 128), np.float32),
        f"{PREFIX}{OUT}.lora_A.weight": np.ones((4, 128), np.float32),
        f"{PREFIX}{OUT}.lora_B.weight": np.ones((128, 3), np.float32),
        f"{PREFIX}{UP}.lora_A.weight": np.ones((5, 128), np.float32),
        f"{PREFIX}{UP}.lora_B.weight": np.ones((192, 5), np.float32),
        f"{PREFIX}{DOWN}.lora_magnitude_vector": np.ones(128, np.float32),
    }
    adapter = write_adapter(tmp_path / "a", [Q], extra=extra)
    with pytest.raises(CheckpointError) as e:
        find_adapter(adapter)
    for pattern in (
        r"missing: .*v_proj\.lora_B",
        r"o_proj: .*do not fit",
        r"rank 5, but .* says 4",
        r"missing: .*down_proj\.lora_A and lora_B",
    ):
        assert re.search(pattern, str(e.value)), pattern


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4.*base model's weights"),
        ({"r": 0}, "r "),
        ({"r": "8"}, "r "),
        ({"lora_alpha": "much"}, "lora_alpha"),
        ({"rank_pattern": [1]}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 10**400}}, "alpha_pattern"),
        ({"alpha_pattern": {"q_proj": float("inf")}}, "alpha_pattern"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"alpha_pattern": {"(": 1}}, "alpha_pattern.*regular expression"),
    ],
)
def test_adapters_that_are_not_supported(settings, message, tmp_path, tiny_checkpoint):
    adapter = write_adapter(tmp_path / "a", [Q], **settings)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        find_source(tiny_checkpoint("small")).open(lora=[adapter])


def test_what_is_no_adapter(tmp_path, tiny_checkpoint):
    source = find_source(tiny_checkpoint("small"))
    with pytest.raises(ModelNotFound, match=r"adapter_config\.json"):
        source.open(lora=[tmp_path])
    adapter = write_adapter(tmp_path / "a", [Q])
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks adapter_model\.safetensors"):
        source.open(lora=[adapter])
    (adapter / "adapter_config.json").write_text(json.dumps([1]))
    with pytest.raises(CheckpointError, match="must be a JSON object"):
        source.open(lora=[adapter])


def test_an_adapter_is_no_checkpoint(tmp_path):
    adapter = write_adapter(tmp_path / "a", [Q])
    with pytest.raises(ModelNotFound, match="convert BASE --lora ADAPTER"):
        convert(adapter, tmp_path / "out")
