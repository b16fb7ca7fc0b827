"""Llama 3's `tokenizer.model` (tiktoken's format: one `base64(token) rank` a line) as a tokenizer.json.

The file knows no merges: tiktoken joins whatever pair forms the token of the lowest rank. So every way to cut a token
into two tokens is a merge, and it is as important as the token that it makes; transformers' converter does the same.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from pyvllama.errors import CheckpointError

__all__ = ["IMAGE_TOKEN", "read_ranks", "special_tokens", "tokenizer_json"]

IMAGE_TOKEN = "<|image|>"

_SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
)
"""The first special tokens; reserved ones, from number 2 on, fill the rest of the vocabulary."""


def read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens of a `tokenizer.model` and their ranks, which are their ids.

    Raises:
        CheckpointError: it is no such file, or its ranks are not 0, 1, 2, ..., or a byte has no token.
    """
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror or e}") from e
    try:
        pairs = [line.split() for line in lines]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in pairs}
    except ValueError as e:  # binascii.Error is one
        raise CheckpointError(
            f"{path}: not `base64 rank` in every line ({e}); Llama 3's tokenizer.model is a text file in tiktoken's "
            "format, not one of SentencePiece"
        ) from e
    if len(ranks) != len(lines):
        raise CheckpointError(f"{path}: {len(lines) - len(ranks)} tokens occur twice")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError(f"{path}: its {len(ranks)} tokens do not bear the ranks 0 to {len(ranks) - 1}, once each")
    if missing := [b for b in range(256) if bytes([b]) not in ranks]:
        raise CheckpointError(f"{path}: {len(missing)} of the 256 bytes have no token of their own: {missing[:10]}")
    return ranks


def special_tokens(n_base: int, vocab_size: int, where: str) -> dict[str, int]:
    """Llama 3's special tokens behind `n_base` ordinary ones, and `<|image|>` behind the vocabulary: text -> id.

    Raises:
        CheckpointError: the vocabulary has no room for them.
    """
    n_reserved = vocab_size - n_base - len(_SPECIAL_TOKENS)
    if n_reserved < 0:
        raise CheckpointError(
            f"{where}: {n_base} tokens and Llama 3's {len(_SPECIAL_TOKENS)} special ones do not fit into "
            f"vocab_size = {vocab_size} of params.json"
        )
    names = [*_SPECIAL_TOKENS, *(f"<|reserved_special_token_{i + 2}|>" for i in range(n_reserved))]
    return {name: n_base + i for i, name in enumerate(names)} | {IMAGE_TOKEN: vocab_size}


def tokenizer_json(ranks: dict[bytes, int], specials: dict[str, int], regex: str) -> dict[str, Any]:
    """The parts of a tokenizer.json that a vocabulary is read from."""
    letters = _byte_letters()
    spelled = {token: "".join(letters[b] for b in token) for token in ranks}
    merges = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        pairs = [(ranks[left], ranks[right], left, right) for left, right in cuts if left in ranks and right in ranks]
        merges += [[spelled[left], spelled[right]] for _, _, left, right in sorted(pairs)]
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "added_tokens": [{"id": i, "content": text, "special": True} for text, i in specials.items()],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "model": {
            "type": "BPE",
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spelled[token]: rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }


def _byte_letters() -> list[str]:
    """The printable letter that stands for each byte in byte-level BPE: itself, or one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]
