"""`pyvllama convert`: a checkpoint to a pair of GGUF files."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyvllama.cli import ui
from pyvllama.cli.options import output_directory, threads_option

if TYPE_CHECKING:
    from pyvllama.conversion.output import OutputFile

__all__ = ["convert"]


@click.command()
@click.argument("src")
@output_directory("the two files")
@click.option(
    "-q",
    "--text-type",
    help="Text model and cross-attention layers: f32, f16, bf16, q8_0, q6_k, q5_k_m ... iq1_s, as llama.cpp calls "
    "them. Default: q4_k_m.",
)
@click.option("--mmproj-type", help="Vision tower and projector: f32, f16, bf16, q8_0, q6_k ... Default: q8_0.")
@click.option("--cross-type", help="Cross-attention layers. Default: as the text model.")
@click.option(
    "--tensor-type",
    "tensor_types",
    multiple=True,
    metavar="REGEX=TYPE",
    help="Another type for the matrices of that name, such as 'xattn.*=q8_0'; repeatable, the first that matches wins.",
)
@click.option(
    "--imatrix",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Importance matrix (see `pyvllama imatrix`); repeatable. IQ3_XXS, Q2_K_S and the IQ2 and IQ1 types need one.",
)
@click.option(
    "--base",
    metavar="BASE",
    help="Directory or Hub id of the model that SRC was made from: its config, tokenizer and template files are taken "
    "where SRC lacks them.",
)
@click.option(
    "--lora",
    multiple=True,
    metavar="ADAPTER",
    help="LoRA adapter (directory or Hub id) to merge into the weights; repeatable.",
)
@click.option("--name", help="Name of the files and the model. Default: the source's.")
@click.option("--quantized-by", metavar="NAME", help="Your name, for the files' metadata.")
@click.option("--revision", help="Branch, tag or commit on the Hub. Default: its main branch.")
@click.option(
    "--cross-qk-order",
    type=click.Choice(["interleaved", "plain"]),
    help="How an Ollama model stores q and k of its cross-attention layers. Default: interleaved.",
)
@click.option("--split-max-size", metavar="SIZE", help="Write the text model in shards of at most, say, 2G.")
@click.option("--mmproj-only", is_flag=True, help="Write no text model: for a Llama 3.1 GGUF that you already have.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, tensor by tensor, and write nothing.")
@threads_option("all cores")
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
def convert(
    src: str,
    out_dir: Path,
    text_type: str | None,
    mmproj_type: str | None,
    cross_type: str | None,
    tensor_types: tuple[str, ...],
    imatrix: tuple[Path, ...],
    base: str | None,
    lora: tuple[str, ...],
    name: str | None,
    quantized_by: str | None,
    revision: str | None,
    cross_qk_order: str | None,
    split_max_size: str | None,
    mmproj_only: bool,
    dry_run: bool,
    threads: int | None,
    overwrite: bool,
) -> None:
    """Convert a Llama 3.2 Vision checkpoint into a text GGUF and its mmproj.

    SRC is a directory: of Hugging Face's form (config.json, *.safetensors) or of Meta's (consolidated.*.pth,
    params.json, tokenizer.model; nothing in it is executed). Or it is the id of a repository on the Hub, such as
    meta-llama/Llama-3.2-11B-Vision-Instruct: it is downloaded into the Hub's cache (HF_HOME; run again after
    a cut, it fetches only the files that are not complete; with HF_HUB_OFFLINE=1 only the cache is used). A gated
    repository needs its licence accepted on the Hub and a token (`hf auth login`, or HF_TOKEN).

    Or it is ollama:NAME[:TAG], a model that Ollama has pulled (in $OLLAMA_MODELS, ~/.ollama/models or a service's
    directory): its files are repacked, every tensor as it is, so it takes no -q and the like.

    Fine-tunes with other vocabulary sizes are taken as they are: a cut or enlarged embedding or lm_head, tied ones too.
    So are weights that bitsandbytes quantized, to 4 bits or 8.

    Where SRC is a LoRA adapter, it becomes llama.cpp's LoRA GGUF (-q f16, bf16 or f32), if it changes the text model's
    own layers alone; any other adapter can be merged into its base model, with --lora.

    \b
    pyvllama convert ~/.llama/checkpoints/Llama3.2-11B-Vision-Instruct -o models
    pyvllama convert meta-llama/Llama-3.2-11B-Vision-Instruct -o models
    pyvllama convert ollama:llama3.2-vision -o models
    pyvllama convert my-fine-tune -o models -q q6_k --tensor-type 'xattn.*=q8_0'
    pyvllama convert tune -o models -q iq2_m --imatrix imatrix-x.gguf --imatrix imatrix-mmproj-x.gguf
    pyvllama convert my-weights -o models --base meta-llama/Llama-3.2-11B-Vision-Instruct
    pyvllama convert Llama-3.2-11B-Vision-Instruct -o models --lora my-adapter --name my-model
    """  # noqa: D301  click wants the character itself
    from pyvllama.conversion.pipeline import plan_conversion  # noqa: PLC0415  not needed by other commands
    from pyvllama.conversion.source import is_adapter_source  # noqa: PLC0415
    from pyvllama.conversion.splitting import parse_size  # noqa: PLC0415

    if is_adapter_source(src, revision=revision):
        from pyvllama.conversion.lora_gguf import plan_lora  # noqa: PLC0415

        refuse_model_options(click.get_current_context())
        adapter = plan_lora(src, out_dir, base=base, type=text_type or "f16", name=name, revision=revision)
        finish([adapter], out_dir, dry_run=dry_run, threads=threads, overwrite=overwrite)
        return
    plan = plan_conversion(  # a download draws bars of its own
        src,
        out_dir,
        text_type=text_type,
        mmproj_type=mmproj_type,
        cross_type=cross_type,
        tensor_types=tensor_types,
        imatrix=imatrix,
        base=base,
        lora=lora,
        name=name,
        quantized_by=quantized_by,
        revision=revision,
        cross_qk_order=cross_qk_order,
        split_max_bytes=None if split_max_size is None else parse_size(split_max_size),
        mmproj_only=mmproj_only,
    )
    for text in plan.notes:
        ui.note(text)
    finish(plan.files, out_dir, dry_run=dry_run, threads=threads, overwrite=overwrite)


def finish(files: Sequence[OutputFile], out_dir: Path, *, dry_run: bool, threads: int | None, overwrite: bool) -> None:
    """Write the files, or print what they will be."""
    from pyvllama.conversion.output import check_existing, write_files  # noqa: PLC0415

    if dry_run:
        check_existing([file.path for file in files], overwrite=overwrite)
        print_plan(files, out_dir)
        return
    with ui.bytes_progress() as progress:
        paths = write_files(files, n_threads=threads, progress=progress, overwrite=overwrite)
    for path in paths:
        click.echo(f"{path}  {ui.format_bytes(path.stat().st_size)}")


def refuse_model_options(context: click.Context) -> None:
    """Say which options mean nothing where SRC is an adapter."""
    of_adapters = {"src", "out_dir", "text_type", "base", "name", "revision", "threads", "overwrite", "dry_run"}
    given = [
        max(p.opts, key=len)
        for p in context.command.params
        if p.name and p.name not in of_adapters and context.params.get(p.name) not in (None, (), False)
    ]
    if given:
        raise click.UsageError(f"{context.params['src']} is a LoRA adapter: {', '.join(given)} cannot be used with it")


def print_plan(files: Sequence[OutputFile], out_dir: Path) -> None:
    """Every tensor with its type, size and source; then what it takes of the disk and the memory."""
    for file in files:
        click.echo(f"{file.path}  {ui.format_bytes(file.n_bytes)}")
        for line in _tensor_lines(file):
            click.echo(line)
    from pyvllama.conversion.conversion_plan import PEAK_MEMORY  # noqa: PLC0415

    where = next(p for p in (out_dir, *out_dir.absolute().parents) if p.exists())
    needed, free = sum(file.n_bytes for file in files), shutil.disk_usage(where).free
    click.echo(f"disk    {ui.format_bytes(needed)} needed, {ui.format_bytes(free)} free")
    click.echo(f"memory  about {ui.format_bytes(PEAK_MEMORY)} at most")


def _tensor_lines(file: OutputFile) -> list[str]:
    rows = [
        (t.spec.name, " x ".join(map(str, t.spec.shape)), t.spec.type, ui.format_bytes(t.spec.n_bytes), t.origin)
        for t in file.tensors
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [
        f"  {name:{widths[0]}}  {shape:{widths[1]}}  {kind:{widths[2]}}  {size:>{widths[3]}}  {origin}"
        for name, shape, kind, size, origin in rows
    ]
