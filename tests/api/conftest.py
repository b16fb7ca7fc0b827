"""The bundled model and exact tiny ones."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from talk import EXACT

import pyvllama


@pytest.fixture(scope="session")
def llm() -> Iterator[pyvllama.LLM]:
    """The bundled pocket model, as users get it."""
    with pyvllama.load(n_threads=1) as llm:
        yield llm


@pytest.fixture(scope="session")
def load_tiny(tiny_pair: Callable[..., Any]) -> Iterator[Callable[..., pyvllama.LLM]]:
    """load_tiny(config_name, **options) -> a random model in F32, loaded."""
    loaded: list[pyvllama.LLM] = []

    def load(name: str = "small", **options: Any) -> pyvllama.LLM:
        pair = tiny_pair(name)
        loaded.append(pyvllama.load(pair.text, pair.mmproj, **{**EXACT, "n_ctx": 512, **options}))
        return loaded[-1]

    yield load
    for llm in loaded:
        llm.close()


@pytest.fixture(scope="session")
def exact(load_tiny: Callable[..., pyvllama.LLM]) -> pyvllama.LLM:
    """A tiny random model whose numbers can be compared."""
    return load_tiny()


@pytest.fixture
def endless(load_tiny: Callable[..., pyvllama.LLM], monkeypatch: pytest.MonkeyPatch) -> pyvllama.LLM:
    """A tiny random model that knows no end token: answers only end at max_tokens or with the context of 256."""
    llm = load_tiny(n_ctx=256)
    monkeypatch.setattr(llm.model.tokenizer, "eog", frozenset())
    return llm


@pytest.fixture(scope="session")
def sample(pocket_checkpoint: Path) -> Callable[[str], Path]:
    """sample("01_square.png") -> its path."""
    return lambda name: pocket_checkpoint / "samples" / name
