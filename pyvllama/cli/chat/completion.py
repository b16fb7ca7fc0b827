"""What the Tab key offers: commands, their arguments, paths."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, WordCompleter
from prompt_toolkit.document import Document

__all__ = ["ChatCompleter", "words"]

_LAST_WORD = re.compile(r"(\\.|[^\s\\])*$")
_PATH_BEGINS = re.compile(r"~?/|\.\.?/")
_paths = PathCompleter(expanduser=True)


def words(texts: Sequence[str]) -> Completer:
    """One of these words."""
    return WordCompleter(list(texts))


class ChatCompleter(Completer):
    """Completes commands and their arguments, and in a sentence what looks like a path.

    Args:
        commands: name -> (what it is for, what completes its argument: a completer, `path`, or None).
    """

    def __init__(self, commands: Mapping[str, tuple[str, Completer | str | None]]) -> None:
        self._commands = commands

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Of what stands before the cursor; while typing, of commands alone."""
        text = document.text_before_cursor
        command, blank, argument = text.partition(" ")
        if not blank and command.startswith("/"):
            for name, (meta, _) in self._commands.items():
                if name.startswith(command):
                    yield Completion(name, start_position=-len(command), display_meta=meta)
        if not complete_event.completion_requested:
            return
        _, completer = self._commands.get(command.replace("\\", "/"), ("", None)) if blank else ("", None)
        if completer == "path":
            yield from _paths.get_completions(Document(argument), complete_event)
        elif isinstance(completer, Completer):
            yield from completer.get_completions(Document(argument), complete_event)
        else:
            yield from _in_a_sentence(text, complete_event)


def _in_a_sentence(text: str, event: CompleteEvent) -> Iterable[Completion]:
    match = _LAST_WORD.search(text)
    word = match[0] if match else ""
    if _PATH_BEGINS.match(word):
        typed = Document(re.sub(r"\\(.)", r"\1", word))
        escape: Callable[[str], str] = lambda s: re.sub(r"([\s\\'\"])", r"\\\1", s)  # noqa: E731
        for found in _paths.get_completions(typed, event):
            yield Completion(escape(found.text), found.start_position, display=found.display)
