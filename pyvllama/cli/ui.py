"""All looks of the command line. Answers go to stdout, everything beside them to stderr."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

__all__ = [
    "bytes_progress",
    "confirm",
    "count_progress",
    "error",
    "format_bytes",
    "format_dropped",
    "format_timings",
    "fraction_progress",
    "note",
    "write_answer",
]

_err = Console(stderr=True, highlight=False)


def note(text: str) -> None:
    """A line beside the answer."""
    _err.print(text, style="dim", markup=False, soft_wrap=True)


def error(text: str) -> None:
    """A line that says what went wrong."""
    _err.print(f"Error: {text}", style="red", markup=False, soft_wrap=True)


def write_answer(text: str) -> None:
    """A piece of an answer, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


def format_bytes(n: float) -> str:
    """Bytes for people: 812 B, 25.5 MiB, 7.2 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError


def format_timings(timings: dict[str, Any]) -> str:
    """One line: image encoding, prompt and answer, each with its time and rate."""
    parts = []
    if timings["image_encode_ms"]:
        parts.append(f"image {_time(timings['image_encode_ms'])}")
    elif timings["image_cached"]:
        parts.append("image cached")
    for label, key in (("prompt", "prompt"), ("answer", "predicted")):
        n, ms, rate = (timings[f"{key}_{unit}"] for unit in ("n", "ms", "per_second"))
        parts.append(f"{label} {n} tokens in {_time(ms)} ({rate:.{0 if rate >= 100 else 1}f}/s)")
    return " · ".join(parts)


def format_dropped(n_turns: int) -> str:
    """What is said where turns were left away."""
    return f"The context is full: the model saw the conversation without its oldest {n_turns} turn{'s'[: n_turns > 1]}."


def _time(ms: float) -> str:
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


@contextlib.contextmanager
def fraction_progress(what: str) -> Iterator[Callable[..., None]]:
    """A bar for work that tells the fraction done and, if it likes, what it is at; it vanishes at the end.

    Nothing where stderr is no terminal.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=_err, transient=True, disable=not _err.is_terminal) as bar:
        task: TaskID | None = None

        def update(fraction: float, now: str = what) -> None:
            nonlocal task
            if task is None:
                task = bar.add_task(what, total=1.0)
            bar.update(task, completed=fraction, description=escape(now))

        yield update


@contextlib.contextmanager
def count_progress(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """A bar for work on so many things; called after each with its name. Nothing where stderr is no terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}", style="dim", markup=False),
    )
    with Progress(*columns, console=_err, disable=not _err.is_terminal) as bar:
        task = bar.add_task(what, total=total, name="")
        yield lambda name: bar.update(task, advance=1, name=name)


@contextlib.contextmanager
def bytes_progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar for work that tells bytes done and in all, and what it is at: size, rate, time left.

    It appears with the first call: what comes before, a download say, may draw bars of its own.
    """
    columns = (
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}", style="dim"),
    )
    bar = Progress(*columns, console=_err, disable=not _err.is_terminal)
    task: TaskID | None = None

    def update(done: int, total: int, what: str) -> None:
        nonlocal task
        if task is None:
            bar.start()
            task = bar.add_task("", total=None)
        bar.update(task, completed=done, total=total, description=what)

    try:
        yield update
    finally:
        if task is not None:
            bar.stop()


def confirm(question: str) -> bool:
    """Ask on the terminal; where there is none, the answer is no."""
    return sys.stdin is not None and sys.stdin.isatty() and click.confirm(question, err=True)
