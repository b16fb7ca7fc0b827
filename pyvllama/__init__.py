"""Llama 3.2 Vision on your own machine: stock llama.cpp, with the model's cross-attention plugged in.

>>> import pyvllama
>>> with pyvllama.load() as llm:  # the bundled pocket model; or a GGUF file, or a directory
...     answer = llm.chat([{"role": "user", "content": [
...         {"type": "image_url", "image_url": {"url": "photo.jpg"}},
...         {"type": "text", "text": "What is this?"}]}])
...     print(answer["choices"][0]["message"]["content"])
"""

from typing import TYPE_CHECKING, Any

from pyvllama import errors
from pyvllama.errors import (
    BackendError,
    Cancelled,
    CheckpointError,
    ConfigError,
    ContextOverflow,
    FormatError,
    ImageError,
    ImageFetchRefused,
    ImageTooLarge,
    ModelNotFound,
    PromptError,
    VllamaError,
)
from pyvllama.llm import LLM, load
from pyvllama.types import Pair, SamplingParams

if TYPE_CHECKING:
    from pyvllama.conversion import convert

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "BackendError",
    "Cancelled",
    "CheckpointError",
    "ConfigError",
    "ContextOverflow",
    "FormatError",
    "ImageError",
    "ImageFetchRefused",
    "ImageTooLarge",
    "ModelNotFound",
    "Pair",
    "PromptError",
    "SamplingParams",
    "VllamaError",
    "__version__",
    "convert",
    "errors",
    "load",
]


def __getattr__(name: str) -> Any:
    if name == "convert":  # not loaded by those who only chat
        from pyvllama.conversion import convert  # noqa: PLC0415

        globals()["convert"] = convert
        return convert
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
