"""The commands of a chat, a table."""

from collections.abc import Callable
from dataclasses import dataclass

from prompt_toolkit.completion import Completer

from pyvllama.cli import ui
from pyvllama.cli.chat.attachments import leading_pictures, typed_path
from pyvllama.cli.chat.chat import Chat, count
from pyvllama.cli.chat.clipboard import clipboard_pictures
from pyvllama.cli.chat.completion import words
from pyvllama.cli.chat.conversation import Conversation
from pyvllama.cli.chat.transcript import load_transcript, save_transcript
from pyvllama.cli.sampling import SAMPLING, check_sampling, read_sampling, shown_sampling
from pyvllama.errors import ConfigError

__all__ = ["COMMANDS", "Command", "find_command"]


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        name: with its slash.
        arguments: for `/help`.
        help: one line.
        run: does it, given the chat and what stands behind the name. Raises VllamaError with what is wrong, EOFError to
            end the chat.
        aliases: other names.
        completes: what completes the argument: a completer, or `path`.
    """

    name: str
    arguments: str
    help: str
    run: Callable[[Chat, str], None]
    aliases: tuple[str, ...] = ()
    completes: Completer | str | None = None


def find_command(name: str) -> Command | None:
    """The command of a name or an alias."""
    return next((c for c in COMMANDS if name in (c.name, *c.aliases)), None)


def _image(chat: Chat, argument: str) -> None:
    if not argument:
        raise ConfigError("/image needs a path or an address; without one, see /paste and /images")
    with ui.waiting("Reading the picture"):
        pictures, question = leading_pictures(argument)
    for picture in pictures:
        chat.attach(picture)
    if question:
        chat.say(question)


def _paste(chat: Chat, argument: str) -> None:
    for picture in clipboard_pictures():
        chat.attach(picture)
    if argument:
        chat.say(argument)


def _images(chat: Chat, argument: str) -> None:
    pending = chat.conversation.pending
    if argument == "drop":
        n, pending[:] = len(pending), []
        ui.note(f"{count(n, 'picture')} dropped.")
        return
    if argument:
        raise ConfigError("/images lists the pictures, /images drop removes those that are not sent yet")
    rows = [(f"turn {i}", p) for i, turn in enumerate(chat.conversation.turns, 1) for p in turn.question.pictures]
    rows += [("attached", p) for p in pending]
    if not rows:
        ui.note("There are no pictures. Attach one with /image PATH, or drag it here.")
    for where, picture in rows:
        ui.note(f"{where:9} {picture.name} ({chat.described(picture)}) {picture.digest[:12]}")


def _system(chat: Chat, argument: str) -> None:
    if not argument:
        ui.note(chat.conversation.system or "There is no system prompt.")
        return
    chat.conversation.system = None if argument in ("none", '""', "''") else argument
    ui.note("The system prompt is set." if chat.conversation.system else "There is no system prompt now.")


def _set(chat: Chat, argument: str) -> None:
    options = chat.conversation.options
    if not argument:
        ui.note(shown_sampling(options, chat.llm.model.sampling_defaults))
        return
    name, value = read_sampling(argument)
    if value is None:
        options.pop(name, None)
    else:
        options[name] = value
    ui.note(f"{name} is {'as the model has it' if value is None else value} now.")


def _timings(chat: Chat, argument: str) -> None:
    choices = {"": not chat.show_timings, "on": True, "off": False}
    if argument not in choices:
        raise ConfigError(f"/timings takes on or off, not {argument}")
    chat.show_timings = choices[argument]
    ui.note(f"Timings are {'on' if chat.show_timings else 'off'}.")


def _retry(chat: Chat, argument: str) -> None:
    turns = chat.conversation.turns
    if not turns:
        raise ConfigError("there is no question yet that could be asked again")
    old = turns.pop()
    kept = False
    try:
        kept = chat.ask(old.question)
    finally:
        if not kept:
            turns.append(old)


def _undo(chat: Chat, argument: str) -> None:
    if not chat.conversation.turns:
        raise ConfigError("there is nothing to take back")
    question = chat.conversation.turns.pop().question
    text = " ".join(question.text.split())
    parts = [f"{text[:60]}…" if len(text) > 60 else text] if text else []
    if question.pictures:
        parts.append(count(len(question.pictures), "picture"))
    ui.note(f"Taken back: {' and '.join(parts)}")


def _clear(chat: Chat, argument: str) -> None:
    chat.conversation.turns.clear()
    chat.conversation.pending.clear()
    ui.note("Forgotten.")


def _save(chat: Chat, argument: str) -> None:
    if not argument:
        raise ConfigError("/save needs the name of a file, such as chat.json")
    path = typed_path(argument)
    save_transcript(chat.conversation, path, chat.llm.model.name)
    ui.note(f"Saved {_contents(chat.conversation)} to {path}.")


def _load(chat: Chat, argument: str) -> None:
    if not argument:
        raise ConfigError("/load needs the name of a file that /save wrote")
    conversation, model = load_transcript(typed_path(argument), check_sampling)
    chat.conversation = conversation
    other = f" It was had with {model}." if model and model != chat.llm.model.name else ""
    ui.note(f"Loaded {_contents(conversation)}.{other}")
    if conversation.turns:
        ui.note(f">>> {conversation.turns[-1].question.text}\n{conversation.turns[-1].answer}")


def _help(chat: Chat, argument: str) -> None:
    width = max(len(f"{c.name} {c.arguments}") for c in COMMANDS)
    lines = [f"{f'{c.name} {c.arguments}':{width}}  {c.help}" for c in COMMANDS]
    ui.note("\n".join([*lines, "", *_KEYS]))


def _exit(chat: Chat, argument: str) -> None:
    raise EOFError


def _contents(conversation: Conversation) -> str:
    n_pictures = len({p.digest for p in (*conversation.pictures(), *conversation.pending)})
    return f"{count(len(conversation.turns), 'turn')}, {count(n_pictures, 'picture')}"


COMMANDS = (
    Command("/image", "PATH|URL [TEXT]", "attach a picture; with TEXT, ask at once", _image, completes="path"),
    Command("/paste", "[TEXT]", "attach the picture in the clipboard", _paste),
    Command("/images", "[drop]", "list the pictures; drop those not sent yet", _images, completes=words(["drop"])),
    Command("/system", "[TEXT|none]", "show, set or remove the system prompt", _system),
    Command("/set", "[NAME VALUE]", "show or set sampling options; VALUE may be default", _set,
            completes=words(list(SAMPLING))),
    Command("/timings", "[on|off]", "the line below each answer", _timings, completes=words(["on", "off"])),
    Command("/retry", "", "ask the last question again", _retry),
    Command("/undo", "", "take back the last question and its answer", _undo),
    Command("/clear", "", "forget the conversation, keep the system prompt", _clear),
    Command("/save", "FILE", "write the conversation, pictures included, as JSON", _save, completes="path"),
    Command("/load", "FILE", "go on with a conversation that was saved", _load, completes="path"),
    Command("/help", "", "this list", _help, ("/?",)),
    Command("/exit", "", "leave", _exit, ("/bye", "/quit")),
)  # fmt: skip
_KEYS = (
    "Drag a picture here, or write its path or address: it is attached.",
    'Alt-Enter or \\ at the end of a line begins another; """ encloses text that is taken as it is.',
    "Tab completes, arrows and Ctrl-R find earlier lines. Ctrl-C stops an answer, Ctrl-D leaves.",
)
