"""`pyvllama rm`: delete models from the caches."""

import click

from pyvllama.cli import ui
from pyvllama.errors import Cancelled
from pyvllama.inventory import find_items, remove_items

__all__ = ["rm"]


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(names: tuple[str, ...], yes: bool) -> None:
    """Delete models that `pyvllama list` shows. What they were made of stays where it is.

    \b
    pyvllama rm Llama-3.2-11B-Vision-Instruct-Q4_K_M
    pyvllama rm somebody/Llama-3.2-11B-Vision-Instruct-GGUF:Q8_0 --yes
    """  # noqa: D301  click wants the character itself
    items = find_items(names)
    for item in items:
        sizes = f"{ui.format_bytes(item.text_bytes)} + {ui.format_bytes(item.mmproj_bytes)}"
        ui.note(f"{item.name}  {sizes}  {item.pair.text.parent}")
    if not yes and not ui.confirm(f"Delete {'it' if len(items) == 1 else f'these {len(items)}'}?"):
        raise Cancelled("nothing was deleted; --yes deletes without asking")
    click.echo(f"{ui.format_bytes(remove_items(items))} freed")
