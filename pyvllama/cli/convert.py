"""`pyvllama convert`: a checkpoint to a pair of GGUF files."""

from pathlib import Path

import click

from pyvllama.cli import ui
from pyvllama.context import MAX_N_THREADS

__all__ = ["convert"]


@click.command()
@click.argument("src")
@click.option(
    "-o",
    "--output",
    "out_dir",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Directory for the two files; made if it does not exist.",
)
@click.option(
    "-q",
    "--text-type",
    default="q4_k_m",
    show_default=True,
    help="Text model and cross-attention layers: f32, f16, bf16, q8_0, q4_k_m.",
)
@click.option(
    "--mmproj-type", default="q8_0", show_default=True, help="Vision tower and projector: f32, f16, bf16, q8_0, q4_k."
)
@click.option("--cross-type", help="Cross-attention layers. Default: as the text model.")
@click.option("--name", help="Name of the files and the model. Default: the source's.")
@click.option("--revision", help="Branch, tag or commit on the Hub. Default: its main branch.")
@click.option("-t", "--threads", type=click.IntRange(1, MAX_N_THREADS), help="Default: all cores.")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")  # fmt: skip
def convert(
    src: str,
    out_dir: Path,
    text_type: str,
    mmproj_type: str,
    cross_type: str | None,
    name: str | None,
    revision: str | None,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Convert a Llama 3.2 Vision checkpoint into a text GGUF and its mmproj.

    SRC is a directory: of Hugging Face's form (config.json, *.safetensors) or of Meta's (consolidated.*.pth,
    params.json, tokenizer.model; nothing in it is executed). Or it is the id of a repository on the Hub, such as
    meta-llama/Llama-3.2-11B-Vision-Instruct: it is downloaded into the Hub's cache (HF_HOME; a cut download goes on
    where it stopped; with HF_HUB_OFFLINE=1 only the cache is used). A gated repository needs its licence accepted on
    the Hub and a token (`hf auth login`, or HF_TOKEN).

    Fine-tunes with other vocabulary sizes are taken as they are: a cut or enlarged embedding or lm_head, tied ones too.

    \b
    pyvllama convert ~/.llama/checkpoints/Llama3.2-11B-Vision-Instruct -o models
    pyvllama convert meta-llama/Llama-3.2-11B-Vision-Instruct -o models
    pyvllama convert Llama-3.2-11B-Vision-Instruct -o models
    pyvllama convert my-fine-tune -o models -q q8_0 --mmproj-type bf16
    """  # noqa: D301  click wants the character itself
    from pyvllama.conversion import convert as convert_checkpoint  # noqa: PLC0415  not needed by the other commands
    from pyvllama.conversion.source import find_source  # noqa: PLC0415

    source = find_source(src, revision=revision)  # its download draws bars of its own
    with ui.bytes_progress() as progress:
        pair = convert_checkpoint(
            source.path,
            out_dir,
            text_type=text_type,
            mmproj_type=mmproj_type,
            cross_type=cross_type,
            name=name or source.name,
            n_threads=threads,
            progress=progress,
            overwrite=overwrite,
        )
    for path in (pair.text, pair.mmproj):
        click.echo(f"{path}  {ui.format_bytes(path.stat().st_size)}")
