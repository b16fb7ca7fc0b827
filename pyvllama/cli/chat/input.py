"""Reading what the user types: keys, lines that belong together, history, completion."""

import sys

from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.completion import Completer
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import Condition, has_focus, is_searching
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import History
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output
from prompt_toolkit.styles import Style

from pyvllama.cli.chat.entry import is_complete

__all__ = ["Input"]

_PROMPT = ">>> "
_CONTINUATION = "... "
_STYLE = Style.from_dict({"placeholder": "#808080", "continuation": "#808080"})


class Input:
    """A prompt.

    Args:
        history: earlier lines, for the arrow keys and Ctrl-R.
        completer: what the Tab key offers.
    """

    def __init__(self, history: History, completer: Completer) -> None:
        # What is answered goes to stdout; if that is a pipe, the prompt must not.
        output = None if sys.stdout.isatty() else create_output(stdout=sys.stderr)
        self._session: PromptSession[str] = PromptSession(
            history=history,
            completer=completer,
            complete_while_typing=Condition(_is_typing_a_command),
            key_bindings=_keys(),
            multiline=True,
            enable_suspend=True,
            prompt_continuation=_continuation,
            style=_STYLE,
            output=output,
        )

    def read(self, *, text: str = "", hint: str = "") -> str:
        """One entry.

        Args:
            text: what stands there already, to be changed.
            hint: shown while nothing is typed.

        Raises:
            EOFError: Ctrl-D. KeyboardInterrupt: Ctrl-C.
        """
        placeholder = FormattedText([("class:placeholder", hint)]) if hint else ""
        return self._session.prompt(_PROMPT, default=text, placeholder=placeholder)


def _continuation(width: int, line_number: int, wrap_count: int) -> FormattedText:
    """What stands before a line that is not the first; before the rest of a line that is too wide, blanks."""
    return FormattedText([("class:continuation", " " * len(_CONTINUATION) if wrap_count else _CONTINUATION)])


def _is_typing_a_command() -> bool:
    text = get_app().current_buffer.text
    return text.startswith("/") and not any(c.isspace() for c in text)


def _keys() -> KeyBindings:
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER) & ~is_searching

    @keys.add("enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None  # what was chosen from the menu stays, for its argument
        elif is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add("escape", "enter", filter=typing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
