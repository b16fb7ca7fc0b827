"""Llama 3.2 Vision on your own machine: stock llama.cpp, with the model's cross-attention plugged in.

>>> import pyvllama
>>> with pyvllama.load() as llm:  # the bundled pocket model; or a GGUF file, or a directory
...     answer = llm.chat([{"role": "user", "content": [
...         {"type": "image_url", "image_url": {"url": "photo.jpg"}},
...         {"type": "text", "text": "What is this?"}]}])
...     print(answer["choices"][0]["message"]["content"])
"""

import importlib
from typing import TYPE_CHECKING, Any

from pyvllama import errors
from pyvllama.errors import (
    BackendError,
    Cancelled,
    CheckpointError,
    ConfigError,
    ContextOverflow,
    DeadlineExceeded,
    FormatError,
    ImageError,
    ImageFetchRefused,
    ImageTooLarge,
    ModelNotFound,
    PromptError,
    QueueFull,
    VllamaError,
)
from pyvllama.llm import LLM
from pyvllama.loading import load
from pyvllama.types import Pair, SamplingParams

if TYPE_CHECKING:
    from pyvllama.async_llm import AsyncLLM
    from pyvllama.conversion import convert, export, quantize
    from pyvllama.evaluation import evaluate
    from pyvllama.imatrix import collect_imatrix
    from pyvllama.integrations.llama_cpp_python import Llama

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncLLM",
    "BackendError",
    "Cancelled",
    "CheckpointError",
    "ConfigError",
    "ContextOverflow",
    "DeadlineExceeded",
    "FormatError",
    "ImageError",
    "ImageFetchRefused",
    "ImageTooLarge",
    "Llama",
    "ModelNotFound",
    "Pair",
    "PromptError",
    "QueueFull",
    "SamplingParams",
    "VllamaError",
    "__version__",
    "collect_imatrix",
    "convert",
    "errors",
    "evaluate",
    "export",
    "load",
    "quantize",
]


_LAZY = {
    "AsyncLLM": "pyvllama.async_llm",
    "Llama": "pyvllama.integrations.llama_cpp_python",
    "collect_imatrix": "pyvllama.imatrix",
    "convert": "pyvllama.conversion",
    "evaluate": "pyvllama.evaluation",
    "export": "pyvllama.conversion",
    "quantize": "pyvllama.conversion",
}
"""Not loaded by those who only chat."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
