"""Keys and values of images, for every cross-attention layer."""

import numpy as np
import pytest
from cases import make_case
from invariants import F32_BOUND, max_error
from tiny_configs import CONFIGS

from pyvllama.errors import ConfigError
from pyvllama.gguf_file import GGUFFile

# relative to the RMS: half a unit in the last place of F16 and BF16 is 5e-4 and 4e-3 of a value; the largest values are
# 4 to 5 times the RMS. Q8_0's is 1/254 of the largest of 32 neighbours; its values are F16 on the CPU.
BOUNDS = {"f32": F32_BOUND, "f16": 3e-3, "bf16": 2.5e-2, "q8_0": 2.5e-2}


@pytest.mark.reference
@pytest.mark.parametrize("kv_type", BOUNDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_values(tiny_checkpoint, tiny_pair, oracle, mmprojs, name, kv_type):
    if kv_type == "q8_0" and CONFIGS[name].hidden_size // CONFIGS[name].num_attention_heads % 32:
        with pytest.raises(ConfigError, match="cross_kv_type cannot be q8_0 in this model: its heads have"):
            mmprojs(tiny_pair(name).mmproj, cross_kv_type=kv_type)
        return
    mmproj = mmprojs(tiny_pair(name).mmproj, cross_kv_type=kv_type)
    for image in make_case(name, "three_mixed").images:
        states, _, _ = mmproj.encode(*image)
        expected = oracle(tiny_checkpoint(name)).cross_kv(image)
        assert list(expected) == mmproj.hparams["cross_attention_layers"]
        for j, (keys, values) in enumerate(expected.values()):
            assert max_error(states.keys(j).transpose(1, 0, 2), keys) <= BOUNDS[kv_type]
            v_type = "f16" if kv_type == "q8_0" else kv_type
            assert max_error(states.values(j).transpose(1, 0, 2), values) <= BOUNDS[v_type]
        with pytest.raises(IndexError, match="cross-attention layers"):
            states.keys(len(expected))


@pytest.mark.parametrize("name", CONFIGS)
def test_keys_and_values_without_torch(tiny_pair, mmprojs, name):
    """From the states (which have goldens of their own) in NumPy: K = k_norm(W_k s), V = W_v s, a head at a time."""
    path = tiny_pair(name).mmproj
    mmproj, file = mmprojs(path), GGUFFile(path)
    eps = file.metadata["clip.mllama.text.attention.layer_norm_rms_epsilon"]
    n_kv = mmproj.hparams["text_n_head_kv"]
    image, states, _ = mmproj.encode(*make_case(name, "three_mixed").images[1], want_states=True)
    rows = states.reshape(-1, states.shape[-1]).astype(np.float64)
    for j, layer in enumerate(mmproj.hparams["cross_attention_layers"]):
        weight = {part: file.f32(f"xattn.blk.{layer}.{part}.weight") for part in ("attn_k", "attn_v", "attn_k_norm")}
        keys, values = ((rows @ weight[part].T).reshape(len(rows), n_kv, -1) for part in ("attn_k", "attn_v"))
        keys = keys / np.sqrt((keys**2).mean(-1, keepdims=True) + eps) * weight["attn_k_norm"]
        assert max_error(image.keys(j).transpose(1, 0, 2), keys) <= F32_BOUND
        assert max_error(image.values(j).transpose(1, 0, 2), values) <= F32_BOUND
