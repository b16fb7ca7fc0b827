"""A picture as sixels: six rows of pixels a line, one character a column, one pass a colour (DEC VT340)."""

import itertools

from PIL import Image

__all__ = ["sixel"]

_N_COLOURS = 64


def sixel(image: Image.Image) -> str:
    """A small RGB picture as an escape sequence."""
    indexed = image.quantize(_N_COLOURS)
    palette = indexed.getpalette() or []
    pixels, (width, height) = indexed.tobytes(), indexed.size
    colours = sorted(set(pixels))
    levels = {c: [round(v * 100 / 255) for v in palette[3 * c : 3 * c + 3]] for c in colours}  # per cent
    head = "".join(f"#{c};2;{r};{g};{b}" for c, (r, g, b) in levels.items())
    bands = []
    for top in range(0, height, 6):
        rows = [pixels[y * width : (y + 1) * width] for y in range(top, min(top + 6, height))]
        passes = [f"#{c}{_packed(_pass(rows, c, width))}" for c in sorted(set(b"".join(rows)))]
        bands.append("$".join(passes))  # $: back to the left
    return f'\x1bP0;1q"1;1;{width};{height}{head}{"-".join(bands)}\x1b\\'  # -: the next band


def _pass(rows: list[bytes], colour: int, width: int) -> str:
    """One colour of a band: the lowest bit is the topmost row."""
    return "".join(chr(63 + sum((row[x] == colour) << i for i, row in enumerate(rows))) for x in range(width))


def _packed(text: str) -> str:
    """Runs as !count."""
    runs = ((char, len(list(group))) for char, group in itertools.groupby(text))
    return "".join(f"!{n}{char}" if n > 3 else char * n for char, n in runs)
