import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvllama.config import Llama3Rope, MllamaConfig
from pyvllama.conversion import transforms


@given(st.integers(1, 8), st.integers(1, 16), st.integers(1, 5))
def test_permute_rope_moves_half_split_pairs_next_to_each_other(n_head, half, n_per_row):
    n_rows = n_head * half * 2
    source = np.arange(n_rows * n_per_row).reshape(n_rows, n_per_row)
    result = source[transforms.permute_rope(n_rows, n_head)]
    for head in range(n_head):
        for i in range(half):
            row = head * 2 * half
            assert np.array_equal(result[row + 2 * i], source[row + i])
            assert np.array_equal(result[row + 2 * i + 1], source[row + half + i])


@given(st.integers(1, 8), st.integers(1, 16), st.integers(0, 9))
def test_inverses(n_head, half, n_padding):
    n_rows = n_head * half * 2
    source = np.random.default_rng(0).standard_normal((n_rows, 3))
    for index in (
        transforms.identity(n_rows),
        transforms.permute_rope(n_rows, n_head),
        transforms.pad_rows(n_rows, n_rows + n_padding, n_rows // 2),
    ):
        assert np.array_equal(source[index][transforms.invert(index, n_rows)], source)


def test_pad_rows_copies_the_filler():
    assert transforms.pad_rows(3, 5, 1).tolist() == [0, 1, 2, 1, 1]


def test_a_single_row_has_no_inverse():
    with pytest.raises(ValueError, match="drops 3 of 4 rows"):
        transforms.invert(transforms.single_row(2), 4)


def llama3_config(pocket_checkpoint, **rope):
    config = json.loads((pocket_checkpoint / "config.json").read_text())
    config["text_config"]["rope_scaling"] |= rope
    return MllamaConfig.from_hf_json(config).text


def test_rope_factors(pocket_checkpoint):
    text = llama3_config(pocket_checkpoint)
    assert text.rope_scaling == Llama3Rope(8.0, 1.0, 4.0, 8192)
    factors = transforms.rope_factors(text)
    assert factors.dtype == np.float32
    assert factors.shape == (32,)
    assert factors[0] == 1.0
    assert factors[-1] == 8.0
    assert (np.diff(factors) >= 0).all()
    assert ((factors > 1) & (factors < 8)).any()


@pytest.mark.reference
@pytest.mark.parametrize("rope", [{}, {"factor": 32.0}, {"original_max_position_embeddings": 16, "factor": 4.0}])
def test_rope_factors_equal_transformers(pocket_checkpoint, rope):
    from transformers import MllamaTextConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    text = llama3_config(pocket_checkpoint, **rope)
    s = text.rope_scaling
    parameters = {
        "rope_type": "llama3",
        "rope_theta": text.rope_theta,
        "factor": s.factor,
        "low_freq_factor": s.low_freq_factor,
        "high_freq_factor": s.high_freq_factor,
        "original_max_position_embeddings": s.original_max_position_embeddings,
    }
    config = MllamaTextConfig(hidden_size=256, num_attention_heads=4, rope_parameters=parameters)
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    plain = 1.0 / text.rope_theta ** (np.arange(0, 64, 2) / 64)
    assert np.allclose(plain / transforms.rope_factors(text), expected.numpy(), rtol=2e-6, atol=0)
