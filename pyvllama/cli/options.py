"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pyvllama.context import MAX_N_THREADS

__all__ = ["output_directory", "threads_option"]

Command = Callable[..., Any]


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
