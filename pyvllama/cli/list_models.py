"""`pyvllama list`: the models that are kept on this machine."""

import json
from datetime import datetime, timezone

import click

from pyvllama.cli import ui
from pyvllama.inventory import Item, inventory

__all__ = ["list_models"]

_UNITS = ((86400.0, "day"), (3600.0, "hour"), (60.0, "minute"))


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="As a JSON list; sizes in bytes.")
def list_models(as_json: bool) -> None:
    """List the models that are kept: converted, imported and pulled ones, the last used first.

    Converted and imported models are in PYVLLAMA_CACHE (default: pyvllama in the user's cache directory), pulled ones
    in the Hub's cache (HF_HOME). `run`, `show` and `rm` take these names.

    \b
    pyvllama list
    pyvllama list --json
    """  # noqa: D301  click wants the character itself
    items = inventory()
    if as_json:
        click.echo(json.dumps([item.as_dict() for item in items], indent=2))
        return
    if not items:
        ui.note("No models yet. `pyvllama pull` fetches one, `pyvllama run CHECKPOINT` makes one.")
        return
    heads = ("NAME", "TYPE", "TEXT", "MMPROJ", "USED", "SOURCE")
    rows = [heads, *map(_row, items)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(heads))]
    for row in rows:
        click.echo("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(item: Item) -> tuple[str, ...]:
    sizes = (ui.format_bytes(item.text_bytes), ui.format_bytes(item.mmproj_bytes))
    return (item.name, item.type or "", *sizes, _ago(item.used), f"{item.kind} {item.source}")


def _ago(time: datetime) -> str:
    seconds = (datetime.now(timezone.utc) - time).total_seconds()
    for unit, name in _UNITS:
        if (n := int(seconds // unit)) >= 1:
            return f"{n} {name}{'s' if n > 1 else ''} ago"
    return "just now"
