"""`pyvllama caption`: the same question about every picture of a folder, one JSON line a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from pyvllama.cli import ui
from pyvllama.cli.options import gpu_options, threads_option
from pyvllama.errors import ConfigError, ModelNotFound, VllamaError
from pyvllama.loading import DEFAULT_N_CTX

__all__ = ["caption"]

EXIT_SOME_FAILED = 1
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"})


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path, dir_okay=False), help="JSON lines.")
@click.option("-m", "--model", help="As MODEL of `pyvllama run`. Default: the bundled pocket model.")
@click.option("--mmproj", type=click.Path(), help="The mmproj file, if it is not beside the text file.")
@click.option("-p", "--prompt", default="Describe this image.", show_default=True, help="What to ask about each.")
@click.option("--system", help="A system prompt.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=256, show_default=True, help="Longest answer.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--parallel", type=click.IntRange(1, 64), default=4, show_default=True, help="Answers at a time.")
@click.option("-c", "--ctx-size", type=click.IntRange(1, 2**31 - 1), default=DEFAULT_N_CTX, show_default=True,
              help="Positions of the context, for all of them together.")  # fmt: skip
@threads_option("physical cores")
@gpu_options
def caption(
    folder: Path,
    output: Path,
    model: str | None,
    mmproj: str | None,
    prompt: str,
    system: str | None,
    max_tokens: int,
    temperature: float,
    parallel: int,
    ctx_size: int,
    threads: int | None,
    gpu_layers: int,
    mmproj_offload: bool,
) -> None:
    """Describe every picture below FOLDER, several at a time.

    Each picture becomes a line of the output file as soon as its answer is there: {"file", "caption", ...}, or {"file",
    "error"}. Run again, only pictures that have no caption yet are done: after an interruption it goes on.

    \b
    pyvllama caption photos -o captions.jsonl -m models
    pyvllama caption photos -o alt.jsonl -m models -p "Write one sentence of alt text." --parallel 8
    """  # noqa: D301  click wants the character itself
    import pyvllama  # noqa: PLC0415  a name of the package itself

    if not folder.is_dir():
        raise ModelNotFound(f"{folder}: no such directory")
    pictures = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    done = _captioned(output)
    waiting = [p for p in pictures if p.relative_to(folder).as_posix() not in done]
    if not waiting:
        ui.note(f"{len(pictures)} pictures in {folder}, none without a caption.")
        return
    _append(output)
    beginning = [{"role": "system", "content": system}] if system else []

    def conversations() -> Iterator[list[dict[str, Any]]]:
        for path in waiting:
            parts = [{"type": "image", "image": path}, {"type": "text", "text": prompt}]
            yield [*beginning, {"role": "user", "content": parts}]

    n_failed = 0
    with (
        pyvllama.load(
            model,
            mmproj,
            n_ctx=ctx_size,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            mmproj_offload=mmproj_offload,
            image_cache_bytes=0,
        ) as llm,
        ui.count_progress("Describing", len(waiting)) as advance,
    ):
        answers = llm.chat_many(conversations(), n_parallel=parallel, max_tokens=max_tokens, temperature=temperature)
        for i, answer in answers:
            name = waiting[i].relative_to(folder).as_posix()
            n_failed += isinstance(answer, VllamaError)
            _append(output, _json(_line(name, answer)) + "\n")
            advance(name)
    ui.note(f"{len(waiting) - n_failed} captions in {output}" + (f", {n_failed} failed" if n_failed else ""))
    if n_failed:
        raise click.exceptions.Exit(EXIT_SOME_FAILED)


def _append(output: Path, line: str = "") -> None:
    """Write at the end of the file, at once. Of a line that the disk has no room for the next run cuts off the rest."""
    data = line.encode()
    try:
        with output.open("ab", buffering=0) as f:
            while data:
                data = data[f.write(data) :]
    except OSError as e:
        raise ConfigError(f"{output} cannot be written: {e.strerror or e}; run again, it goes on from there") from e


def _line(name: str, answer: dict[str, Any] | VllamaError) -> dict[str, Any]:
    if isinstance(answer, VllamaError):
        return {"file": name, "error": str(answer)}
    choice = answer["choices"][0]
    return {
        "file": name,
        "caption": choice["message"]["content"],
        "finish_reason": choice["finish_reason"],
        "model": answer["model"],
        "timings": answer["timings"],
    }


def _json(value: dict[str, Any]) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is no UTF-8
        text = json.dumps(value)
    return text


def _captioned(output: Path) -> set[str]:
    """Names that have a caption in the file; a half-written last line is cut off."""
    if not output.exists():
        return set()
    data = output.read_bytes()
    if data and not data.endswith(b"\n"):
        data = data[: data.rfind(b"\n") + 1]
        with output.open("r+b") as f:
            f.truncate(len(data))
    entries = [_entry(line, f"{output}, line {number}") for number, line in enumerate(data.splitlines(), 1)]
    return {entry["file"] for entry in entries if "caption" in entry}


def _entry(line: bytes, where: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
        entry["file"]
    except (ValueError, TypeError, KeyError) as e:
        raise ConfigError(f"{where}: this is no line of captions ({e}); choose another file, or remove the line") from e
    else:
        return dict(entry)
