"""Small pictures in the terminal, in the three ways that terminals know.

Terminals cannot be asked without reading their answer from the user's keyboard, so the environment tells which way one
knows. Where nothing is certain there is none.
"""

import base64
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

from pyvllama.cli.chat.sixel import sixel

__all__ = ["PROTOCOLS", "detect", "thumbnail"]

PROTOCOLS = ("kitty", "iterm", "sixel", "none")

_MAX_COLUMNS, _MAX_ROWS = 32, 10
_CELL = (8, 16)  # pixels that a character takes, roughly: terminals scale to the cells they are told (sixel: as it is)
_CHUNK = 4096  # bytes of base64 that kitty takes at once


@dataclass(frozen=True)
class _Rule:
    """An environment variable that says what a terminal knows."""

    variable: str
    beginnings: tuple[str, ...]  # of its value; an empty one: any value
    protocol: str


# The first that fits counts. A multiplexer draws its own screen and would show nothing, or garbage.
_RULES = (
    _Rule("TMUX", ("",), "none"),
    _Rule("STY", ("",), "none"),
    _Rule("ZELLIJ", ("",), "none"),
    _Rule("TERM", ("tmux", "screen", "dumb", "linux"), "none"),
    _Rule("KITTY_WINDOW_ID", ("",), "kitty"),
    _Rule("GHOSTTY_RESOURCES_DIR", ("",), "kitty"),
    _Rule("TERM", ("xterm-kitty", "xterm-ghostty"), "kitty"),
    _Rule("TERM_PROGRAM", ("ghostty",), "kitty"),
    _Rule("TERM_PROGRAM", ("iTerm", "WezTerm", "mintty", "rio"), "iterm"),
    _Rule("LC_TERMINAL", ("iTerm2",), "iterm"),  # reaches the other side of an ssh connection
    _Rule("TERM", ("foot", "mlterm", "contour", "yaft", "xterm-sixel"), "sixel"),
)


def detect(environment: Mapping[str, str] = os.environ) -> str:
    """Which of PROTOCOLS the terminal knows, as far as the environment tells."""
    for rule in _RULES:
        value = environment.get(rule.variable, "")
        if value and value.startswith(rule.beginnings):
            return rule.protocol
    return "none"


def thumbnail(image: Image.Image, protocol: str, columns: int) -> str:
    """What a terminal is sent to show a small copy of a picture; the cursor stands below it then.

    Args:
        image: RGB.
        protocol: one of PROTOCOLS; nothing comes of `none`.
        columns: the terminal's width.
    """
    if protocol == "none":
        return ""
    width, height = _size_in_cells(image, columns)
    small = image.copy()
    small.thumbnail(
        (width * _CELL[0] * 2, height * _CELL[1] * 2) if protocol != "sixel" else (width * _CELL[0], height * _CELL[1])
    )  # fmt: skip  (twice: screens of high resolution)
    return {"kitty": _kitty, "iterm": _iterm, "sixel": _sixel}[protocol](small, width, height) + "\n"


def _size_in_cells(image: Image.Image, columns: int) -> tuple[int, int]:
    """Columns and rows of a picture that keeps its shape."""
    scale = min(min(_MAX_COLUMNS, columns - 1) * _CELL[0] / image.width, _MAX_ROWS * _CELL[1] / image.height)
    return max(1, round(image.width * scale / _CELL[0])), max(1, round(image.height * scale / _CELL[1]))


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _kitty(image: Image.Image, width: int, height: int) -> str:
    """Kitty's graphics protocol: transmit a PNG and display it (a=T, f=100), answer nothing (q=2)."""
    data = base64.b64encode(_png(image)).decode()
    chunks = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
    keys = [f"a=T,f=100,q=2,c={width},r={height},", *[""] * (len(chunks) - 1)]
    more = [*[1] * (len(chunks) - 1), 0]
    return "".join(f"\x1b_G{k}m={m};{c}\x1b\\" for k, m, c in zip(keys, more, chunks, strict=True))


def _iterm(image: Image.Image, width: int, height: int) -> str:
    """iTerm2's inline images protocol, with sizes in cells."""
    data = _png(image)
    size = f"size={len(data)};width={width};height={height};preserveAspectRatio=1"
    return f"\x1b]1337;File=inline=1;{size}:{base64.b64encode(data).decode()}\x07"


def _sixel(image: Image.Image, width: int, height: int) -> str:
    return sixel(image)
