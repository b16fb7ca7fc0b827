"""`pyvllama cache`: where models are kept, and how much there is."""

import json
from typing import Any

import click

from pyvllama.cli import ui
from pyvllama.hub_client import hub_cache_path
from pyvllama.inventory import inventory
from pyvllama.model_cache import cache_root

__all__ = ["cache"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object; sizes in bytes.")
def cache(as_json: bool) -> None:
    """Show where models are kept, and how much there is of them. `pyvllama list` names them, `pyvllama rm` deletes.

    \b
    pyvllama cache
    PYVLLAMA_CACHE=/data/models HF_HOME=/data/hub pyvllama cache
    """  # noqa: D301  click wants the character itself
    found: dict[str, dict[str, Any]] = {
        "own": {"path": str(cache_root()), "models": 0, "bytes": 0},
        "hub": {"path": str(hub_cache_path()), "models": 0, "bytes": 0},
    }
    for item in inventory():
        part = found["hub" if item.kind == "pulled" else "own"]
        part["models"] += 1
        part["bytes"] += item.text_bytes + item.mmproj_bytes
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for label, part in (("converted, imported", found["own"]), ("pulled", found["hub"])):
        size = ui.format_bytes(part["bytes"])
        click.echo(f"{label:19}  {part['models']} model{'' if part['models'] == 1 else 's'}, {size}  {part['path']}")
