"""`pyvllama quantize`: GGUF to GGUF of another type."""

from __future__ import annotations

from pathlib import Path

import click

from pyvllama.cli import ui
from pyvllama.cli.options import output_directory, threads_option

__all__ = ["quantize"]


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@output_directory("the results")
@click.option("-q", "--text-type", help="Text model and cross-attention layers. Default: q4_k_m.")
@click.option("--mmproj-type", help="Vision tower and projector. Default: q8_0.")
@click.option("--cross-type", help="Cross-attention layers. Default: as the text model.")
@click.option("--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE", help="See `pyvllama convert`.")
@click.option("--imatrix", multiple=True, type=click.Path(path_type=Path), help="Importance matrix; repeatable.")
@click.option("--allow-requantize", is_flag=True, help="Take files that are quantized already.")
@click.option("--split-max-size", metavar="SIZE", help="Write the text model in shards of at most, say, 2G.")
@threads_option("all cores")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
def quantize(
    files: tuple[Path, ...],
    out_dir: Path,
    text_type: str | None,
    mmproj_type: str | None,
    cross_type: str | None,
    tensor_types: tuple[str, ...],
    imatrix: tuple[Path, ...],
    allow_requantize: bool,
    split_max_size: str | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Quantize a text GGUF, an mmproj, or both. FILES may be a directory with the pair.

    The text model comes out as llama.cpp's own quantizer makes it, byte for byte; it may be any Llama's.

    \b
    pyvllama quantize models/My-Model-BF16.gguf models/mmproj-My-Model-BF16.gguf -o small -q q4_k_m
    pyvllama quantize mmproj-My-Model-F16.gguf -o small -q q6_k --mmproj-type q8_0
    pyvllama quantize models -o tiny -q iq2_m --imatrix imatrix.gguf --imatrix imatrix-mmproj.gguf
    """  # noqa: D301  click wants the character itself
    from pyvllama.conversion.importance import read_importance  # noqa: PLC0415
    from pyvllama.conversion.output import write_files  # noqa: PLC0415
    from pyvllama.conversion.quantization import plan_quantization  # noqa: PLC0415
    from pyvllama.conversion.splitting import parse_size  # noqa: PLC0415
    from pyvllama.locate import locate  # noqa: PLC0415

    paths: list[Path] = []
    for path in files:
        pair = locate(path) if path.is_dir() else None
        paths += [path] if pair is None else [pair.text, pair.mmproj]
    planned = plan_quantization(
        paths,
        out_dir,
        text_type=text_type,
        mmproj_type=mmproj_type,
        cross_type=cross_type,
        tensor_types=tensor_types,
        imatrix=imatrix,
        allow_requantize=allow_requantize,
        split_max_bytes=None if split_max_size is None else parse_size(split_max_size),
    )
    importance = read_importance(imatrix)
    if importance is not None and (text := importance.note(planned)):
        ui.note(text)
    with ui.bytes_progress() as progress:
        written = write_files(planned, n_threads=threads, progress=progress, overwrite=overwrite)
    for path in written:
        click.echo(f"{path}  {ui.format_bytes(path.stat().st_size)}")
