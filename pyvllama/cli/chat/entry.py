"""What a line means that was typed: a command, or something to say; and whether it is finished."""

import re
from dataclasses import dataclass

__all__ = ["Entry", "is_complete", "read_entry"]

_COMMAND = re.compile(r"(/[\w?-]*|\\image)(?=\s|$)\s*")  # a path has another slash or a dot
_QUOTES = '"""'


@dataclass(frozen=True)
class Entry:
    """A line, or several that belong together.

    Attributes:
        command: with its slash; None if this is for the model.
        text: the command's argument, or what is for the model.
        is_verbatim: it was in triple quotes: what looks like a picture's path in it is text.
    """

    command: str | None
    text: str
    is_verbatim: bool = False


def is_complete(line: str) -> bool:
    """Whether Enter ends it: no triple quotes are open, and the last line does not end in a backslash."""
    body = line[_command_length(line) :].strip()
    if body.startswith(_QUOTES):
        return len(body) >= 2 * len(_QUOTES) and body.endswith(_QUOTES)
    return not line.endswith("\\")


def read_entry(line: str) -> Entry:
    """Take a finished line apart."""
    n = _command_length(line)
    command = line[:n].strip().replace("\\", "/") or None
    body = line[n:].strip()
    if body.startswith(_QUOTES):
        inner = body.removeprefix(_QUOTES).removesuffix(_QUOTES)
        return Entry(command, inner.removeprefix("\n").removesuffix("\n"), is_verbatim=True)
    return Entry(command, body.replace("\\\n", "\n"))


def _command_length(line: str) -> int:
    command = _COMMAND.match(line)
    return command.end() if command else 0
