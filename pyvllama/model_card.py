"""A model card for GGUF files of ours: README.md with the head that the Hub reads. Pure text, nothing is looked up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import yaml

from pyvllama.errors import ConfigError
from pyvllama.file_names import is_text_name, parse_file_name

__all__ = ["CardFile", "model_card"]

_HUB = "https://huggingface.co/"
_TAGS = ("gguf", "mllama", "llama.cpp")
_PIPELINE = "image-text-to-text"
_DEFAULT_QUANT = "Q4_K_M"  # what `pull` takes where none is named
_NO_EVALUATION = "this is no evaluation: give the output of `pyvllama eval --json`"

_ROLES = {
    "model": "text model: every llama.cpp program loads it",
    "mmproj": "vision tower, projector and cross-attention layers",
    "imatrix": "importance matrix",
}
_PARTS = (("pictures", "images"), ("text only", "texts"))
_FIGURES = (
    # column                  key of an evaluation's part, format
    ("tokens", "n_tokens", "{:,.0f}"),
    ("KL divergence", "kld_mean", "{:.4f}"),
    ("median", "kld_median", "{:.4f}"),
    ("99 %", "kld_p99", "{:.4f}"),
    ("same top token", "same_top", "{:.2%}"),
    ("perplexity ratio", "ppl_ratio", "{:.4f}"),
)
"""Of `pyvllama eval --json`: see `evaluation.Evaluation` and `divergence.Divergence`."""


@dataclass(frozen=True)
class CardFile:
    """A file as the card lists it."""

    name: str
    n_bytes: int
    kind: str
    """Its general.type: model, mmproj or imatrix."""


def model_card(
    repo_id: str,
    files: Sequence[CardFile],
    metadata: Mapping[str, Any],
    *,
    base_model: str | None = None,
    quantized_by: str | None = None,
    evaluations: Sequence[Mapping[str, Any]] = (),
    version: str,
) -> str:
    """The README.md of a repository with these files.

    Args:
        repo_id: `user/repo`.
        files: all that will be in it, in the order of the table; a text model and an mmproj at least.
        metadata: keys of a text file; its `general.*` say where the model comes from.
        base_model: `org/name` that was quantized; None: what the metadata say.
        quantized_by: who made the files; None: what the metadata say.
        evaluations: outputs of `pyvllama eval --json`.
        version: of pyvllama, for the last line.

    Raises:
        ConfigError: an evaluation is of another form.
    """
    name = " ".join(str(metadata.get("general.name", "")).split()) or repo_id.split("/")[1]
    source = base_model or _hub_id(metadata.get("general.source.repo_url"))
    head = _head(metadata, source, quantized_by)
    lines = [
        "---",
        yaml.safe_dump(head, sort_keys=False, allow_unicode=True, width=1000).rstrip(),
        "---",
        "",
        f"# {name}, GGUF",
        "",
        f"{f'[{source}]({_HUB}{source})' if source else name} as GGUF, with its eyes: a text model, and beside it an",
        "`mmproj` with the vision part, which pyvllama plugs into an unpatched llama.cpp.",
        *(["", "Built with Llama."] if str(head.get("license", "")).startswith("llama3") else []),
        "",
        *_file_table(files),
        "",
        "## Run it",
        "",
        "```sh",
        f"pyvllama pull {_pull_name(repo_id, files)}",
        f'pyvllama run {_pull_name(repo_id, files)} -i photo.jpg "What is this?"',
        "```",
        "",
        *_measured(evaluations),
        "",
        "## Not verified",
        "",
        "- Pictures need pyvllama: other llama.cpp programs run the text model alone and refuse the `mmproj`.",
        "- Accuracy on public benchmarks was not measured for these files.",
        *(["- Where the model comes from and what its licence is: the files do not say."] if not source else []),
        "",
        f"Made with pyvllama {version}.",
        "",
    ]
    return "\n".join(lines)


def _head(metadata: Mapping[str, Any], source: str | None, quantized_by: str | None) -> dict[str, Any]:
    bases = [source] if source else _base_models(metadata)
    own = metadata.get("general.tags")
    tags = dict.fromkeys([*_TAGS, *(own if isinstance(own, list) else ())])
    head = {
        "base_model": bases[0] if len(bases) == 1 else bases,
        "base_model_relation": "quantized" if source else None,  # of a parent's parent it would not be true
        "license": metadata.get("general.license"),
        "license_name": metadata.get("general.license.name"),
        "license_link": metadata.get("general.license.link"),
        "language": metadata.get("general.languages"),
        "pipeline_tag": _PIPELINE,
        "library_name": "gguf",
        "tags": [tag for tag in tags if tag != _PIPELINE],
        "quantized_by": quantized_by or metadata.get("general.quantized_by"),
    }
    return {key: value for key, value in head.items() if value}


def _base_models(metadata: Mapping[str, Any]) -> list[str]:
    count = metadata.get("general.base_model.count")
    urls = (metadata.get(f"general.base_model.{i}.repo_url") for i in range(count if isinstance(count, int) else 0))
    return [base for url in urls if (base := _hub_id(url))]


def _hub_id(url: Any) -> str | None:
    match = re.fullmatch(rf"{re.escape(_HUB)}(\w[\w.-]*/\w[\w.-]*)", url) if isinstance(url, str) else None
    return match[1] if match else None


def _file_table(files: Sequence[CardFile]) -> list[str]:
    rows = ["| file | type | size | what it is |", "| --- | --- | ---: | --- |"]
    for f in files:
        kind = parse_file_name(f.name).type or ""
        rows.append(f"| `{f.name}` | {kind} | {_size(f.n_bytes)} | {_ROLES.get(f.kind, f.kind)} |")
    return rows


def _size(n_bytes: int) -> str:
    """In powers of ten, as the Hub shows sizes."""
    for unit, label in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= unit:
            return f"{n_bytes / unit:.2f} {label}"
    return f"{n_bytes / 1e3:.0f} kB"


def _pull_name(repo_id: str, files: Sequence[CardFile]) -> str:
    types = [parse_file_name(f.name).type for f in files if f.kind == "model" and is_text_name(f.name)]
    chosen = _DEFAULT_QUANT if _DEFAULT_QUANT in types else next(filter(None, types), None)
    return f"{repo_id}:{chosen}" if chosen else repo_id


def _measured(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    if not evaluations:
        return ["## Measured", "", "Nothing: how far the answers are from those of the original weights is not known."]
    references = dict.fromkeys(_names(e, "reference") for e in evaluations)
    heads = ["model", "chats with", *(head for head, _, _ in _FIGURES)]
    return [
        "## Measured",
        "",
        f"By `pyvllama eval`, against {' and '.join(references)}: how far the probabilities of the answers' tokens are",
        "from the reference's (Kullback-Leibler divergence in nats: mean, median, 99 % of the tokens are below), and",
        "how often both find the same token likeliest.",
        "",
        f"| {' | '.join(heads)} |",
        f"| --- | --- |{' ---: |' * len(_FIGURES)}",
        *(f"| {' | '.join(row)} |" for e in evaluations for row in _rows(e)),
    ]


def _rows(evaluation: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row for chats with pictures, one for those without, as far as there were any."""
    parts = [(label, part) for label, key in _PARTS if (part := evaluation.get(key)) is not None]
    if not parts:
        raise ConfigError(_NO_EVALUATION)
    for label, part in parts:
        values = [part.get(key) if isinstance(part, Mapping) else None for _, key, _ in _FIGURES]
        if not all(isinstance(value, (int, float)) for value in values):
            raise ConfigError(_NO_EVALUATION)
        cells = (form.format(value) for (_, _, form), value in zip(_FIGURES, values, strict=True))
        yield [_names(evaluation, "model"), label, *cells]


def _names(evaluation: Mapping[str, Any], key: str) -> str:
    """The files of a pair, without their folders."""
    pair = evaluation.get(key)
    names = [pair.get(kind) for kind in ("text", "mmproj")] if isinstance(pair, Mapping) else [None]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(_NO_EVALUATION)
    return " + ".join(f"`{PurePath(name).name}`" for name in map(str, names))
