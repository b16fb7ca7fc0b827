"""tokenizer.json (the `tokenizers` library's format) into llama.cpp's `tokenizer.*` keys. Read as JSON, nothing else.

Only Llama 3's tokenizer is accepted: byte-level BPE behind one regular expression, which llama.cpp knows by the name
`llama-bpe`. Anything else would load and then split text in other places, without an error anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from pyvllama.config import TextConfig
from pyvllama.conversion.chat_templates import read_chat_templates
from pyvllama.conversion.checkpoint import Checkpoint, listing
from pyvllama.errors import CheckpointError
from pyvllama.fields import Fields

__all__ = ["CONTROL", "EOG_TEXTS", "NORMAL", "UNUSED", "USER_DEFINED", "Vocabulary", "read_vocabulary"]

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""`tokenizer.ggml.token_type`, as llama.cpp numbers them."""

_UNKNOWN_FLAGS = ("lstrip", "rstrip", "single_word")

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama 3 cuts text into words."""

EOG_TEXTS = ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "</s>")
"""Some of the texts at which llama.cpp ends an answer, whatever the file's keys say (src/llama-vocab.cpp)."""

_RESERVED = re.compile(r"<\|reserved_special_token_\d+\|>")
_MODEL = {
    "type": ("BPE",),
    "dropout": (None, 0, 0.0),
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (False, None),
    "ignore_merges": (True,),
}
"""Settings of tokenizer.json's model that llama.cpp's `llama-bpe` implies."""


@dataclass(frozen=True)
class Vocabulary:
    """What llama.cpp has to know about tokens."""

    tokens: tuple[str, ...]
    """Text of each id, byte-level letters for normal tokens; no text occurs twice."""
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    """'left right', most important first."""
    bos: int
    eos: int
    pad: int | None
    eog: tuple[int, ...]
    """All ids that end an answer."""
    chat_templates: dict[str, str]
    """Name -> Jinja source; the one to use is 'default'."""

    @property
    def filler_token(self) -> int:
        """A token that no text contains and no training has used: the last reserved one, or the padding token.

        Raises:
            CheckpointError: there is none.
        """
        reserved = [i for i, text in enumerate(self.tokens) if _RESERVED.fullmatch(text) and i not in self.eog]
        if reserved:
            return reserved[-1]
        if self.pad is not None and self.pad not in self.eog:
            return self.pad
        raise CheckpointError("tokenizer.json has no <|reserved_special_token_N|> and no padding token of its own")

    def id_of(self, text: str) -> int | None:
        """The id of a token's text, or None."""
        return self.tokens.index(text) if text in self.tokens else None

    def to_gguf(self) -> dict[str, tuple[str, Any]]:
        """The `tokenizer.*` keys: name -> (GGUF type, value)."""
        ids = {"bos": self.bos, "eos": self.eos, "padding": self.pad, **self._end_slots()[0]}
        keys: dict[str, tuple[str, Any]] = {
            "tokenizer.ggml.model": ("str", "gpt2"),
            "tokenizer.ggml.pre": ("str", "llama-bpe"),
            "tokenizer.ggml.tokens": ("str[]", self.tokens),
            "tokenizer.ggml.token_type": ("i32[]", self.token_types),
            "tokenizer.ggml.merges": ("str[]", self.merges),
            "tokenizer.ggml.add_bos_token": ("bool", True),
        }
        keys |= {f"tokenizer.ggml.{name}_token_id": ("u32", i) for name, i in ids.items() if i is not None}
        if self.unheard_ends:
            keys["tokenizer.ggml.eos_token_ids"] = ("i32[]", self.eog)  # Ollama's key
        for name, source in self.chat_templates.items():
            keys["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = ("str", source)
        if named := [name for name in self.chat_templates if name != "default"]:
            keys["tokenizer.chat_templates"] = ("str[]", named)
        return keys

    @property
    def unheard_ends(self) -> list[int]:
        """Ends at which programs other than ours will not stop: no key of llama.cpp's is left for them."""
        return self._end_slots()[1]

    def _end_slots(self) -> tuple[dict[str, int | None], list[int]]:
        """Tokens for the keys eot and eom: their own, else other ends that llama.cpp would not know; and the rest."""
        slots = {"eot": self.id_of("<|eot_id|>"), "eom": self.id_of("<|eom_id|>")}
        unknown = [i for i in self.eog if i != self.eos and self.tokens[i] not in EOG_TEXTS]
        for name, token in slots.items():
            if token is None and unknown:
                slots[name] = unknown.pop(0)
        return slots, unknown


def read_vocabulary(checkpoint: Checkpoint, text: TextConfig) -> Vocabulary:
    """Read tokenizer.json, tokenizer_config.json, generation_config.json and the chat template of a checkpoint.

    Raises:
        CheckpointError: a file is missing or inconsistent, or the tokenizer is not Llama 3's.
    """
    tokenizer, where = checkpoint.json("tokenizer.json"), str(checkpoint.path / "tokenizer.json")
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise CheckpointError(f"{where}: there is no model in it")
    try:
        _check_kind(tokenizer, model, where)
        tokens, types = _tokens(tokenizer, model, text)
        merges = _merges(model["merges"], model["vocab"])
    except (AttributeError, TypeError, ValueError) as e:  # a list where an object belongs, and the like
        raise CheckpointError(f"{where} is not built as the tokenizers library builds it: {e}") from e
    ids = {t: i for i, t in enumerate(tokens)}
    generation = checkpoint.optional_json("generation_config.json") or {}
    named = _NamedTokens(checkpoint, ids)
    stop_ids = Fields(generation, "generation_config.json").token_ids("eos_token_id")
    eos = named.find("eos", text.eos_token_ids or stop_ids)
    bos = named.find("bos", () if text.bos_token_id is None else (text.bos_token_id,))
    if bos is None or eos is None:
        raise CheckpointError(f"{checkpoint.path}: no bos or no eos token in tokenizer_config.json or config.json")
    eog = dict.fromkeys([eos, *text.eos_token_ids, *stop_ids, *(ids[t] for t in EOG_TEXTS if t in ids)])
    if outside := [i for i in eog if i >= len(tokens)]:
        raise CheckpointError(f"{checkpoint.path}: eos_token_id {outside} is outside of the {len(tokens)} tokens")
    vocab = Vocabulary(
        tokens=tuple(tokens),
        token_types=tuple(types),
        merges=tuple(merges),
        bos=bos,
        eos=eos,
        pad=named.find("pad", () if text.pad_token_id is None else (text.pad_token_id,)),
        eog=tuple(eog),
        chat_templates=read_chat_templates(checkpoint),
    )
    if unheard := [tokens[i] for i in vocab.unheard_ends]:
        checkpoint.notes.append(f"programs other than pyvllama will not stop at {', '.join(unheard)}")
    if padded := [a["content"] for a in tokenizer.get("added_tokens") or [] if any(map(a.get, _UNKNOWN_FLAGS))]:
        more = f" and {len(padded) - 3} more tokens" if len(padded) > 3 else ""
        checkpoint.notes.append(
            f"lstrip, rstrip and single_word of {', '.join(padded[:3])}{more} mean nothing to llama.cpp: spaces around "
            "them may be read otherwise"
        )
    return vocab


def _refuse(what: str, found: Any, supported: str) -> NoReturn:
    raise CheckpointError(f"{what} is {found!r:.300}, but only Llama 3's tokenizer is supported: {supported}")


def _check_kind(tokenizer: dict[str, Any], model: dict[str, Any], where: str) -> None:
    for key, supported in _MODEL.items():
        if model.get(key) not in supported:
            _refuse(f"{where}: model.{key}", model.get(key), f"{key} = {supported[0]!r}")
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise CheckpointError(f"{where}: model.vocab or model.merges is missing")
    if tokenizer.get("normalizer") is not None:
        _refuse(f"{where}: normalizer", tokenizer["normalizer"], "no normalizer")
    pre = tokenizer.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers", [pre])
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        _refuse(f"{where}: pre_tokenizer", [step.get("type") for step in steps], "Split, then ByteLevel")
    split, byte_level = steps
    if (pattern := split.get("pattern", {}).get("Regex")) != LLAMA3_REGEX:
        _refuse(f"{where}: the pre-tokenizer's regular expression", pattern, LLAMA3_REGEX)
    if split.get("behavior") != "Isolated" or split.get("invert"):
        _refuse(f"{where}: pre_tokenizer", split.get("behavior"), "behavior 'Isolated', not inverted")
    if byte_level.get("add_prefix_space", True) or byte_level.get("use_regex", True):
        _refuse(f"{where}: pre_tokenizer ByteLevel", byte_level, "add_prefix_space and use_regex false")


def _tokens(tokenizer: dict[str, Any], model: dict[str, Any], text: TextConfig) -> tuple[list[str], list[int]]:
    """Text and type of every id below the number of embedding rows; ids that nobody uses get a unique filler text."""
    n_tokens = text.n_embedding_rows
    texts: dict[int, str] = {}
    types: dict[int, int] = {}
    problems: list[str] = []

    def put(i: Any, token: Any, token_type: int) -> None:
        if not isinstance(token, str) or not token:
            problems.append(f"id {i} has the text {token!r}")
        elif type(i) is not int or not 0 <= i < n_tokens:
            problems.append(f"{token!r} has the id {i}, but the embedding has {n_tokens} rows")
        elif texts.get(i, token) != token:
            problems.append(f"id {i} is both {texts[i]!r} and {token!r}")
        else:
            texts[i], types[i] = token, token_type

    for token, i in model["vocab"].items():
        put(i, token, NORMAL)
    for added in tokenizer.get("added_tokens") or []:
        token = added.get("content")
        put(added.get("id"), token, CONTROL if added.get("special") else USER_DEFINED)
    problems += [f"{token!r} has several ids" for token in _doubles(texts.values())]
    if problems:
        raise CheckpointError(f"tokenizer.json does not fit config.json or itself:\n{listing(problems)}")
    used = set(texts.values())
    for i in range(n_tokens):
        if i not in texts:
            texts[i], types[i] = f"[PAD{i}]", UNUSED
            if texts[i] in used:
                raise CheckpointError(f"tokenizer.json: {texts[i]!r} is needed as the name of the unused id {i}")
    return [texts[i] for i in range(n_tokens)], [types[i] for i in range(n_tokens)]


def _doubles(texts: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [t for t in texts if t in seen or seen.add(t)]  # type: ignore[func-returns-value]


def _merges(merges: list[Any], vocab: dict[str, int]) -> list[str]:
    """Both spellings, "a b" and ["a", "b"], as "a b"."""
    joined = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else list(merge)
        if len(pair) != 2 or any(not isinstance(x, str) or " " in x or x not in vocab for x in pair):
            raise CheckpointError(f"tokenizer.json: merge {merge!r} is no pair of tokens")
        joined.append(f"{pair[0]} {pair[1]}")
    return joined


class _NamedTokens:
    """bos_token, eos_token, pad_token: of tokenizer_config.json, or special_tokens_map.json, or config.json (ids)."""

    def __init__(self, checkpoint: Checkpoint, ids: dict[str, int]) -> None:
        names = ("tokenizer_config.json", "special_tokens_map.json")
        self.files = [(name, checkpoint.optional_json(name) or {}) for name in names]
        self.ids = ids

    def find(self, name: str, config_ids: tuple[int, ...]) -> int | None:
        for file, values in self.files:
            token = values.get(f"{name}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token is not None:
                if not isinstance(token, str) or token not in self.ids:
                    raise CheckpointError(f"{file}: {name}_token {token!r} is no token of tokenizer.json")
                return self.ids[token]
        return config_ids[0] if config_ids else None
