"""`pyvllama imatrix`: importance matrices from chats with pictures."""

import time
from pathlib import Path

import click

from pyvllama.cli import ui
from pyvllama.cli.options import gpu_options, output_directory, threads_option
from pyvllama.loading import DEFAULT_N_CTX

__all__ = ["imatrix"]


@click.command()
@click.argument("model", required=False)
@click.option(
    "-d",
    "--data",
    "datasets",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Calibration set: chats (.jsonl) or plain text; repeatable.",
)
@output_directory("the two files")
@click.option("--mmproj", type=click.Path(), help="The mmproj file, if it is not beside the text file.")
@click.option("--name", help="Name of the files. Default: the text file's, without its type.")
@click.option("-c", "--ctx-size", type=click.IntRange(16, 2**31 - 1), default=DEFAULT_N_CTX, show_default=True,
              help="Positions of the context: the longest chat.")  # fmt: skip
@click.option("--chunk", type=click.IntRange(min=16), default=512, show_default=True, help="Tokens of a chunk of text.")
@click.option("--max-tokens", type=click.IntRange(min=0), default=128, show_default=True,
              help="Longest answer of the model's own, where a chat ends with a question; 0: none.")  # fmt: skip
@click.option("--process-output", is_flag=True, help="Also for the output matrix, as llama-imatrix's option.")
@threads_option("physical cores")
@gpu_options
@click.option("--overwrite", is_flag=True, help="Replace existing files.")
def imatrix(
    model: str | None,
    datasets: tuple[Path, ...],
    out_dir: Path,
    mmproj: str | None,
    name: str | None,
    ctx_size: int,
    chunk: int,
    max_tokens: int,
    process_output: bool,
    threads: int | None,
    gpu_layers: int,
    mmproj_offload: bool,
    overwrite: bool,
) -> None:
    """Measure which weights matter, over a calibration set; `convert` and `quantize` spare them.

    MODEL is a pair of high precision (BF16, F16, Q8_0): a text GGUF or a directory with both files. Two files are
    written: imatrix-NAME.gguf for the text model, in llama.cpp's format (llama-quantize takes it too), and
    imatrix-mmproj-NAME.gguf for cross-attention layers and vision tower. Give both to --imatrix.

    The calibration set should look like what the model is used for: 100 or more chats with pictures, and some without.
    A line of a .jsonl file is a chat in OpenAI's shape; pictures are paths beside the file, addresses or data: URIs:

    \b
    {"messages": [
      {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "cat.jpg"}},
                                   {"type": "text", "text": "What is this?"}]},
      {"role": "assistant", "content": "A cat."}]}          (on one line)

    \b
    pyvllama imatrix models-bf16 -d chats.jsonl -d wiki.txt -o models
    """  # noqa: D301  click wants the character itself
    from pyvllama.imatrix import collect_imatrix  # noqa: PLC0415  not needed by the other commands

    start = time.perf_counter()
    with ui.fraction_progress("Calibrating") as progress:
        done = collect_imatrix(
            model,
            datasets,
            out_dir,
            mmproj=mmproj,
            name=name,
            n_ctx=ctx_size,
            chunk_tokens=chunk,
            max_tokens=max_tokens,
            process_output=process_output,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            mmproj_offload=mmproj_offload,
            progress=progress,
            overwrite=overwrite,
        )
    seconds = time.perf_counter() - start
    ui.note(
        f"{done.n_chats} chats, {done.n_images} pictures and {done.n_chunks} chunks of text, {done.n_tokens} tokens: "
        f"{done.n_weights} weights measured in {seconds:.0f} s"
    )
    if done.mmproj is None:
        ui.note("There were no pictures: nothing was measured of the mmproj, and no file is written for it.")
    for path in filter(None, (done.text, done.mmproj)):
        click.echo(f"{path}  {ui.format_bytes(path.stat().st_size)}")
