"""The keys of Ollama's Mllama files as the same objects that a checkpoint's JSON files become.

What those files lack is a fact of the model family, and stands here in one table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyvllama.config import EXTRA_EMBEDDING_ROWS, MllamaConfig, PreprocessorConfig, aspect_ratios
from pyvllama.conversion.vocab import CONTROL, EOG_TEXTS, UNUSED, Vocabulary
from pyvllama.errors import CheckpointError, ConfigError, FormatError

__all__ = ["ARCHITECTURE", "is_llama3_template", "read_config", "read_params", "read_preprocessor", "read_vocabulary"]

ARCHITECTURE = "mllama"

IMAGE_TOKEN = "<|image|>"
_FAMILY = {
    # preprocessor_config.json of meta-llama/Llama-3.2-11B-Vision-Instruct (CLIP's mean and deviation)
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 2,  # bilinear
    "rescale_factor": 1 / 255,
}
"""Facts of Llama 3.2 Vision that Ollama's files do not hold. The image token is the first one behind lm_head's rows."""

_TEXT_KEYS = {
    # config.json                key behind "mllama."
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "cross_attention_layers": "attention.cross_attention_layers",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
_VISION_KEYS = {
    "hidden_size": "vision.embedding_length",
    "intermediate_size": "vision.feed_forward_length",
    "num_hidden_layers": "vision.block_count",
    "num_global_layers": "vision.global.block_count",
    "attention_heads": "vision.attention.head_count",
    "image_size": "vision.image_size",
    "patch_size": "vision.patch_size",
    "max_num_tiles": "vision.max_num_tiles",
    "intermediate_layers_indices": "vision.intermediate_layers_indices",
    "norm_eps": "vision.attention.layer_norm_epsilon",
    "num_channels": "vision.num_channels",
}
_PRE_TOKENIZERS = ("llama-bpe", "llama3", "llama-v3", "smaug-bpe")
"""Names of Llama 3's regular expression; the first G1 files call it smaug-bpe, which is the same one in llama.cpp."""

_PARAMS = {
    # Ollama's            generation_config.json
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
}


def read_config(
    text_keys: Mapping[str, Any],
    vision_keys: Mapping[str, Any],
    *,
    n_embedding: int,
    n_lm_head: int | None,
    where: str,
) -> MllamaConfig:
    """Dimensions of the model, checked like those of a config.json.

    Args:
        text_keys: metadata of the file with the text model.
        vision_keys: metadata of the file with the vision tower; the same one in G3.
        n_embedding: rows of token_embd.weight.
        n_lm_head: rows of output.weight; None if there is none (tied to the embedding).
        where: files, for messages.

    Raises:
        FormatError: keys are missing or contradict each other.
    """
    text = {hf: text_keys.get(f"{ARCHITECTURE}.{key}") for hf, key in _TEXT_KEYS.items()}
    vision = {hf: vision_keys.get(f"{ARCHITECTURE}.{key}") for hf, key in _VISION_KEYS.items()}
    vocab_size = n_embedding - EXTRA_EMBEDDING_ROWS
    if n_lm_head not in (None, vocab_size):
        raise FormatError(
            f"{where}: the embedding has {n_embedding} rows and the output {n_lm_head}, not {EXTRA_EMBEDDING_ROWS} "
            "less: convert the checkpoint itself with pyvllama"
        )
    if vision["num_channels"] is None:
        vision["num_channels"] = 3
    tiles, hidden, kept = (vision[key] for key in ("max_num_tiles", "hidden_size", "intermediate_layers_indices"))
    if not isinstance(tiles, int) or not 1 <= tiles <= 64 or not isinstance(hidden, int) or not isinstance(kept, list):
        raise FormatError(f"{where}: keys of the vision tower are missing or wrong (max_num_tiles = {tiles!r:.80})")
    derived = {
        "supported_aspect_ratios": [list(grid) for grid in aspect_ratios(tiles)],
        "vision_output_dim": hidden * (1 + len(kept)),
    }
    text |= {"vocab_size": vocab_size, "tie_word_embeddings": n_lm_head is None}
    try:
        return MllamaConfig.from_hf_json(
            {
                "model_type": "mllama",
                "image_token_index": vocab_size,
                "text_config": text,
                "vision_config": vision | derived,
            }
        )
    except ConfigError as e:
        raise FormatError(f"{where} has no valid keys of a Llama 3.2 Vision model: {e}") from e


def read_preprocessor(config: MllamaConfig) -> PreprocessorConfig:
    """How pictures become tiles: sizes from the file, all else is the family's."""
    size = config.vision.image_size
    tiles = {"size": {"height": size, "width": size}, "max_image_tiles": config.vision.max_num_tiles}
    return PreprocessorConfig.from_hf_json({**_FAMILY, **tiles})


def read_vocabulary(keys: Mapping[str, Any], config: MllamaConfig, *, chat_template: str, where: str) -> Vocabulary:
    """The tokenizer: Ollama's 128257 tokens, and unused ones up to the rows of the embedding.

    `add_bos_token` is ignored: Ollama writes false where a checkpoint does not say, and Llama 3 needs BOS.

    Raises:
        FormatError: it is damaged, or not Llama 3's.
    """
    if keys.get("tokenizer.ggml.model") != "gpt2" or keys.get("tokenizer.ggml.pre") not in _PRE_TOKENIZERS:
        kind = f"{keys.get('tokenizer.ggml.model')!r:.80} / {keys.get('tokenizer.ggml.pre')!r:.80}"
        raise FormatError(f"{where}: the tokenizer is {kind}, not Llama 3's ('gpt2' / 'llama-bpe')")
    tokens = _list(keys, "tokens", str, where)
    types = _list(keys, "token_type", int, where)
    n_tokens = config.text.n_embedding_rows
    if len(types) != len(tokens) or not config.text.vocab_size <= len(tokens) <= n_tokens:
        raise FormatError(
            f"{where}: {len(tokens)} tokens and {len(types)} types of tokens, but the embedding has {n_tokens} rows"
        )
    _check_ids(keys, len(tokens), where)
    if len(tokens) == config.image_token_index:
        tokens, types = [*tokens, IMAGE_TOKEN], [*types, CONTROL]
    if tokens[config.image_token_index] != IMAGE_TOKEN:
        found = tokens[config.image_token_index]
        raise FormatError(f"{where}: token {config.image_token_index} is {found!r:.80}, not {IMAGE_TOKEN}")
    tokens += [f"[PAD{i}]" for i in range(len(tokens), n_tokens)]
    types += [UNUSED] * (n_tokens - len(types))
    if len(set(tokens)) != n_tokens:
        raise FormatError(f"{where}: a token's text occurs twice")
    ids = {text: i for i, text in enumerate(tokens)}
    bos = _token_id(keys, "bos", n_tokens, where)
    eos = _token_id(keys, "eos", n_tokens, where)
    bos = ids.get("<|begin_of_text|>") if bos is None else bos
    if bos is None or eos is None:
        raise FormatError(f"{where}: no bos or no eos token")
    more = [i for i in keys.get("tokenizer.ggml.eos_token_ids") or [] if type(i) is int and 0 <= i < n_tokens]
    return Vocabulary(
        tokens=tuple(tokens),
        token_types=tuple(types),
        merges=tuple(_list(keys, "merges", str, where)),
        bos=bos,
        eos=eos,
        pad=_token_id(keys, "padding", n_tokens, where),
        eog=tuple(dict.fromkeys([eos, *more, *(ids[t] for t in EOG_TEXTS if t in ids)])),
        chat_templates={"default": chat_template},
    )


def _list(keys: Mapping[str, Any], name: str, kind: type, where: str) -> list[Any]:
    found = keys.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not found or not isinstance(found[0], kind):
        raise FormatError(f"{where}: tokenizer.ggml.{name} is missing or no list of that kind")
    return list(found)


def _check_ids(keys: Mapping[str, Any], n_tokens: int, where: str) -> None:
    """Ollama's converter writes tokens without gaps, and their ids as scores: so a gap in the ids moves all tokens."""
    scores = keys.get("tokenizer.ggml.scores")
    if isinstance(scores, list) and any(s not in (i, -1, 0) for i, s in enumerate(scores[:n_tokens])):
        raise FormatError(f"{where}: the tokens are not numbered without gaps: this file was badly converted")


def _token_id(keys: Mapping[str, Any], name: str, n_tokens: int, where: str) -> int | None:
    found = keys.get(f"tokenizer.ggml.{name}_token_id")
    if found is not None and (type(found) is not int or not 0 <= found < n_tokens):
        raise FormatError(f"{where}: tokenizer.ggml.{name}_token_id is {found!r:.80} of {n_tokens} tokens")
    return found


def read_params(text: str, where: str) -> dict[str, Any]:
    """Ollama's parameters in the words of generation_config.json: those for sampling, the others are dropped.

    Raises:
        CheckpointError: it is no JSON object.
    """
    try:
        params = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{where}: the parameters are no JSON") from e
    if not isinstance(params, dict):
        raise CheckpointError(f"{where}: the parameters are no JSON object")
    found = {hf: params[name] for name, hf in _PARAMS.items() if _is_number(params.get(name))}
    if "top_k" in found:
        found["top_k"] = int(found["top_k"])
    return {hf: value for hf, value in found.items() if value >= 0}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**31


def is_llama3_template(source: str) -> bool:
    """Whether one of Ollama's templates (Go's language) is of Llama 3's form, by the tokens that it writes."""
    return "<|start_header_id|>" in source and "<|eot_id|>" in source and not _has_others(source)


def _has_others(source: str, others: Sequence[str] = ("<|im_start|>", "[INST]", "<start_of_turn>", "<|user|>")) -> bool:
    return any(token in source for token in others)
