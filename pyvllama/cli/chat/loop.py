"""The loop of `pyvllama run`'s chat: read a line, do what it says."""

from typing import Any

from pyvllama.cli import ui
from pyvllama.cli.chat.attachments import find_pictures
from pyvllama.cli.chat.chat import Chat, count
from pyvllama.cli.chat.commands import COMMANDS, find_command
from pyvllama.cli.chat.completion import ChatCompleter
from pyvllama.cli.chat.conversation import Conversation
from pyvllama.cli.chat.entry import read_entry
from pyvllama.cli.chat.history import open_history
from pyvllama.cli.chat.input import Input
from pyvllama.cli.chat.picture import Picture
from pyvllama.cli.chat.thumbnail import detect
from pyvllama.errors import ConfigError, ImageError, VllamaError
from pyvllama.llm import LLM

__all__ = ["chat_loop"]


def chat_loop(
    llm: LLM,
    *,
    system: str | None,
    images: tuple[str, ...],
    options: dict[str, Any],
    context_shift: bool,
    show_timings: bool,
    thumbnails: str,
    keep_history: bool,
) -> None:
    """Read messages and answer them until the user leaves.

    Args:
        llm: the model.
        system: the system prompt, or None.
        images: attached to the first message.
        options: sampling options for `LLM.chat`.
        context_shift: leave the oldest turns away when the context is full.
        show_timings: a line below each answer.
        thumbnails: `auto`, or one of `thumbnail.PROTOCOLS`.
        keep_history: what is typed is there again in the next chat.

    Raises:
        ImageError: one of the images cannot be read.
    """
    pictures = [Picture.read(image) for image in images]
    how = (detect() if ui.is_terminal() else "none") if thumbnails == "auto" else thumbnails
    chat = Chat(llm, Conversation(system, options=dict(options)), show_timings, how, context_shift)
    completer = ChatCompleter({c.name: (c.help, c.completes) for c in COMMANDS})
    lines = Input(open_history(keep=keep_history), completer)
    ui.note(f"{llm.model.name} · {llm.n_ctx} positions · /help for commands, Ctrl-D to leave")
    for picture in pictures:
        chat.attach(picture)
    left: str | None = ""
    while left is not None:
        left = _step(chat, lines, left)


def _step(chat: Chat, lines: Input, left: str) -> str | None:
    """Read a line and do what it says; what is to stand at the next prompt, None at the end."""
    try:
        return _take(chat, lines.read(text=left, hint=_hint(chat)))
    except KeyboardInterrupt:  # at the prompt, or in the middle of a command
        return ""
    except EOFError:
        return None


def _hint(chat: Chat) -> str:
    if n := len(chat.conversation.pending):
        return f"{count(n, 'picture')} attached: ask something"
    return "" if chat.conversation.turns else "Say something, or drag a picture here"


def _take(chat: Chat, line: str) -> str:
    """Do what a line says; what is to stand at the next prompt, because it could not be taken."""
    entry = read_entry(line)
    try:
        if entry.command is not None:
            command = find_command(entry.command)
            if command is None:
                raise ConfigError(f"there is no command {entry.command}: /help shows them all")
            command.run(chat, entry.text)
            return ""
        with ui.waiting("Reading the picture"):
            text, pictures = (entry.text, []) if entry.is_verbatim else find_pictures(entry.text)
    except ImageError as e:
        ui.error(str(e))
        return "" if entry.command else line
    except VllamaError as e:
        ui.error(str(e))
        return ""
    for picture in pictures:
        chat.attach(picture)
    if text or (chat.conversation.pending and not pictures):
        chat.say(text)
    return ""
