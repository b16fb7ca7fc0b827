"""Llamas of both kinds on the bundled model and on exact tiny ones."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pyvllama
from pyvllama._runtime import llama_cpp
from pyvllama.locate import pocket_pair as bundled_pair

QUIET = {"n_ctx": 512, "n_threads": 1, "n_threads_batch": 1, "verbose": False}


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    """make(**options) -> a new pyvllama.Llama, by default of the bundled model."""
    made: list[Any] = []

    def new(model_path: Any = None, **options: Any) -> Any:
        made.append(pyvllama.Llama(model_path, **{**QUIET, **options}))
        return made[-1]

    yield new
    for llama in made:
        llama.close()


@pytest.fixture
def make_original() -> Iterator[Callable[..., Any]]:
    """make_original(**options) -> a new llama_cpp.Llama on the same text file."""
    made: list[Any] = []

    def new(model_path: Any = None, **options: Any) -> Any:
        made.append(llama_cpp.Llama(str(model_path or bundled_pair().text), **{**QUIET, **options}))
        return made[-1]

    yield new
    for llama in made:
        llama.close()
