"""The tiny checkpoints and the oracle themselves: tests of what the other tests rely on."""

import json
from pathlib import Path

import factories
import numpy as np
import pytest
import tiny_tokenizer
from cases import all_cases, images_seen, make_case
from tiny_configs import CONFIGS

SMALL = CONFIGS["small"]


def read_tensors(directory: Path) -> dict[str, np.ndarray]:
    """Name -> values of all F32 safetensors files of a directory."""
    tensors = {}
    for file in sorted(directory.glob("*.safetensors")):
        raw = file.read_bytes()
        start = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:start])
        header.pop("__metadata__")
        for name, info in header.items():
            first, last = (start + offset for offset in info["data_offsets"])
            tensors[name] = np.frombuffer(raw[first:last], np.float32).reshape(info["shape"])
    return tensors


@pytest.mark.parametrize("layout", ["hub", "transformers5"])
@pytest.mark.parametrize("n_shards", [1, 3])
def test_layouts_and_shards_hold_the_same_numbers(tmp_path, layout, n_shards):
    tensors = read_tensors(factories.write_checkpoint(tmp_path, "small", layout=layout, n_shards=n_shards))
    rename = {"hub": str, "transformers5": factories.hub_to_transformers5}[layout]
    shapes = factories.tensor_shapes(SMALL)
    assert set(tensors) == {rename(name) for name in shapes}
    for name, shape in shapes.items():
        np.testing.assert_array_equal(tensors[rename(name)], factories.tensor_values(SMALL, name, shape))
    if n_shards > 1:
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert set(index["weight_map"]) == set(tensors)
        assert {path.name for path in tmp_path.glob("*.safetensors")} == set(index["weight_map"].values())


def test_values_depend_on_name_and_shape_alone():
    bigger = factories.TinyConfig(hidden_size=SMALL.hidden_size, num_attention_heads=8)
    name = "language_model.model.layers.0.input_layernorm.weight"
    shape = factories.tensor_shapes(SMALL)[name]
    np.testing.assert_array_equal(
        factories.tensor_values(SMALL, name, shape), factories.tensor_values(bigger, name, shape)
    )
    assert not np.array_equal(
        factories.tensor_values(SMALL, name, shape), factories.tensor_values(SMALL, name, shape, 1)
    )


def test_bf16_is_rounded_to_nearest_even():
    values = np.array([1.0, 1.0 + 2**-8, 1.0 + 3 * 2**-8, -3.14159, 1e-30, 65504.0], np.float32)
    back = (factories.to_bf16(values).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(back[:3], np.array([1.0, 1.0, 1.0 + 2**-6], np.float32))
    np.testing.assert_allclose(back, values, rtol=2**-8)


def test_no_square_grid_needs_no_padding_rows():
    """n^2 + 1 is never a multiple of 8, so the tower always pads; all three amounts occur in CONFIGS."""
    assert {(n * n + 1) % 8 for n in range(1, 200)} == {1, 2, 5}
    assert {config.n_positions % 8 for config in CONFIGS.values()} == {1, 2, 5}


@pytest.mark.parametrize("name", CONFIGS)
def test_configuration_is_what_it_says(name):
    config = CONFIGS[name]
    for tensor, shape in factories.tensor_shapes(config).items():
        values = factories.tensor_values(config, tensor, shape)
        assert np.isfinite(values).all()
        if tensor.endswith("gate"):
            assert np.abs(values).min() > 0.25
        if tensor.endswith("tile_embedding.weight") or "tile_positional_embedding.embedding" in tensor:
            tiles = values.reshape(shape[0], config.max_num_tiles, -1)
            real = [rows * cols for rows, cols in ((0, 0), *config.aspect_ratios)]
            assert [int(t.any(axis=-1).sum()) for t in tiles] == real


@pytest.mark.parametrize("name", CONFIGS)
def test_cases_cover_every_canvas_and_several_images(name):
    config, cases = CONFIGS[name], all_cases(name)
    seen = {ratio_id for case in cases for _, ratio_id in case.images}
    assert seen == set(range(1, len(config.aspect_ratios) + 1))
    for case in cases:
        assert case.token_ids.count(config.image_token) == len(case.images)
        assert max(t for t in case.token_ids if t != config.image_token) < config.vocab_size - 16


def test_tokenizer_files_are_consistent():
    files = tiny_tokenizer.tokenizer_files(504)
    model = files["tokenizer.json"]["model"]
    assert sorted(model["vocab"].values()) == list(range(504 - tiny_tokenizer.N_SPECIALS))
    assert all("".join(pair) in model["vocab"] for pair in model["merges"])
    ids = tiny_tokenizer.specials(504)
    assert sorted(ids.values()) == list(range(504 - tiny_tokenizer.N_SPECIALS, 505))
    assert ids["<|image|>"] == 504


@pytest.mark.reference
@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_tokenizer_and_finds_every_tensor(tiny_checkpoint, name):
    from transformers import AutoTokenizer, MllamaForConditionalGeneration

    directory = tiny_checkpoint(name)
    _, info = MllamaForConditionalGeneration.from_pretrained(directory, output_loading_info=True)
    assert not any(info.values()), info
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = "Hello, wörld! 12345 How many shapes<|eot_id|><|image|>\n\nÜber 猫"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == "<|begin_of_text|>" + text
    assert CONFIGS[name].image_token in ids


@pytest.mark.reference
@pytest.mark.parametrize("name", CONFIGS)
def test_oracle_is_finite_and_of_ordinary_size(tiny_checkpoint, oracle, name):
    case = make_case(name, "three_mixed")
    model = oracle(tiny_checkpoint(name))
    logits, states = model.logits(case.token_ids, case.images), model.vision_states(case.images[0])
    for values in (logits, states):
        assert np.isfinite(values).all()
        assert 0.1 < np.sqrt(np.mean(values**2)) < 100


@pytest.mark.reference
def test_every_gate_matters(tiny_checkpoint):
    """A gate left out, or its tanh, would move the logits by more than the tests' tolerance by far."""
    import torch
    from reference import Oracle

    case = make_case("small", "text_image_text")
    model = Oracle(tiny_checkpoint("small"))
    want = model.logits(case.token_ids, case.images)
    rms = np.sqrt(np.mean(want**2))
    gates = {name: p for name, p in model.model.named_parameters() if name.rsplit(".", 1)[-1].find("gate") >= 0}
    gates = {name: p for name, p in gates.items() if p.numel() == 1}
    assert len(gates) == 3 + 2 * SMALL.v_num_global_layers + 2 * len(SMALL.cross_attention_layers)
    for name, parameter in gates.items():
        raw = parameter.detach().clone()
        for changed in (torch.zeros_like(raw), raw.tanh()):
            with torch.no_grad():
                parameter.copy_(changed)
            moved = np.abs(model.logits(case.token_ids, case.images) - want).max() / rms
            assert moved > 1e-3, f"{name} {raw.item()} -> {changed.item()}: {moved}"
        with torch.no_grad():
            parameter.copy_(raw)


@pytest.mark.reference
def test_the_two_corrected_rules_matter(tiny_checkpoint, oracle):
    """Without Meta's rules the logits are far off: tests against the oracle can tell."""
    from reference import Oracle

    case = make_case("small", "text_image_text")
    want = oracle(tiny_checkpoint("small")).logits(case.token_ids, case.images)
    plain = Oracle(tiny_checkpoint("small"), meta_rules=False).logits(case.token_ids, case.images)
    error = np.abs(plain - want).max(axis=1) / np.sqrt(np.mean(want**2))
    assert error[: case.token_ids.index(SMALL.image_token)].max() > 0.01
    assert error[case.token_ids.index(SMALL.image_token) :].max() > 0.01


@pytest.mark.reference
def test_rows_before_the_first_image_are_text_only_rows(tiny_checkpoint, oracle):
    case = make_case("adjacent", "two_images")
    model = oracle(tiny_checkpoint("adjacent"))
    first = case.token_ids.index(model.image_token)
    want = model.logits(case.token_ids[:first])
    np.testing.assert_allclose(model.logits(case.token_ids, case.images)[:first], want, rtol=0, atol=1e-4)


@pytest.mark.reference
def test_images_seen_equals_transformers_own_rule():
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    rng = np.random.RandomState(0)
    for _ in range(200):
        ids = rng.choice([1, 2, 99], size=rng.randint(1, 15), p=[0.4, 0.3, 0.3]).tolist()
        n_images = ids.count(99)
        if not n_images:
            continue
        sparse = get_cross_attention_token_mask(ids, 99)
        dense = convert_sparse_cross_attention_mask_to_dense([sparse], [[1] * n_images], 1, len(ids))[0, :, :, 0]
        assert [np.flatnonzero(row).tolist() for row in dense] == images_seen(ids, 99), ids
