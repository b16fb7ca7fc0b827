"""Fixtures shared by all tests: checkpoints, converted pairs, the oracle. Everything is made once a session."""

import functools
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import factories
import pytest
import time_limit

POCKET = Path(__file__).parent / "data" / "pocket-vllama"
HAS_REFERENCE = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def pytest_configure(config: pytest.Config) -> None:
    """No test may hang for ever."""
    config.pluginmanager.register(time_limit.TimeLimit(config), "time-limit")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked `reference` where the oracle's packages are missing."""
    if not HAS_REFERENCE:
        skip = pytest.mark.skip(reason="needs torch and transformers: pip install 'pyvllama[reference]'")
        for item in items:
            if item.get_closest_marker("reference"):
                item.add_marker(skip)


@pytest.fixture(scope="module")
def module_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory for what the tests of one file share; `tmp_path_factory` keeps its own to the end of the session."""
    path = tmp_path_factory.mktemp("module")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def pocket_checkpoint() -> Path:
    """The bundled trained checkpoint, in Hugging Face's form."""
    return POCKET


@pytest.fixture(scope="session")
def samples() -> list[dict[str, Any]]:
    """The pocket model's sample pictures: [{"path": Path, "mode": str, "qa": [{"question", "expected", ...}]}]."""
    listed = json.loads((POCKET / "samples" / "expected.json").read_text(encoding="utf-8"))["samples"]
    return [sample | {"path": POCKET / "samples" / sample["image"]} for sample in listed]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_checkpoint(config_name, **options of factories.write_checkpoint) -> its directory, made once."""

    @functools.cache
    def make(config_name: str = "base", **options: Any) -> Path:
        out_dir = tmp_path_factory.mktemp("checkpoint") / f"tiny-{config_name}"
        return factories.write_checkpoint(out_dir, config_name, **options)

    return make


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """converted(checkpoint, text_type, mmproj_type, cross_type=None) -> pyvllama.Pair, made once."""
    import pyvllama

    out_dir = tmp_path_factory.mktemp("gguf")

    @functools.cache
    def make(checkpoint: Path, text_type: str = "f32", mmproj_type: str = "f32", cross_type: str | None = None) -> Any:
        where = out_dir / "-".join(filter(None, (checkpoint.parent.name, text_type, mmproj_type, cross_type)))
        where.mkdir(exist_ok=True)
        return pyvllama.convert(checkpoint, where, text_type=text_type, mmproj_type=mmproj_type, cross_type=cross_type)

    return make


@pytest.fixture(scope="session")
def tiny_pair(tiny_checkpoint: Callable[..., Path], converted: Callable[..., Any]) -> Callable[..., Any]:
    """tiny_pair(config_name, text_type="f32", mmproj_type="f32", cross_type=None) -> pyvllama.Pair, made once."""

    def make(config_name: str = "base", text_type: str = "f32", mmproj_type: str = "f32", **options: Any) -> Any:
        return converted(tiny_checkpoint(config_name), text_type, mmproj_type, **options)

    return make


@pytest.fixture(scope="session")
def pocket_pairs(converted: Callable[..., Any]) -> Callable[..., Any]:
    """pocket_pairs(text_type, mmproj_type) -> pyvllama.Pair of the pocket model, made once."""
    return functools.partial(converted, POCKET)


@pytest.fixture(scope="session")
def pocket_pair(pocket_pairs: Callable[..., Any]) -> Any:
    """The pocket model as F32 text and F32 mmproj."""
    return pocket_pairs("f32", "f32")


@pytest.fixture(scope="session")
def oracle() -> Callable[[Path], Any]:
    """oracle(checkpoint) -> reference.Oracle, loaded once; for tests marked `reference` only."""
    import reference
    import torch

    torch.set_num_threads(1)  # tiny matrices; idle threads spin
    return functools.cache(reference.Oracle)
