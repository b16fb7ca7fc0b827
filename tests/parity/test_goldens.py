"""The stored goldens are what the oracle says today, and say where they come from."""

import goldens
import numpy as np
import pytest
from cases import all_cases
from invariants import max_error
from tiny_configs import ALL_CONFIGS


@pytest.mark.parametrize("name", [*ALL_CONFIGS, "pocket"])
def test_header_is_a_birth_certificate(name):
    header, arrays = goldens.load(name)
    assert header["command"] == f"python tools/make_golden.py {name}"
    assert {"torch", "transformers", "numpy"} <= set(header["versions"])
    assert header["n_samples"] == goldens.N_SAMPLES
    assert all(np.isfinite(array).all() for array in arrays.values())


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_every_case_has_its_golden(name):
    _, arrays = goldens.load(name)
    stored = {key.rsplit(".", 1)[0] for key in arrays}
    assert stored == {case.name for case in all_cases(name)}


def test_files_stay_small():
    assert sum(path.stat().st_size for path in goldens.GOLDEN_DIR.glob("*.npz")) < 1_000_000


@pytest.mark.reference
@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_goldens_are_what_the_oracle_says(tiny_checkpoint, oracle, name):
    _, arrays = goldens.load(name)
    model = oracle(tiny_checkpoint(name))
    for case in all_cases(name)[:: 3 if name == "base" else 1]:
        logits = model.logits(case.token_ids, case.images)
        # another CPU or torch adds up in another order: float32 rounding only
        assert (
            max_error(goldens.sample(logits), arrays[f"{case.name}.logits"], float(arrays[f"{case.name}.rms"])) < 5e-6
        )
