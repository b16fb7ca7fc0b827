"""What is checked of a text GGUF and its mmproj before llama.cpp sees them.

llama.cpp asserts on some of it, which would end the Python process.
"""

import math
from collections.abc import Callable
from typing import Any

from pyvllama.errors import FormatError
from pyvllama.gguf_file import GGUFFile

__all__ = ["check_pair", "check_text"]

# What must be equal in both files: key of the text file, name among the mmproj's hparams.
_SHAPES = (
    ("llama.embedding_length", "text_n_embd"),
    ("llama.block_count", "text_n_layer_self"),
    ("llama.attention.head_count", "text_n_head"),
    ("llama.attention.head_count_kv", "text_n_head_kv"),
)
_NO_WEIGHTS = ("i8", "i16", "i32", "i64", "f64")  # types that a tensor can have and llama.cpp cannot multiply
_NO_MODELS = {
    "imatrix": "an importance matrix (for --imatrix of `pyvllama convert` and `quantize`)",
    "adapter": "a LoRA adapter (for llama.cpp; here, merge it with `pyvllama convert --lora`)",
}
_MAX_EXTRA_TOKENS = 256  # beyond lm_head's rows: the image token, its padding, and what a fine-tune may have added


def _is_positive(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0


# Values that llama.cpp asserts on or computes nonsense with: key, what is expected, test. A missing key is its affair.
_VALUES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("llama.attention.layer_norm_rms_epsilon", "a positive number", _is_positive),
    ("llama.rope.freq_base", "a positive number", _is_positive),
    ("llama.rope.scaling.factor", "a positive number", _is_positive),
    ("llama.rope.scaling.type", "none, linear, yarn or longrope", ("none", "linear", "yarn", "longrope").__contains__),
    ("llama.expert_count", "0: this is no Llama 3", (0,).__contains__),
    ("tokenizer.ggml.model", "'gpt2', Llama 3's kind of vocabulary", ("gpt2",).__contains__),
)


def check_text(file: GGUFFile) -> None:
    """Refuse a text GGUF that is of another kind or that llama.cpp would die of.

    Raises:
        FormatError: says which key or tensor.
    """
    architecture = file.metadata.get("general.architecture")
    if what := _NO_MODELS.get(str(file.metadata.get("general.type"))):
        raise FormatError(f"{file.path}: this is {what}, no model")
    if architecture == "clip":
        raise FormatError(f"{file.path}: this is an mmproj file; name the text file beside it instead")
    if architecture != "llama":
        raise FormatError(
            f"{file.path}: the architecture is {architecture!r}, expected 'llama': convert the model with "
            "`pyvllama convert`"
        )
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise FormatError(f"{file.path}: key 'tokenizer.ggml.tokens' is no list of texts")
    if len(set(tokens)) != len(tokens):
        raise FormatError(f"{file.path}: 'tokenizer.ggml.tokens' has the same token twice")
    if not isinstance(file.metadata.get("tokenizer.chat_template", ""), str):
        raise FormatError(f"{file.path}: key 'tokenizer.chat_template' is no text")
    for key, expected, fits in _VALUES:
        if key in file.metadata and not fits(file.metadata[key]):
            raise FormatError(f"{file.path}: key '{key}' is {file.metadata[key]!r}, expected {expected}")
    for tensor in file.tensors.values():
        if tensor.type in _NO_WEIGHTS:
            raise FormatError(f"{file.path}: tensor '{tensor.name}' is of type {tensor.type}, no type of weights")


def check_pair(text: GGUFFile, mmproj: GGUFFile, hparams: dict[str, Any]) -> None:
    """Refuse two files that do not fit.

    Args:
        text: the text GGUF.
        mmproj: the mmproj file.
        hparams: the mmproj's numbers, as the extension reads them.

    Raises:
        FormatError: names both files and every pair of values that differ.
    """
    wrong = [
        f"{key} is {text.metadata.get(key)}, the mmproj was made for {hparams[name]}"
        for key, name in _SHAPES
        if text.metadata.get(key) != hparams[name]
    ]
    n_tokens = len(text.metadata["tokenizer.ggml.tokens"])
    if n_tokens < hparams["text_n_vocab"]:
        wrong.append(f"the vocabulary has {n_tokens} tokens, the mmproj was made for {hparams['text_n_vocab']}")
    elif n_tokens > hparams["text_n_vocab"] + _MAX_EXTRA_TOKENS:
        wrong.append(f"the vocabulary has {n_tokens} tokens, the mmproj was made for only {hparams['text_n_vocab']}")
    if wrong:
        raise FormatError(f"{text.path} and {mmproj.path} do not belong together: {'; '.join(wrong)}")
