"""`pyvllama bench`: a line about this machine that can be posted."""

import json

import click

from pyvllama.benchmark import Benchmark, Measured
from pyvllama.benchmark import benchmark as measure
from pyvllama.cli import ui
from pyvllama.cli.options import gpu_options, layout_options, threads_option

__all__ = ["bench"]


def _numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """`512` or `128,512`, as llama-bench takes them."""
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.isdecimal() and part.isascii() and len(part) < 8 for part in parts):
        raise click.BadParameter(f"{value!r} is no list of numbers such as 128,512", ctx, param)
    return tuple(int(part) for part in parts)


@click.command()
@click.argument("model", required=False)
@click.option("--mmproj", metavar="FILE|REPO", help="The mmproj file, if it is not beside the text file.")
@click.option("-q", "--text-type", help="Type that a checkpoint is converted to. Default: q4_k_m.")
@click.option("-p", "--n-prompt", metavar="N,...", callback=_numbers, default="512", show_default=True,
              help="Tokens of a prompt; 0: leave this test out.")  # fmt: skip
@click.option("-n", "--n-gen", metavar="N,...", callback=_numbers, default="128", show_default=True,
              help="Tokens to generate; 0: leave this test out.")  # fmt: skip
@click.option(
    "--tiles", metavar="N,...", callback=_numbers, help="Tiles of the pictures; 0: no pictures. Default: 1,2,4."
)
@click.option("-r", "--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="Of each test.")
@threads_option("physical cores")
@gpu_options
@layout_options
@click.option("-o", "--output", type=click.Choice(["md", "json"]), default="md", show_default=True,
              help="A Markdown table or one JSON object, on stdout.")  # fmt: skip
def bench(
    model: str | None,
    mmproj: str | None,
    text_type: str | None,
    n_prompt: tuple[int, ...],
    n_gen: tuple[int, ...],
    tiles: tuple[int, ...] | None,
    repetitions: int,
    threads: int | None,
    gpu_layers: int,
    mmproj_offload: bool,
    kv_type: str,
    cross_kv_type: str,
    repack: bool,
    output: str,
) -> None:
    """Measure a model on this machine: pictures, prompts, answers. MODEL is anything that `run` takes.

    Tests and options are named as in llama.cpp's llama-bench: pp512 reads 512 tokens, tg128 generates 128. "@ 4 tiles"
    is with a picture in the chat. Times are medians. Nothing else should run meanwhile. The 11B model needs minutes
    for each repetition on a small machine: -r 1 is a first look. What is printed can be posted as it is.

    \b
    pyvllama bench models
    pyvllama bench models --tiles 1 -p 128 -n 32 -r 1
    pyvllama bench models -p 128,512 -n 32 --tiles 1,4 -r 3 -t 8 -o json
    """  # noqa: D301  click wants the character itself
    with ui.fraction_progress("Measuring") as progress:
        result = measure(
            model,
            mmproj,
            n_prompt=n_prompt,
            n_gen=n_gen,
            n_tiles=None if tiles is None else tuple(n for n in tiles if n),
            repetitions=repetitions,
            text_type=text_type,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            mmproj_offload=mmproj_offload,
            kv_type=kv_type,
            cross_kv_type=cross_kv_type,
            repack=repack,
            progress=progress,
        )
    click.echo(json.dumps(result.as_dict(), indent=2) if output == "json" else _markdown(result))


def _markdown(b: Benchmark) -> str:
    size = f"{ui.format_bytes(b.text_bytes)} + {ui.format_bytes(b.mmproj_bytes)}"
    head = ("model", "vision", "size", "params", "backend", "threads", "test", "time", "t/s")
    same = (b.model, b.mmproj_type, size, _params(b.n_params), b.backend, str(b.n_threads))
    rows = [head, *((*same, r.test, _time(r), _rate(r)) for r in b.results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    right = [False] * 6 + [True] * 3
    right[5] = True
    lines = ["| " + " | ".join(_pad(*cell) for cell in zip(row, widths, right, strict=True)) + " |" for row in rows]
    rule = "| " + " | ".join("-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)) + " |"
    m = b.machine
    n = len(b.results[0].samples_ms) if b.results else 0
    return "\n".join([
        lines[0], rule, *lines[1:], "",
        f"{b.text} + {b.mmproj}  ",
        f"{m['cpu']}, {m['cores']} cores, memory {_bytes(m['memory'])}, kernels {b.kernels}, {m['system']}  ",
        *([f"text layers on the GPU {b.gpu_layers} (the output is one), vision tower on {b.tower}  "]
          if b.gpu_layers else []),
        f"pyvllama {m['pyvllama']}, llama-cpp-python {m['llama-cpp-python']}, Python {m['python']}  ",
        f"load {_seconds(b.load_ms)}, peak memory {_bytes(b.peak_memory)}, keys and values {b.kv_type}, the picture's "
        f"{b.cross_kv_type}{'' if b.repack else ', weights in the mapped files'}; median [smallest, largest] of {n}",
    ])  # fmt: skip


def _pad(text: str, width: int, right: bool) -> str:
    return text.rjust(width) if right else text.ljust(width)


def _time(r: Measured) -> str:
    low, high = min(r.samples_ms), max(r.samples_ms)
    return f"{_seconds(r.median_ms)} [{_seconds(low)}, {_seconds(high)}]"


def _rate(r: Measured) -> str:
    return "" if r.per_second is None else f"{r.per_second:.2f}"


def _seconds(ms: float) -> str:
    return f"{ms:.1f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"


def _bytes(n: object) -> str:
    return ui.format_bytes(n) if isinstance(n, int) else "unknown"


def _params(n: int) -> str:
    return f"{n / 1e9:.2f} B" if n >= 1e9 else f"{n / 1e6:.2f} M"
