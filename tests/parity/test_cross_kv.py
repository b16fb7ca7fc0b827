"""Keys and values of images, for every cross-attention layer."""

import pytest
from cases import make_case
from invariants import F32_BOUND, max_error
from tiny_configs import CONFIGS

# relative to the RMS: half a unit in the last place of F16 and BF16 is 5e-4 and 4e-3 of a value; the largest values are
# 4 to 5 times the RMS
BOUNDS = {"f32": F32_BOUND, "f16": 3e-3, "bf16": 2.5e-2}


@pytest.mark.reference
@pytest.mark.parametrize("kv_type", BOUNDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_values(tiny_checkpoint, tiny_pair, oracle, mmprojs, name, kv_type):
    mmproj = mmprojs(tiny_pair(name).mmproj, cross_kv_type=kv_type)
    for image in make_case(name, "three_mixed").images:
        states, _, _ = mmproj.encode(*image)
        expected = oracle(tiny_checkpoint(name)).cross_kv(image)
        assert list(expected) == mmproj.hparams["cross_attention_layers"]
        for j, (keys, values) in enumerate(expected.values()):
            assert max_error(states.keys(j).transpose(1, 0, 2), keys) <= BOUNDS[kv_type]
            assert max_error(states.values(j).transpose(1, 0, 2), values) <= BOUNDS[kv_type]
        with pytest.raises(IndexError, match="cross-attention layers"):
            states.keys(len(expected))
