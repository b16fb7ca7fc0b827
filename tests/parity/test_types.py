"""The stated error of every file type and of the K/V types, on a random tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_bytes
import numpy as np
import pytest
from cases import Case, canvas_case, make_case
from gguf_bytes import TYPE_F32, Gguf
from harness import Decoder
from invariants import max_error, rms_error
from tiny_configs import CONFIGS

from pyvllama.gguf_file import GGUFFile

# (text type, mmproj type, K/V type) -> bounds, about twice what was measured on x86-64, in units of the logits' RMS:
#   weights: RMS error against the oracle, which has the weights as they were. Random weights are the worst case, as all
#            logits are of one size; the pocket model's bounds (test_pocket.py) say more about trained ones.
#   compute: largest error of any logit against the same blocks unpacked to F32 and computed in F32. What is left is the
#            rounding of activations. This is the bound that an error in a kernel, a layout or a type would break.
BOUNDS = {
    ("f32", "f32", "f16"): (1e-3, 5e-3),
    ("f32", "f32", "q8_0"): (1e-2, 5e-2),
    ("f16", "f16", "f16"): (3e-3, 1.2e-2),
    ("bf16", "bf16", "f16"): (2.2e-2, 6e-2),
    ("q8_0", "q8_0", "f16"): (7e-2, 2e-1),
    ("q4_k_m", "q8_0", "f16"): (6.5e-1, 2.8e-1),
    ("q4_k_m", "q4_k", "f16"): (6.5e-1, 2.8e-1),
}


def cases() -> list[Case]:
    layouts = ["text_image_text", "consecutive", "later_turn"]
    return [*(make_case("base", layout) for layout in layouts), canvas_case("base", (2, 2))]


def unpack(source: Path, target: Path) -> Path:
    """A copy of a GGUF with every tensor as F32."""
    values = GGUFFile(source)

    def change(g: Gguf) -> None:
        for tensor in g.tensors:
            tensor.kind, tensor.data = TYPE_F32, values.f32(tensor.name).tobytes()

    return gguf_bytes.rewrite(source, target, change)


@pytest.fixture(scope="module")
def logits(tiny_pair: Callable[..., Any], mmprojs: Callable[..., Any]) -> Callable[..., dict[str, np.ndarray]]:
    """logits(types) -> case name -> logits as such a pair gives them; computed once."""
    known: dict[Any, dict[str, np.ndarray]] = {}

    def get(types: tuple[str, str, str]) -> dict[str, np.ndarray]:
        if types not in known:
            text_type, mmproj_type, kv_type = types
            pair = tiny_pair("base", text_type, mmproj_type)
            mmproj = mmprojs(pair.mmproj, cross_kv_type=kv_type)
            with Decoder(pair.text, mmproj, kv_type=1) as decoder:
                known[types] = {case.name: decoder.logits(case)[:, : CONFIGS["base"].vocab_size] for case in cases()}
        return known[types]

    return get


@pytest.mark.parametrize("types", BOUNDS, ids="-".join)
def test_error_of_the_weights(logits, expected, types):
    got = logits(types)
    errors = {case.name: expected("base").logits_error(case, got[case.name], rms_error) for case in cases()}
    assert max(errors.values()) <= BOUNDS[types][0], errors


@pytest.mark.parametrize("types", BOUNDS, ids="-".join)
def test_error_of_computing(logits, tiny_pair, mmprojs, tmp_path, types):
    pair, got = tiny_pair("base", *types[:2]), logits(types)
    text, mmproj = unpack(pair.text, tmp_path / "text.gguf"), unpack(pair.mmproj, tmp_path / "mmproj.gguf")
    with Decoder(text, mmprojs(mmproj)) as exact:
        want = {case.name: exact.logits(case)[:, : CONFIGS["base"].vocab_size] for case in cases()}
    errors = {name: max_error(got[name], want[name]) for name in want}
    assert max(errors.values()) <= BOUNDS[types][1], errors
