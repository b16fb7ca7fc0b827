"""`pyvllama push`: GGUF files and a model card to the Hub."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pyvllama import __version__
from pyvllama.cli import ui
from pyvllama.errors import ConfigError, FormatError, ModelNotFound
from pyvllama.file_names import parse_file_name, shards_of
from pyvllama.gguf_file import GGUFFile
from pyvllama.hub_client import HUB, is_hub_id
from pyvllama.hub_models import check_mmproj
from pyvllama.hub_upload import CARD, upload
from pyvllama.inventory import find_items
from pyvllama.locate import as_path, locate
from pyvllama.model_card import CardFile, model_card

__all__ = ["push"]

_MAX_EVAL_BYTES = 1 << 20
_ORDER = ("model", "mmproj", "imatrix")


@click.command()
@click.argument("model", metavar="DIR|MODEL")
@click.argument("repo_id", metavar="REPO")
@click.option("--private", is_flag=True, help="Make the repository private, if it is made now.")
@click.option("--dry-run", is_flag=True, help="Show files and card; nothing is sent.")
@click.option(
    "--eval",
    "evaluations",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Output of `pyvllama eval --json`, for the card's table; repeatable.",
)
@click.option("--base-model", metavar="ORG/NAME", help="What was quantized. Default: what the text file says.")
@click.option("--quantized-by", metavar="NAME", help="Who made the files. Default: what the text file says.")
@click.option("--overwrite-card", is_flag=True, help="Replace the README.md that the repository has.")  # fmt: skip
def push(
    model: str,
    repo_id: str,
    private: bool,
    dry_run: bool,
    evaluations: tuple[Path, ...],
    base_model: str | None,
    quantized_by: str | None,
    overwrite_card: bool,
) -> None:
    """Publish GGUF files on the Hub, with a model card.

    All GGUF files of a directory are uploaded, or the pair of a MODEL (a text GGUF, or a name that `pyvllama list`
    shows), in one commit; REPO is made if there is none. The card says what the files say: base model, licence,
    languages. Uploading needs a token that may write (`hf auth login`, or HF_TOKEN).

    \b
    pyvllama push models somebody/Llama-3.2-11B-Vision-GGUF --dry-run
    pyvllama push models somebody/Llama-3.2-11B-Vision-GGUF --eval eval.json --quantized-by somebody
    """  # noqa: D301  click wants the character itself
    for option, value in (("REPO", repo_id), ("--base-model", base_model)):
        if value is not None and not is_hub_id(value):
            raise ConfigError(f"{option}: {value!r} is no name of a repository on the Hub: user/name")
    paths = _files(model)
    files, metadata = _inspect(paths)
    card = model_card(
        repo_id,
        files,
        metadata,
        base_model=base_model,
        quantized_by=quantized_by,
        evaluations=[_read_json(path) for path in evaluations],
        version=__version__,
    )
    if not metadata.get("general.license"):
        ui.note("The files name no licence: the card has none either; add it before others use the model.")
    for file in files:
        ui.note(f"{file.name}  {ui.format_bytes(file.n_bytes)}")
    if dry_run:
        click.echo(card, nl=False)
        return
    by_name = {path.name: path for path in paths}
    url, with_card = upload(
        repo_id, [by_name[f.name] for f in files], card, private=private, overwrite_card=overwrite_card
    )
    if not with_card:
        ui.note(f"The repository's own {CARD} was kept; --overwrite-card replaces it.")
    click.echo(f"{HUB}/{repo_id}" if url.startswith(HUB) else url)


def _files(model: str) -> list[Path]:
    """What is to be uploaded."""
    path = as_path(model)
    if path.is_dir():
        return sorted(p for p in path.glob("*.gguf") if p.is_file())
    pair = locate(path) if path.exists() else find_items([model])[0].pair
    texts = shards_of(pair.text.name, (p.name for p in pair.text.parent.iterdir()))
    return [*(pair.text.parent / name for name in texts), pair.mmproj]


def _inspect(paths: Sequence[Path]) -> tuple[list[CardFile], dict[str, Any]]:
    """The files in the card's order, and the metadata of a text file.

    Raises:
        ModelNotFound: a text model or an mmproj is missing. FormatError: a file is damaged or of another family.
    """
    files: list[CardFile] = []
    metadata: dict[str, Any] = {}
    for path in paths:
        if parse_file_name(path).shard > 1:
            files.append(CardFile(path.name, path.stat().st_size, "model"))
            continue
        keys = GGUFFile(path).metadata
        kind = str(keys.get("general.type", "model"))
        if kind == "mmproj":
            check_mmproj(path)
        if kind not in _ORDER:
            raise FormatError(f"{path}: general.type is {kind!r}: this is none of a model's files")
        if kind == "model" and not metadata:
            metadata = dict(keys)
        files.append(CardFile(path.name, path.stat().st_size, kind))
    for kind in ("model", "mmproj"):
        if not any(f.kind == kind for f in files):
            where = paths[0].parent if paths else "the directory"
            raise ModelNotFound(f"{where}: no {'text model' if kind == 'model' else 'mmproj'} (*.gguf) to be uploaded")
    return sorted(files, key=lambda f: _ORDER.index(f.kind)), metadata


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as f:
            values = json.loads(f.read(_MAX_EVAL_BYTES))
    except (OSError, ValueError, RecursionError) as e:
        raise ConfigError(f"{path} cannot be read as JSON: {e}") from e
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is no output of `pyvllama eval --json`: one JSON object is expected")
    return values
