"""The vocabulary of a text GGUF, and the tokenizer files of Hugging Face's that say the same."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pyvllama.conversion.vocab import (
    CONTROL,
    EOG_TEXTS,
    LLAMA3_REGEX,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Vocabulary,
)
from pyvllama.errors import ConfigError, FormatError
from pyvllama.fields import Fields
from pyvllama.gguf_file import GGUFFile

__all__ = ["IMAGE_TOKEN", "pair_vocabulary", "tokenizer_files"]

IMAGE_TOKEN = "<|image|>"
_MAY_BE_IMAGE = re.compile(r"<\|image\|>$|<\|reserved_special_token_|\[PAD\d+\]$")
_PRE_TOKENIZERS = ("llama-bpe", "llama3", "llama-v3")
"""Names by which llama.cpp knows Llama 3's way to cut text into words."""
_TEMPLATE = "tokenizer.chat_template"


def pair_vocabulary(text: GGUFFile, mmproj: GGUFFile, n_rows: int, image_token: int) -> Vocabulary:
    """What a pair knows of tokens.

    Args:
        text: the text GGUF. One that knows no image token (somebody else's Llama 3.1) gets it and its padding.
        mmproj: the mmproj.
        n_rows: rows of embed_tokens.
        image_token: the id of `<|image|>`.

    Raises:
        FormatError: keys are missing or damaged, or it is not Llama 3's tokenizer.
    """
    keys, where = text.metadata, str(text.path)
    if (kind := (keys.get("tokenizer.ggml.model"), keys.get("tokenizer.ggml.pre")))[0] != "gpt2" or (
        kind[1] not in _PRE_TOKENIZERS
    ):
        raise FormatError(f"{where}: its tokenizer is {kind[0]!r} / {kind[1]!r}, not Llama 3's ('gpt2' / 'llama-bpe')")
    tokens, types = keys["tokenizer.ggml.tokens"], keys.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or len(types) != len(tokens):
        raise FormatError(f"{where}: tokenizer.ggml.token_type is no list of {len(tokens)} numbers")
    if odd := sorted({t for t in types if t not in (NORMAL, CONTROL, USER_DEFINED, UNUSED)}, key=str):
        raise FormatError(f"{where}: tokenizer.ggml.token_type holds {odd[:10]}, which Llama 3's tokenizer has not")
    if "" in tokens:
        raise FormatError(f"{where}: token {tokens.index('')} is empty")
    if len(tokens) <= image_token:
        tokens, types = _with_image_token(tokens, types, n_rows, image_token, where)
    elif types[image_token] == USER_DEFINED or not _MAY_BE_IMAGE.match(tokens[image_token]):
        raise FormatError(
            f"{where}: token {image_token} is {tokens[image_token]!r:.80}, and for {mmproj.path} it is {IMAGE_TOKEN}: "
            "one checkpoint cannot have both"
        )
    merges = _checked_merges(keys.get("tokenizer.ggml.merges"), set(tokens), where)
    ids = _token_ids(keys, where, len(tokens))
    return Vocabulary(
        tokens=tuple(tokens),
        token_types=tuple(types),
        merges=tuple(merges),
        bos=ids["bos"],
        eos=ids["eos"],
        pad=ids.get("padding"),
        eog=_ends(tokens, types, ids),
        chat_templates=_chat_templates(text, mmproj, image_token),
    )


def _with_image_token(
    tokens: list[str], types: list[int], n_rows: int, image_token: int, where: str
) -> tuple[list[str], list[int]]:
    names = {i: IMAGE_TOKEN if i == image_token else f"[PAD{i}]" for i in range(len(tokens), n_rows)}
    if twice := sorted(set(names.values()) & set(tokens)):
        raise FormatError(f"{where}: {twice[0]!r} is token {tokens.index(twice[0])}; for the mmproj it is another one")
    return [*tokens, *names.values()], [*types, *(CONTROL if i == image_token else UNUSED for i in names)]


def _checked_merges(merges: Any, tokens: set[str], where: str) -> list[str]:
    if not isinstance(merges, list):
        raise FormatError(f"{where}: there are no tokenizer.ggml.merges")
    for merge in merges:
        left, space, right = merge.partition(" ") if isinstance(merge, str) else ("", "", "")
        if not space or left not in tokens or right not in tokens or left + right not in tokens:
            raise FormatError(f"{where}: tokenizer.ggml.merges: {merge!r} joins no two tokens into a third")
    return merges


def _token_ids(keys: Mapping[str, Any], where: str, n_tokens: int) -> dict[str, int]:
    """bos, eos, eot, eom, padding -> id, of those that the file has."""
    r = Fields(keys, where)
    found = {}
    try:
        for name, required in (("bos", True), ("eos", True), ("eot", False), ("eom", False), ("padding", False)):
            key = f"tokenizer.ggml.{name}_token_id"
            if required or key in keys:
                found[name] = r.build(lambda key=key: r.whole(key))  # type: ignore[misc]
                if found[name] >= n_tokens:
                    r.refuse(key, found[name], f"the id of one of {n_tokens} tokens")
    except ConfigError as e:
        raise FormatError(str(e)) from e
    return found


def _ends(tokens: list[str], types: list[int], ids: Mapping[str, int]) -> tuple[int, ...]:
    """All tokens that end an answer: first those that only a key tells, in the order of the keys."""
    told = [ids[name] for name in ("eot", "eom") if name in ids and tokens[ids[name]] not in EOG_TEXTS]
    known = [i for i, t in enumerate(tokens) if types[i] == CONTROL and t in EOG_TEXTS]
    return tuple(dict.fromkeys([*told, *sorted({*known, ids["eos"]})]))


def _chat_templates(text: GGUFFile, mmproj: GGUFFile, image_token: int) -> dict[str, str]:
    """The text file's; the mmproj's where the text file knows no image: transformers puts images nowhere else."""
    own, brought = text.metadata.get(_TEMPLATE), mmproj.metadata.get("clip.mllama.chat_template")
    if not isinstance(brought, str):
        brought = None
    if not own or (brought and image_token >= len(text.metadata["tokenizer.ggml.tokens"])):
        return {"default": brought} if brought else {}
    names = text.metadata.get("tokenizer.chat_templates")
    named = {name: text.metadata.get(f"{_TEMPLATE}.{name}") for name in (names if isinstance(names, list) else ())}
    return {"default": own, **{name: source for name, source in named.items() if isinstance(source, str)}}


def tokenizer_files(vocab: Vocabulary, *, adds_bos: bool, max_length: int) -> dict[str, Any]:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json, chat_template.json: file name -> JSON value.

    Args:
        vocab: what they are to say.
        adds_bos: whether tokenizing puts the first token in front.
        max_length: the longest text in tokens.
    """
    added = {
        i: {
            "content": vocab.tokens[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token_type == CONTROL,
        }
        for i, token_type in enumerate(vocab.token_types)
        if token_type in (CONTROL, USER_DEFINED)
    }
    ids = {"bos_token": vocab.bos, "eos_token": vocab.eos, "pad_token": vocab.pad}
    named = {name: vocab.tokens[i] for name, i in ids.items() if i is not None}
    config: dict[str, Any] = {
        "added_tokens_decoder": {str(i): token for i, token in added.items()},
        **named,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": max_length,
        "processor_class": "MllamaProcessor",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    files = {
        "tokenizer.json": _tokenizer_json(vocab, [{"id": i, **token} for i, token in added.items()], adds_bos),
        "tokenizer_config.json": config,
        "special_tokens_map.json": named,
    }
    templates = vocab.chat_templates
    if len(templates) > 1:  # several fit into no other file
        config["chat_template"] = [{"name": name, "template": source} for name, source in templates.items()]
    elif templates:
        config["chat_template"] = templates["default"]
        files["chat_template.json"] = {"chat_template": templates["default"]}
    return files


def _tokenizer_json(vocab: Vocabulary, added: list[dict[str, Any]], adds_bos: bool) -> dict[str, Any]:
    """As Llama 3's own file, which is what the `tokenizers` library reads."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_REGEX}, "behavior": "Isolated", "invert": False}
    processors: list[dict[str, Any]] = [byte_level | {"trim_offsets": False}]
    if adds_bos:
        processors.append(_bos_in_front(vocab.tokens[vocab.bos], vocab.bos))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split, byte_level | {"add_prefix_space": False, "use_regex": False}],
        },
        "post_processor": {"type": "Sequence", "processors": processors},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": _base_vocabulary(vocab),
            "merges": list(vocab.merges),
        },
    }


def _base_vocabulary(vocab: Vocabulary) -> dict[str, int]:
    """Ordinary tokens, and added ones that merges speak of."""
    merged = {part for merge in vocab.merges for part in (*merge.split(" "), merge.replace(" ", ""))}
    return {
        token: i
        for i, (token, token_type) in enumerate(zip(vocab.tokens, vocab.token_types, strict=True))
        if token_type == NORMAL or token in merged
    }


def _bos_in_front(bos: str, token_id: int) -> dict[str, Any]:
    def pieces(*sequences: tuple[str, int]) -> list[dict[str, Any]]:
        return [
            piece
            for name, type_id in sequences
            for piece in (
                {"SpecialToken": {"id": bos, "type_id": type_id}},
                {"Sequence": {"id": name, "type_id": type_id}},
            )
        ]

    return {
        "type": "TemplateProcessing",
        "single": pieces(("A", 0)),
        "pair": pieces(("A", 0), ("B", 1)),
        "special_tokens": {bos: {"id": bos, "ids": [token_id], "tokens": [bos]}},
    }
