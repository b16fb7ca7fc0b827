"""`pyvllama export`: a pair of GGUF files back to a Hugging Face checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from pyvllama.cli import ui
from pyvllama.cli.options import output_directory

__all__ = ["export"]


@click.command()
@click.argument("model")
@output_directory("the checkpoint")
@click.option("--mmproj", type=click.Path(), help="The mmproj file, if it is not beside the text file.")
@click.option("--dequantize", is_flag=True, help="Take quantized files; their rounded weights are written as BF16.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
def export(model: str, out_dir: Path, mmproj: str | None, dequantize: bool, overwrite: bool) -> None:
    """Write a pair of GGUF files back as a Hugging Face checkpoint.

    MODEL is a text GGUF (of a split one the first file) or a directory with the pair. transformers loads the result,
    and `pyvllama convert` makes the same pair of it again. What was converted without loss (F32, or the checkpoint's
    own type) comes back bit for bit.

    \b
    pyvllama export models/My-Model-BF16.gguf -o my-model
    pyvllama export my-llama-3.1.gguf --mmproj mmproj-My-Model-BF16.gguf -o grafted
    pyvllama export models -o rounded --dequantize
    """  # noqa: D301  click wants the character itself
    from pyvllama.conversion.checkpoint_export import plan_export, write_export  # noqa: PLC0415  not needed by others

    plan = plan_export(model, mmproj=mmproj, dequantize=dequantize)
    for text in plan.notes:
        ui.note(text)
    with ui.bytes_progress() as progress:
        write_export(plan, out_dir, progress=progress, overwrite=overwrite)
    for name in plan.names:
        click.echo(f"{out_dir / name}  {ui.format_bytes((out_dir / name).stat().st_size)}")
