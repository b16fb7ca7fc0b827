"""`pyvllama run`: one answer, or a simple chat."""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import pyvllama
from pyvllama.cli import ui
from pyvllama.cli.chat.thumbnail import PROTOCOLS
from pyvllama.cli.options import load_options
from pyvllama.cli.sampling import sampling_options
from pyvllama.errors import PromptError
from pyvllama.loading import DEFAULT_N_DRAFT, LOOKUP, MAX_N_DRAFT
from pyvllama.resolve import is_model_name, resolve

__all__ = ["run"]

Command = Callable[..., None]


def _draft_options(command: Command) -> Command:
    # llama.cpp's names, today's and the one that people know; it has none for prompt lookup alone.
    options = (
        click.option("-md", "--model-draft", "--spec-draft-model", "draft_model", metavar="FILE",
                     help="A small text GGUF of the same vocabulary guesses tokens ahead: the same answer, sooner "
                          "where it guesses well."),
        click.option("--draft-lookup", is_flag=True, help="Guess ahead from what the prompt and the answer repeat."),
        click.option("--draft-max", "--spec-draft-n-max", "n_draft", type=click.IntRange(1, MAX_N_DRAFT),
                     help=f"Tokens guessed at a time. Default: {DEFAULT_N_DRAFT}."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _draft(draft_model: str | None, draft_lookup: bool) -> Path | str | None:
    """What `load` calls it."""
    if draft_model is not None and draft_lookup:
        raise click.UsageError("--model-draft and --draft-lookup exclude one another")
    if draft_lookup:
        return LOOKUP
    return None if draft_model is None else Path(draft_model)


def _chat_options(command: Command) -> Command:
    thumbnails = click.option(
        "--thumbnails", type=click.Choice(["auto", *PROTOCOLS]), default="auto", show_default=True,
        help="How a chat shows the pictures.",
    )  # fmt: skip
    history = click.option("--history/--no-history", default=True, help="Keep what is typed for the next chat.")
    return thumbnails(history(command))


def split_arguments(arguments: tuple[str, ...]) -> tuple[str | None, str | None]:
    """(MODEL, PROMPT) from what stands on the command line.

    One argument alone is a model if it looks like one (a path that exists, a .gguf, a word with a slash and no blank,
    `ollama:...`, a name that `pyvllama list` shows), else a prompt.
    """
    if len(arguments) > 2:
        raise click.UsageError(f"at most MODEL and PROMPT are expected, got {len(arguments)}; quote the prompt")
    if len(arguments) == 2:
        return arguments
    if not arguments:
        return None, None
    word = arguments[0]
    looks_like_path = "/" in word and not any(c.isspace() for c in word)
    is_model = word.endswith(".gguf") or looks_like_path or _exists(word) or is_model_name(word)
    return (word, None) if is_model else (None, word)


def _exists(word: str) -> bool:
    try:
        return bool(word) and Path(word).exists()
    except OSError:  # longer than a file name can be: a prompt
        return False


@click.command()
@click.argument("arguments", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option("-i", "--image", "images", multiple=True, metavar="PATH|URL", help="A picture; repeatable.")
@click.option("-s", "--system", metavar="TEXT", help="System prompt.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout: text, usage, timings.")
@click.option("--image-cache", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Keep encoded pictures in files there, for the next time.")  # fmt: skip
@click.option("--context-shift", is_flag=True, help="When the context is full, leave the oldest turns away.")
@click.option("--timings/--no-timings", default=True, help="The line below the answer, on stderr.")
@load_options()
@_draft_options
@_chat_options
@sampling_options
def run(
    arguments: tuple[str, ...],
    images: tuple[str, ...],
    system: str | None,
    as_json: bool,
    image_cache: Path | None,
    context_shift: bool,
    timings: bool,
    mmproj: str | None,
    text_type: str | None,
    ctx_size: int,
    kv_type: str,
    cross_kv_type: str,
    threads: int | None,
    gpu_layers: int,
    mmproj_offload: bool,
    repack: bool,
    draft_model: str | None,
    draft_lookup: bool,
    n_draft: int | None,
    thumbnails: str,
    history: bool,
    **sampling: Any,
) -> None:
    """Answer a question about pictures, or chat.

    MODEL is a text GGUF (its mmproj-*.gguf beside it), or a directory with the pair; user/repo[:QUANT] on the Hub; a
    checkpoint's directory or Hub id (converted once, see -q), or ollama:NAME (imported once); or a name that `pyvllama
    list` shows. Without one, the bundled pocket model answers. Without PROMPT a chat begins; a prompt may also come
    through a pipe.

    \b
    pyvllama run models/Llama-3.2-11B-Vision-Instruct-Q4_K_M.gguf -i photo.jpg "What is this?"
    pyvllama run models -i a.jpg -i b.jpg --temperature 0 "What differs?"
    pyvllama run models                                  chat; /image PATH attaches a picture
    pyvllama run somebody/Some-Vision-GGUF:Q8_0 -i photo.jpg "What is this?"
    pyvllama run meta-llama/Llama-3.2-11B-Vision-Instruct -q q5_k_m
    pyvllama run ollama:llama3.2-vision -i photo.jpg "What is this?"
    echo "Describe it." | pyvllama run -i shapes.png --json
    """  # noqa: D301  click wants the character itself
    model, prompt = split_arguments(arguments)
    draft = _draft(draft_model, draft_lookup)
    if n_draft is not None and draft is None:
        raise click.UsageError("--draft-max needs --model-draft or --draft-lookup")
    if prompt is None and (as_json or sys.stdin is None or not sys.stdin.isatty()):
        prompt = sys.stdin.read().strip() if sys.stdin is not None else ""
    if prompt is not None and not prompt.strip() and not images:
        raise PromptError("the prompt is empty: give a question as an argument or through a pipe")
    if model is None:
        ui.note("No model named: using the bundled pocket model (coloured shapes and short texts only).")
    with ui.bytes_progress() as converting:
        pair = resolve(model, mmproj, text_type=text_type, progress=converting, note=ui.note)
    with ui.fraction_progress("Loading") as progress:
        llm = pyvllama.load(
            pair.text,
            pair.mmproj,
            n_ctx=ctx_size,
            kv_type=kv_type,
            cross_kv_type=cross_kv_type,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            mmproj_offload=mmproj_offload,
            repack=repack,
            image_cache_dir=image_cache,
            draft=draft,
            n_draft=n_draft,
            progress=progress,
        )
    options = {k: v for k, v in sampling.items() if v not in (None, ())}
    with llm:
        if llm.model.is_graft:
            ui.note("The mmproj was made with another text model of the same shapes: its eyes are grafted on.")
        if prompt is None:
            from pyvllama.cli.chat.loop import chat_loop  # noqa: PLC0415  takes a while; one answer needs none of it

            chat_loop(
                llm,
                system=system,
                images=images,
                options=options,
                context_shift=context_shift,
                show_timings=timings,
                thumbnails=thumbnails,
                keep_history=history,
            )
            return
        parts = [{"type": "image_url", "image_url": {"url": image}} for image in images]
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": prompt}]})
        with ui.waiting("Reading") as waiting:
            looking = functools.partial(waiting.update, what="Looking at the picture")
            stream = llm.chat(messages, stream=True, image_progress=looking, context_shift=context_shift, **options)
            if as_json:
                _print_json(stream)
                return
            last = _print_stream(stream, waiting)
        if timings:
            ui.note(ui.format_timings(last["timings"]))


def _print_stream(stream: Any, waiting: ui.Waiting) -> dict[str, Any]:
    """Write an answer as it comes; returns the last chunk."""
    chunk: dict[str, Any] = {}
    for chunk in stream:
        if delta := chunk["choices"][0]["delta"].get("content"):
            waiting.end()
            ui.write_answer(delta)
    ui.write_answer("\n")
    return chunk


def _print_json(stream: Any) -> None:
    chunks = list(stream)
    last = chunks[-1]
    click.echo(
        json.dumps(
            {
                "text": "".join(c["choices"][0]["delta"].get("content", "") for c in chunks),
                "finish_reason": last["choices"][0]["finish_reason"],
                "model": last["model"],
                "usage": last["usage"],
                "timings": last["timings"],
            },
            ensure_ascii=False,
        )
    )
