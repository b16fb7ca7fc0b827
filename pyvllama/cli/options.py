"""Options that several commands share."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import click

from pyvllama.context import KV_TYPES, MAX_N_THREADS
from pyvllama.loading import DEFAULT_N_CTX
from pyvllama.model import CROSS_KV_TYPES

__all__ = [
    "MEMORY_OPTIONS",
    "gpu_options",
    "layout_options",
    "load_options",
    "memory_options",
    "output_directory",
    "refuse_given",
    "threads_option",
]

Command = Callable[..., Any]

MEMORY_OPTIONS = ("ctx_size", "kv_type", "cross_kv_type", "repack")
"""What `memory_options` gives."""


def output_directory(what: str) -> Callable[[Command], Command]:
    """`-o DIR`, as `out_dir`; `what` is put there."""
    return click.option(
        "-o",
        "--output",
        "out_dir",
        type=click.Path(path_type=Path, file_okay=False),
        required=True,
        help=f"Directory for {what}; made if it does not exist.",
    )


def threads_option(default: str) -> Callable[[Command], Command]:
    """`-t N`; `default` says what it is without."""
    return click.option(
        "-t", "--threads", type=click.IntRange(1, MAX_N_THREADS), help=f"CPU threads. Default: {default}."
    )


def refuse_given(context: click.Context, names: Collection[str], needed: str) -> None:
    """Say which of these parameters are on the command line though they mean nothing without what is needed."""
    source = click.core.ParameterSource.COMMANDLINE
    if given := [max(p.opts, key=len) for p in context.command.params if p.name in names
                 and context.get_parameter_source(p.name) is source]:  # fmt: skip
        raise click.UsageError(f"{', '.join(given)} mean{'s' * (len(given) == 1)} nothing without {needed}")


def gpu_options(command: Command) -> Command:
    """gpu_layers and mmproj_offload."""
    layers, offload = (
        click.option("-ngl", "--gpu-layers", "--n-gpu-layers", "gpu_layers", type=click.IntRange(-1, 2**31 - 1),
                     default=0, show_default=True,
                     help="Text layers on the GPU, -1 for all; any but 0 also puts the vision part there."),
        click.option("--mmproj-offload/--no-mmproj-offload", default=True, show_default=True,
                     help="Whether -ngl puts the vision tower on the GPU, too."),
    )  # fmt: skip
    return layers(offload(command))


def layout_options(command: Command) -> Command:
    """kv_type, cross_kv_type and repack."""
    options = (
        click.option("--kv-type", type=click.Choice(list(KV_TYPES)), default="f16", show_default=True,
                     help="Type of the context's keys and values; q8_0 takes half the memory."),
        click.option("--cross-kv-type", type=click.Choice(list(CROSS_KV_TYPES)), default="f16", show_default=True,
                     help="Type of the pictures' keys and values; q8_0 takes three quarters of the memory."),
        click.option("--repack/--no-repack", " /-nr", default=True, show_default=True,
                     help="Whether weights are copied into the layout of the CPU's kernels: loading takes longer, each "
                     "token of an answer less."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def memory_options(n_ctx: int = DEFAULT_N_CTX) -> Callable[[Command], Command]:
    """ctx_size (`n_ctx` by default) and those of `layout_options`."""
    size = click.option("-c", "--ctx-size", type=click.IntRange(1, 2**31 - 1), default=n_ctx, show_default=True,
                        help="Positions of the context.")  # fmt: skip
    return lambda command: size(layout_options(command))


def load_options(n_ctx: int = DEFAULT_N_CTX) -> Callable[[Command], Command]:
    """What loads a model: mmproj, text_type, those of `memory_options`, threads, gpu_layers and mmproj_offload."""

    def decorate(command: Command) -> Command:
        options = (
            click.option("--mmproj", metavar="FILE|REPO",
                         help="The mmproj file, if it is not beside the text file; or user/repo[:TYPE] on the Hub."),
            click.option("-q", "--text-type", help="Type that a checkpoint is converted to. Default: q4_k_m."),
            memory_options(n_ctx),
            threads_option("physical cores"),
            gpu_options,
        )  # fmt: skip
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
