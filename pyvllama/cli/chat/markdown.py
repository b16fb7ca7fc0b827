"""Markdown that stays as it was written, in bold and colour.

The characters are never changed, so what is copied from the screen is what the model wrote, and nothing is ever drawn
twice. Text is held back only while it is not clear what it begins: a `*` may become `**`.
"""

import re

__all__ = ["MarkdownStyler"]

_BEGINNING = re.compile(r" {0,3}(#{0,6}|`{0,3}|~{0,3})")  # may still become a heading or a fence
_HEADING = re.compile(r" {0,3}#{1,6}\s")
_FENCE = re.compile(r" {0,3}(```|~~~)")


class MarkdownStyler:
    """Text in pieces in, text in pieces with styles out. The styles: heading, strong, code, or None."""

    def __init__(self) -> None:
        self._held = ""  # not styled yet
        self._line_begins = True
        self._fence = ""  # what ends the block of code that we are in
        self._line_style: str | None = None  # of a heading, or of a line in a block of code
        self._strong = False
        self._code = False

    def feed(self, text: str) -> list[tuple[str, str | None]]:
        """Take a piece; what can be shown now, each with its style."""
        self._held += text
        return self._styled(is_last=False)

    def finish(self) -> list[tuple[str, str | None]]:
        """What was held back."""
        return self._styled(is_last=True)

    def _styled(self, *, is_last: bool) -> list[tuple[str, str | None]]:
        result: list[tuple[str, str | None]] = []
        while self._held:
            if self._line_begins:
                if not is_last and _BEGINNING.fullmatch(self._held):
                    break
                self._begin_line()
            n, style = self._next(is_last)
            if not n:
                break
            piece, self._held = self._held[:n], self._held[n:]
            if piece.endswith("\n"):
                self._line_begins, self._line_style = True, None
                self._strong = self._code = False  # what is not closed ends here
            if result and result[-1][1] == style:
                result[-1] = (result[-1][0] + piece, style)
            else:
                result.append((piece, style))
        return result

    def _begin_line(self) -> None:
        self._line_begins = False
        fence = _FENCE.match(self._held)
        if self._fence:
            self._line_style = "code"
            if fence and fence[1] == self._fence:
                self._fence = ""
        elif fence:
            self._fence, self._line_style = fence[1], "code"
        elif _HEADING.match(self._held):
            self._line_style = "heading"

    def _next(self, is_last: bool) -> tuple[int, str | None]:
        """How many characters can be shown now, and their style; 0 if more must come first."""
        held = self._held
        if held[0] == "\n":
            return 1, None
        if self._line_style:
            end = held.find("\n")
            return (len(held) if end < 0 else end), self._line_style
        if held[0] == "`":
            self._code = not self._code
            return 1, "code"
        if self._code:
            return len(re.match(r"[^`\n]+", held)[0]), "code"  # type: ignore[index]
        if held[0] == "*":
            if held in ("*", "**") and not is_last:
                return 0, None
            if held.startswith("**"):
                if not self._strong and not held[2:3].strip("* \n"):
                    return 2, None  # a power of two, or a rule
                self._strong = not self._strong
                return 2, "strong"
            return 1, self._inline()
        return len(re.match(r"[^`*\n]+", held)[0]), self._inline()  # type: ignore[index]

    def _inline(self) -> str | None:
        return "strong" if self._strong else None
