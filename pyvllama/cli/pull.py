"""`pyvllama pull`: GGUF files from the Hub."""

import click

from pyvllama.cli import ui
from pyvllama.errors import ConfigError
from pyvllama.hub_models import parse_hub_name
from pyvllama.hub_models import pull as pull_pair

__all__ = ["pull"]


@click.command()
@click.argument("name", metavar="REPO[:QUANT]")
@click.option("--mmproj-type", metavar="TYPE", help="Type of the mmproj. Default: Q8_0, else F16, BF16, F32.")
@click.option("--revision", help="Branch, tag or commit. Default: the main branch.")
def pull(name: str, mmproj_type: str | None, revision: str | None) -> None:
    """Fetch a text GGUF and its mmproj from the Hub, into the Hub's own cache.

    REPO is user/name; QUANT a type as the file names have it, in any case (default: Q4_K_M, else Q8_0, else the first).
    All parts of a split file are fetched. Run again after a cut, it fetches only the files that are not complete.
    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to the Hub's client.

    \b
    pyvllama pull somebody/Llama-3.2-11B-Vision-Instruct-GGUF
    pyvllama pull somebody/Llama-3.2-11B-Vision-Instruct-GGUF:q8_0 --mmproj-type f16
    pyvllama run somebody/Llama-3.2-11B-Vision-Instruct-GGUF:q8_0
    """  # noqa: D301  click wants the character itself
    if (hub := parse_hub_name(name)) is None:
        raise ConfigError(f"{name!r} is no name of a repository on the Hub: user/name or user/name:QUANT")
    pair = pull_pair(*hub, mmproj_type=mmproj_type, revision=revision)
    for path in (pair.text, pair.mmproj):
        click.echo(f"{path}  {ui.format_bytes(path.stat().st_size)}")
