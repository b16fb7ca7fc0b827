"""All looks of the command line. Answers go to stdout, everything beside them to stderr."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import click
from rich.color import ColorSystem
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
from rich.style import Style

__all__ = [
    "Waiting",
    "bytes_progress",
    "confirm",
    "count_progress",
    "error",
    "format_bytes",
    "format_dropped",
    "format_timings",
    "fraction_progress",
    "is_terminal",
    "note",
    "terminal_graphics",
    "terminal_width",
    "waiting",
    "write_answer",
    "write_styled",
]

_err = Console(stderr=True, highlight=False)
_out = Console(highlight=False)
_STYLES = {"heading": Style(bold=True), "strong": Style(bold=True), "code": Style(color="cyan")}
_WAIT_S = 0.4  # what is there sooner needs no sign of life
# A terminal obeys control characters, and neither a model nor a file's name should command it.
_CONTROL = {c: "\N{REPLACEMENT CHARACTER}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


def note(text: str) -> None:
    """A line beside the answer. Where stderr is a file on a full disk it is lost: no reason to stop."""
    with contextlib.suppress(OSError):
        _err.print(_printable(text, _err), style="dim", markup=False, soft_wrap=True)


def error(text: str) -> None:
    """A line that says what went wrong; the exit code says it too, where stderr takes no more."""
    with contextlib.suppress(OSError):
        _err.print(_printable(f"Error: {text}", _err), style="red", markup=False, soft_wrap=True)


def write_answer(text: str) -> None:
    """A piece of an answer, at once."""
    sys.stdout.write(_printable(text, _out))
    sys.stdout.flush()


def write_styled(pieces: Iterable[tuple[str, str | None]]) -> None:
    """Pieces of an answer, at once, each with the name of its style; plain where stdout shows no colours."""
    has_colours = _out.is_terminal and _out.color_system is not None and not _out.no_color
    for text, name in pieces:
        shown = _printable(text, _out)
        if name and has_colours:
            shown = _STYLES[name].render(shown, color_system=ColorSystem.STANDARD)
        sys.stdout.write(shown)
    sys.stdout.flush()


def _printable(text: str, console: Console) -> str:
    return text.translate(_CONTROL) if console.is_terminal else text


def is_terminal() -> bool:
    """Whether what stands beside the answer is read by a person."""
    return _err.is_terminal


def terminal_width() -> int:
    """In columns."""
    return _err.width


def terminal_graphics(sequence: str) -> None:
    """Send a picture's escape sequence to the terminal."""
    if sequence and _err.is_terminal:
        _err.file.write(sequence)
        _err.file.flush()


def format_bytes(n: float) -> str:
    """Bytes for people: 812 B, 25.5 MiB, 7.2 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    raise AssertionError


def format_timings(timings: dict[str, Any], *, n_tiles: int = 0) -> str:
    """One line: image encoding, prompt and answer, each with its time and rate.

    Args:
        timings: of `LLM.chat`.
        n_tiles: of the images that were encoded; 0 if that is not known.
    """
    parts = []
    if timings["image_encode_ms"]:
        tiles = f"{n_tiles} tile{'' if n_tiles == 1 else 's'} in " if n_tiles else ""
        parts.append(f"image {tiles}{_time(timings['image_encode_ms'])}")
    elif timings["image_cached"]:
        parts.append("image cached")
    for label, key in (("prompt", "prompt"), ("answer", "predicted")):
        n, ms, rate = (timings[f"{key}_{unit}"] for unit in ("n", "ms", "per_second"))
        parts.append(f"{label} {n} tokens in {_time(ms)} ({rate:.{0 if rate >= 100 else 1}f}/s)")
    if (n_guessed := timings.get("draft_n")) is not None:
        parts.append(f"draft {timings['draft_n_accepted']} of {n_guessed} right")
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


class Waiting:
    """A line that says what is going on until the answer begins, if that takes a while."""

    def __init__(self, what: str) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=_err, transient=True)
        self._task = self._bar.add_task(what, total=None)
        self._lock = threading.Lock()
        self._is_shown = self._has_ended = False
        self._timer = threading.Timer(_WAIT_S, self._show)
        self._timer.daemon = True
        if _err.is_terminal:
            self._timer.start()

    def update(self, fraction: float | None, what: str) -> None:
        """What is going on; the fraction done, None if nobody knows."""
        self._bar.update(self._task, completed=fraction or 0.0, total=None if fraction is None else 1.0,
                         description=escape(_printable(what, _err)))  # fmt: skip

    def end(self) -> None:
        """Wipe it out. Idempotent."""
        self._timer.cancel()
        with self._lock:
            if self._is_shown and not self._has_ended:
                self._bar.stop()
            self._has_ended = True

    def _show(self) -> None:
        with self._lock:
            if not self._has_ended:
                self._is_shown = True
                self._bar.start()


@contextlib.contextmanager
def waiting(what: str) -> Iterator[Waiting]:
    """See Waiting. Nothing where stderr is no terminal.

    Args:
        what: is going on at first.
    """
    line = Waiting(what)
    try:
        yield line
    finally:
        line.end()


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
