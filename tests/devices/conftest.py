"""Two devices that are no CPU, known to llama.cpp while the tests of this folder run."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_devices
import pytest
from fake_devices import FakeDevices
from harness import Decoder

from pyvllama._runtime import native


@pytest.fixture(scope="session")
def _library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_devices.build(tmp_path_factory.mktemp("fake"))


@pytest.fixture(scope="module")
def devices(_library: Path) -> Iterator[FakeDevices]:
    """FAKE0 and FAKE1."""
    with fake_devices.registered(_library) as found:
        yield found


@pytest.fixture(scope="module")
def mmproj(devices: FakeDevices) -> Callable[..., Any]:
    """mmproj(path, tower, layers of devices, **options) -> native.Mmproj with exact K/V (F32); a few are kept."""

    @functools.lru_cache(maxsize=6)
    def get(path: Path, tower: str = "cpu", layers: tuple[str, ...] = (), **options: Any) -> Any:
        options = {"n_threads": 1, "cross_kv_type": "f32"} | options
        return native.Mmproj(str(path), device=tower, layer_devices=layers, **options)

    return get


@pytest.fixture(scope="module")
def on_cpu(tiny_pair: Callable[..., Any], mmproj: Callable[..., Any]) -> Iterator[Callable[[str], Decoder]]:
    """on_cpu(config name) -> Decoder with everything on the CPU: what tests/parity compares with the oracle."""
    cache: dict[str, Decoder] = {}

    def get(name: str) -> Decoder:
        if name not in cache:
            pair = tiny_pair(name)
            cache[name] = Decoder(pair.text, mmproj(pair.mmproj))
        return cache[name]

    yield get
    for decoder in cache.values():
        decoder.__exit__()
