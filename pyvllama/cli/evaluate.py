"""`pyvllama eval`: what a quantized pair costs in quality."""

import json
from pathlib import Path

import click

from pyvllama.cli import ui
from pyvllama.cli.options import gpu_options, threads_option
from pyvllama.divergence import Divergence
from pyvllama.evaluation import Evaluation, PairSize
from pyvllama.evaluation import evaluate as evaluate_pair
from pyvllama.loading import DEFAULT_N_CTX

__all__ = ["evaluate"]


@click.command("eval")
@click.argument("model", required=False)
@click.option("-r", "--reference", required=True, help="The pair that counts as right, say in BF16.")
@click.option(
    "-d",
    "--data",
    "datasets",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="Chats (.jsonl) or plain text; repeatable. Not those of the calibration.",
)
@click.option("--mmproj", type=click.Path(), help="MODEL's mmproj file, if it is not beside the text file.")
@click.option("--reference-mmproj", type=click.Path(), help="The reference's, likewise.")
@click.option("-c", "--ctx-size", type=click.IntRange(16, 2**31 - 1), default=DEFAULT_N_CTX, show_default=True,
              help="Positions of the context: the longest chat.")  # fmt: skip
@click.option("--chunk", type=click.IntRange(min=16), default=512, show_default=True, help="Tokens of a chunk of text.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=128, show_default=True,
              help="Longest answer of the reference, where a chat has none.")  # fmt: skip
@click.option("--work-dir", type=click.Path(path_type=Path, file_okay=False),
              help="For the reference's logits: 0.5 MB a token of an answer. Default: the system's.")  # fmt: skip
@threads_option("physical cores")
@gpu_options
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def evaluate(
    model: str | None,
    reference: str,
    datasets: tuple[Path, ...],
    mmproj: str | None,
    reference_mmproj: str | None,
    ctx_size: int,
    chunk: int,
    max_tokens: int,
    work_dir: Path | None,
    threads: int | None,
    gpu_layers: int,
    mmproj_offload: bool,
    as_json: bool,
) -> None:
    """Compare a quantized pair with a reference: KL divergence, top-1 agreement, perplexity.

    Compared are the probabilities of every token that the assistant says in the chats (see `pyvllama imatrix --help`
    for the file's form), and of plain text the second half of each chunk. A chat without an answer is answered by the
    reference. The figures are those of llama.cpp's `llama-perplexity --kl-divergence`; one model is loaded at a time.

    \b
    pyvllama eval models/Llama-3.2-11B-Vision-Instruct-IQ3_XXS.gguf -r models-bf16 -d held-out.jsonl
    """  # noqa: D301  click wants the character itself
    with ui.fraction_progress("Evaluating") as progress:
        result = evaluate_pair(
            model,
            reference,
            datasets,
            mmproj=mmproj,
            reference_mmproj=reference_mmproj,
            n_ctx=ctx_size,
            chunk_tokens=chunk,
            max_tokens=max_tokens,
            work_dir=work_dir,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            mmproj_offload=mmproj_offload,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
    else:
        _print_table(result)


def _print_table(e: Evaluation) -> None:
    click.echo(f"{'model':12}{_size(e.model)}")
    click.echo(f"{'reference':12}{_size(e.reference)}")
    click.echo(f"{'chats':12}{e.n_image_chats} with pictures, {e.n_text_chats} without")
    columns = [("all", e.all), ("pictures", e.images), ("text only", e.texts)]
    shown = [(title, d) for title, d in columns if d is not None]
    click.echo(f"\n{'':24}" + "".join(f"{title:>22}" for title, _ in shown))
    rows = zip(*(_cells(d) for _, d in shown), strict=True)
    for cells in rows:
        click.echo(f"{cells[0][0]:24}" + "".join(f"{value:>22}" for _, value in cells))


def _size(pair: PairSize) -> str:
    text, mmproj = Path(pair.text).name, Path(pair.mmproj).name
    parts = f"{text} {ui.format_bytes(pair.text_bytes)} + {mmproj} {ui.format_bytes(pair.mmproj_bytes)}"
    return f"{parts} = {ui.format_bytes(pair.n_bytes)}"


def _kld(value: float) -> str:
    """Six digits behind the point, as people know it; a small one keeps its leading ones."""
    return f"{value:.6f}" if value == 0 or value >= 1e-3 else f"{value:.3g}"


def _cells(d: Divergence) -> list[tuple[str, str]]:
    return [
        ("tokens", str(d.n_tokens)),
        ("KL divergence, mean", f"{_kld(d.kld_mean)} ± {_kld(d.kld_error)}"),
        ("  median", _kld(d.kld_median)),
        ("  90 %", _kld(d.kld_p90)),
        ("  99 %", _kld(d.kld_p99)),
        ("  99.9 %", _kld(d.kld_p99_9)),
        ("  largest", _kld(d.kld_max)),
        ("same top token", f"{100 * d.same_top:.3f} %"),
        ("RMS of Δp", f"{100 * d.dp_rms:.3f} %"),
        ("mean Δp", f"{100 * d.dp_mean:+.3f} %"),
        ("perplexity", f"{d.ppl:.4f}"),
        ("  of the reference", f"{d.ppl_reference:.4f}"),
        ("  ratio", f"{d.ppl_ratio:.5f}"),
        ("mean Δ ln p", f"{d.log_p_diff:+.6f}"),
    ]
