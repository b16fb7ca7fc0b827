"""Where a model comes from, as llama.cpp's `general.*` keys: the Hub shows them beside a GGUF file.

The facts come from the checkpoint's README.md (its YAML head), the Hub id and the name; names are taken apart by
gguf-py's own rules, so that llama.cpp's converter would write the same. One deviation: config.json's `_name_or_path` is
what a fine-tune was made *from*, so it gives the base model and never the name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gguf

from pyvllama.conversion.front_matter import front_matter

__all__ = ["ModelName", "Provenance", "file_stem", "parse_model_name", "provenance"]

Keys = dict[str, tuple[str, Any]]

HUB = "https://huggingface.co"
TAGS = ("image-text-to-text", "mllama")
"""What every such model is, beside the tags of its card."""

_MAX_STRING = 1000
_MAX_ITEMS = 100
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_URL = re.compile(r"https?://[^\s/]\S*")
_LETTERED_VERSION = re.compile(r"(?<=-)(\d+(?:\.\d+)+)([A-Za-z])(?=-|$)")  # the 3.2V of Llama-3.2V-11B-cot

_STRINGS = (
    # of a card               key
    ("author", gguf.Keys.General.AUTHOR),
    ("organization", gguf.Keys.General.ORGANIZATION),
    ("description", gguf.Keys.General.DESCRIPTION),
    ("license", gguf.Keys.General.LICENSE),
    ("license_name", gguf.Keys.General.LICENSE_NAME),
    ("license_link", gguf.Keys.General.LICENSE_LINK),
    ("source_url", gguf.Keys.General.SOURCE_URL),
    ("source_doi", gguf.Keys.General.SOURCE_DOI),
    ("source_repo_url", gguf.Keys.General.SOURCE_REPO_URL),
)
_BASE_MODEL = {
    "name": gguf.Keys.General.BASE_MODEL_NAME,
    "author": gguf.Keys.General.BASE_MODEL_AUTHOR,
    "version": gguf.Keys.General.BASE_MODEL_VERSION,
    "organization": gguf.Keys.General.BASE_MODEL_ORGANIZATION,
    "repo_url": gguf.Keys.General.BASE_MODEL_REPO_URL,
}
_DATASET = {
    "name": gguf.Keys.General.DATASET_NAME,
    "version": gguf.Keys.General.DATASET_VERSION,
    "organization": gguf.Keys.General.DATASET_ORGANIZATION,
    "repo_url": gguf.Keys.General.DATASET_REPO_URL,
}
_CARD_STRINGS = (
    "author", "model_author", "model_creator", "organization", "model_organization", "description",
    "model_description", "license_name", "license_link", "doi", "url", "pipeline_tag",
)  # fmt: skip
_CARD_LISTS = ("license", "tags", "language", "languages")


@dataclass(frozen=True)
class ModelName:
    """The parts of a name by GGUF's convention: <Base>-<Size>-<FineTune>-<Version>. None: it has no such part."""

    base: str | None = None
    size: str | None = None
    finetune: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Provenance:
    """Keys for both files of a pair, and what could not be used."""

    keys: Keys
    notes: tuple[str, ...] = ()


def parse_model_name(name: str, n_params: int = 0) -> ModelName:
    """Take a name apart, such as Llama-3.2-11B-Vision-Instruct.

    Args:
        name: without a type (Q4_K_M) and without the organization.
        n_params: of the whole model; tells a size from a context length (`128k`). 0: the largest label is the size.

    Returns:
        The parts; all of them None for a name that says nothing of the kind.
    """
    plain = _LETTERED_VERSION.sub(r"\1", name)
    *_, size = _components(plain, n_params)
    if size and "-" in size and not n_params:
        n_params = max(_n_params(label) for label in size.split("-"))
    base, finetune, version, size = _components(plain, n_params)
    if base and (lettered := _LETTERED_VERSION.search(name)):
        base = f"{base}-".replace(f"-{lettered[1]}-", f"-{lettered[0]}-").removesuffix("-")
    return ModelName(base, size, finetune, version)


def file_stem(name: str, n_params: int = 0) -> str:
    """What a model's files are called, before their type: the name itself wherever it conforms or cannot be parsed.

    Blanks become hyphens, a size is written as GGUF's convention has it (11b: 11B), and a version stands last.
    """
    name = "-".join(name.split())
    parts = parse_model_name(name, n_params)
    if not parts.base or not parts.size:
        return name
    conforming: str = gguf.naming_convention(
        None, parts.base, parts.finetune, parts.version, parts.size, output_type=None
    )
    return conforming


def provenance(
    name: str,
    *,
    readme: str | None = None,
    repo_id: str | None = None,
    config: Mapping[str, Any] | None = None,
    n_params: int = 0,
    quantized_by: str | None = None,
) -> Provenance:
    """The `general.*` keys that say where a model comes from.

    Args:
        name: of the checkpoint: its directory's, or the repository's without the organization.
        readme: text of its README.md, or its start; None: it has none. Nothing in it can make this fail.
        repo_id: `org/name` on the Hub, if it came from there.
        config: its config.json.
        n_params: of the whole model, all its parts together; 0: not known.
        quantized_by: who makes the GGUF files.

    Returns:
        Keys as for `write_gguf`; `general.name`, `.architecture`, `.type` and `.file_type` are not among them.
    """
    values, problem = front_matter(readme or "")
    card, notes = _card(values)
    notes = [problem, *notes] if problem else notes
    if "base_model" not in card and (base := _base_of(config or {}, name, repo_id)):
        card["base_model"] = [base]
    metadata = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), card)
    organization = metadata.organization
    if repo_id is not None:
        metadata.source_repo_url = f"{HUB}/{repo_id}"
        metadata.source_url = metadata.source_url or metadata.source_repo_url
        metadata.organization = organization or gguf.Metadata.id_to_title(repo_id.split("/")[0])
        if metadata.license_link and not _URL.fullmatch(metadata.license_link):  # a file of the repository
            metadata.license_link = f"{HUB}/{repo_id}/blob/main/{metadata.license_link.lstrip('./')}"
    return Provenance({**_name_keys(name, n_params), **_keys(metadata, quantized_by)}, tuple(notes))


def _name_keys(name: str, n_params: int) -> Keys:
    parts = parse_model_name(name, n_params)
    found = {
        gguf.Keys.General.BASENAME: parts.base,
        gguf.Keys.General.SIZE_LABEL: parts.size,
        gguf.Keys.General.FINETUNE: parts.finetune,
        gguf.Keys.General.VERSION: parts.version,
    }
    return {key: ("str", value) for key, value in found.items() if value}


def _keys(metadata: Any, quantized_by: str | None) -> Keys:
    keys: Keys = {}
    for attribute, key in _STRINGS:
        if value := getattr(metadata, attribute):
            keys[key] = ("str", ",".join(value) if isinstance(value, list) else value)
    if quantized_by:
        keys[gguf.Keys.General.QUANTIZED_BY] = ("str", quantized_by)
    lists = (
        (metadata.base_models, gguf.Keys.General.BASE_MODEL_COUNT, _BASE_MODEL),
        (metadata.datasets, gguf.Keys.General.DATASET_COUNT, _DATASET),
    )
    for entries, count, table in lists:
        if entries:
            keys[count] = ("u32", len(entries))
        for i, entry in enumerate(entries or ()):
            keys |= {table[field].format(id=i): ("str", value) for field, value in entry.items() if field in table}
    tags = dict.fromkeys([*(metadata.tags or ()), *TAGS])
    keys[gguf.Keys.General.TAGS] = ("str[]", list(tags))
    if metadata.languages:
        keys[gguf.Keys.General.LANGUAGES] = ("str[]", list(dict.fromkeys(metadata.languages)))
    return keys


def _card(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What may be used of a head, cleaned: strings of some length, lists of them, models that can be linked to."""
    card: dict[str, Any] = {}
    odd: list[str] = []
    for key in _CARD_STRINGS:
        if (value := values.get(key)) is None:
            continue
        if text := _text(value):
            card[key] = text
        elif value:
            odd.append(key)
    for key in _CARD_LISTS:
        items = _items(values.get(key))
        card |= {key: texts} if (texts := [t for t in map(_text, items) if t]) else {}
        odd += [key] * (len(texts) < len(items))
    for key, aliases in (("base_model", ("base_models", "base_model_sources")), ("datasets", ("dataset",))):
        items = _items(next((values[k] for k in (key, *aliases) if k in values), None))
        links = [t for t in map(_text, items) if t and (_HUB_ID.fullmatch(t) or _URL.fullmatch(t))]  # no local paths
        card |= {key: links} if links else {}
        odd += [key] * (len(links) < len(items))
    notes = [f"README.md: {', '.join(odd)} is not (all) of a form that can be used: left out"] if odd else []
    return card, notes


def _items(value: Any) -> list[Any]:
    if not value:
        return []
    return list(value) if isinstance(value, list) and len(value) <= _MAX_ITEMS else [value]


def _text(value: Any) -> str | None:
    """A string that may stand in a file's metadata, else None."""
    if not isinstance(value, str):
        return None
    value = value.strip()
    return value if len(value) <= _MAX_STRING and all(c.isprintable() or c == "\n" for c in value) else None


def _base_of(config: Mapping[str, Any], name: str, repo_id: str | None) -> str | None:
    """What a checkpoint says it was loaded from, if that is another model on the Hub."""
    base = config.get("_name_or_path")
    if not isinstance(base, str) or not _HUB_ID.fullmatch(base) or base == repo_id:
        return None
    return None if base.split("/")[1] == name else base


def _components(name: str, n_params: int) -> tuple[str | None, str | None, str | None, str | None]:
    """What gguf-py makes of a name: (base, finetune, version, size)."""
    try:
        _, _, base, finetune, version, size = gguf.Metadata.get_model_id_components(name, n_params)
    except (IndexError, ValueError):  # gguf-py trips over some names
        return None, None, None, None
    return base, finetune, version, size


def _n_params(label: str) -> int:
    match = re.fullmatch(r"[A-Za-z]?(\d+(?:\.\d+)?)([KMBT])", label.rsplit("x", maxsplit=1)[-1])
    return int(float(match[1]) * 1000.0 ** " KMBT".index(match[2])) if match else 0
