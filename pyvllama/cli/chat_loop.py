"""The interactive chat of `pyvllama run`."""

import sys
from typing import Any

from prompt_toolkit import PromptSession

from pyvllama.cli import ui
from pyvllama.errors import VllamaError
from pyvllama.image.source import load_image
from pyvllama.llm import LLM

__all__ = ["chat_loop"]

_HELP = """\
/image PATH|URL   attach a picture to your next message
/clear            forget the conversation
/help             this list
/exit             leave (also Ctrl-D). Ctrl-C stops an answer."""


def chat_loop(
    llm: LLM, *, system: str | None, images: tuple[str, ...], options: dict[str, Any], show_timings: bool
) -> None:
    """Read messages and answer them until the user leaves.

    Args:
        llm: the model.
        system: the system prompt, or None.
        images: attached to the first message.
        options: sampling options for `LLM.chat`.
        show_timings: a line below each answer.
    """
    session: PromptSession[str] = PromptSession()
    beginning: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages = list(beginning)
    pending = [_image_part(image) for image in images]
    ui.note(f"{llm.model.name} · {llm.n_ctx} positions · /help for commands, Ctrl-D to leave")
    while True:
        try:
            text = session.prompt(">>> ").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        command, _, argument = text.partition(" ")
        if command in ("/exit", "/bye", "/quit"):
            return
        if command in ("/image", "\\image"):
            _attach(pending, argument.strip())
        elif command == "/clear":
            messages, pending = list(beginning), []
            ui.note("Forgotten.")
        elif command.startswith("/"):
            ui.note(_HELP if command == "/help" else f"There is no {command}.\n{_HELP}")
        elif text or pending:
            messages.append({"role": "user", "content": [*pending, {"type": "text", "text": text}]})
            if (answer := _answer(llm, messages, options, show_timings)) is None:
                messages.pop()  # the pictures stay attached
            else:
                messages.append({"role": "assistant", "content": answer})
                pending = []


def _image_part(source: str) -> dict[str, Any]:
    # read now: an image that changes or vanishes later must not change the conversation
    return {"type": "image", "image": load_image(source)}


def _attach(pending: list[dict[str, Any]], source: str) -> None:
    try:
        part = _image_part(source)
    except VllamaError as e:
        ui.error(str(e))
        return
    pending.append(part)
    ui.note(f"Attached {source} ({part['image'].width} x {part['image'].height}).")


def _answer(llm: LLM, messages: list[dict[str, Any]], options: dict[str, Any], show_timings: bool) -> str | None:
    """The answer as far as it came, or None if there was none."""
    text = ""
    try:
        with ui.fraction_progress("Looking at the picture") as progress:
            stream = llm.chat(messages, stream=True, image_progress=progress, **options)
        chunk: dict[str, Any] = {}
        for chunk in stream:
            delta = chunk["choices"][0]["delta"].get("content", "")
            text += delta
            ui.write_answer(delta)
        ui.write_answer("\n")
        if dropped := chunk.get("dropped_turns"):
            ui.note(ui.format_dropped(dropped))
        if show_timings:
            ui.note(ui.format_timings(chunk["timings"]))
    except KeyboardInterrupt:
        sys.stdout.write("\n")
        ui.note("Stopped.")
    except VllamaError as e:
        ui.error(str(e))
    return text or None
