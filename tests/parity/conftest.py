"""What the package is compared with: the oracle where torch is there, and always the goldens it left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import goldens
import numpy as np
import pytest
from cases import Case
from harness import Decoder
from invariants import max_error

from pyvllama._runtime import native

Measure = Callable[[np.ndarray, np.ndarray, "float | None"], float]  # max_error or rms_error
EXPECTED: pytest.StashKey[dict[tuple[str, str], Any]] = pytest.StashKey()


class FromOracle:
    """Compares all values."""

    def __init__(self, oracle: Any) -> None:
        self.oracle = oracle
        self.known: dict[str, np.ndarray] = {}

    def logits(self, case: Case) -> np.ndarray:
        if case.name not in self.known:
            self.known[case.name] = self.oracle.logits(case.token_ids, case.images)
        return self.known[case.name]

    def logits_error(self, case: Case, got: np.ndarray, measure: Measure = max_error) -> float:
        return measure(got, self.logits(case), None)

    def states_error(self, case: Case, got: np.ndarray) -> float:
        return max_error(got, self.oracle.vision_states(case.images[0]))


class FromGolden:
    """Compares the stored sample of the values, in units of the whole array's RMS."""

    def __init__(self, name: str, checkpoint: Path) -> None:
        self.header, self.arrays = goldens.load(name)
        assert self.header["checkpoint_sha256"] == goldens.digest(checkpoint), (
            f"other weights; {self.header['command']}"
        )

    def logits_error(self, case: Case, got: np.ndarray, measure: Measure = max_error) -> float:
        return measure(goldens.sample(got), self.arrays[f"{case.name}.logits"], float(self.arrays[f"{case.name}.rms"]))

    def states_error(self, case: Case, got: np.ndarray) -> float:
        scale = float(self.arrays[f"{case.name}.states_rms"])
        return max_error(goldens.sample(got), self.arrays[f"{case.name}.states"], scale)


@pytest.fixture(params=["golden", pytest.param("oracle", marks=pytest.mark.reference)])
def expected(request: pytest.FixtureRequest, tiny_checkpoint: Callable[..., Path]) -> Callable[[str], Any]:
    """expected(config_name) -> FromGolden or FromOracle."""

    def get(name: str) -> Any:
        cache = request.session.stash.setdefault(EXPECTED, {})
        key = (request.param, name)
        if key not in cache:
            checkpoint = tiny_checkpoint(name)
            if request.param == "golden":
                cache[key] = FromGolden(name, checkpoint)
            else:
                cache[key] = FromOracle(request.getfixturevalue("oracle")(checkpoint))
        return cache[key]

    return get


@pytest.fixture(scope="session")
def mmprojs() -> Callable[..., Any]:
    """mmprojs(path, **options) -> native.Mmproj with exact K/V (F32) by default, opened once."""
    cache: dict[Any, Any] = {}

    def get(path: Path, **options: Any) -> Any:
        options = {"n_threads": 1, "cross_kv_type": "f32"} | options
        key = (path, *sorted(options.items()))
        if key not in cache:
            cache[key] = native.Mmproj(str(path), **options)
        return cache[key]

    return get


@pytest.fixture(scope="session")
def decoders(tiny_pair: Callable[..., Any], mmprojs: Callable[..., Any]) -> Any:
    """decoders(config_name, n_ubatch=512, ...) -> Decoder of the F32 pair, made once."""
    cache: dict[Any, Decoder] = {}

    def get(name: str, **options: Any) -> Decoder:
        key = (name, *sorted(options.items()))
        if key not in cache:
            pair = tiny_pair(name)
            cache[key] = Decoder(pair.text, mmprojs(pair.mmproj), **options)
        return cache[key]

    yield get
    for decoder in cache.values():
        decoder.__exit__()
