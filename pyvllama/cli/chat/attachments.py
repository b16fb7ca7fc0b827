"""Pictures that are named in a line: typed, pasted, or dragged into the terminal.

Terminals write a dragged file as its path: bare, in quotes, with escaped blanks, or as a file:// URI. What looks like a
picture and is one on this disk is taken; anything else stays text.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pyvllama.cli.chat.picture import Picture

__all__ = ["Found", "find_pictures", "leading_pictures", "local_path", "typed_path"]

# The formats that are read, and those that people have and that get an error with advice.
_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib"),
    *(".heic", ".heif", ".avif", ".tif", ".tiff", ".jxl"),
)
_MAX_PATH = 1024
_QUOTED = re.compile(r"""("[^"\n]*"|'[^'\n]*')(\\.|"[^"\n]*"|'[^'\n]*')*(?=$|[\s.,;:!?)])""")  # shells' 'it'\''s.png'
_BARE = re.compile(r"(\\.|[^\s\\])+")
_ENDS_LIKE_A_PICTURE = re.compile(f"({'|'.join(map(re.escape, _SUFFIXES))})(?=$|[\\s.,;:!?)\"'])", re.IGNORECASE)
_PUNCTUATION = ".,;:!?)]}\"'»”"


@dataclass(frozen=True)
class Found:
    """A place in a line that names a picture.

    Attributes:
        source: a path or an address, as `load_image` takes it.
        start, end: where it stands.
    """

    source: str
    start: int
    end: int


def local_path(text: str) -> str:
    """A file:// URI as a path; anything else as it is."""
    if not text.lower().startswith("file://"):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:
        return text
    return unquote(parts.path) if parts.netloc in ("", "localhost") else text


def typed_path(text: str) -> Path:
    """A path as people type it or terminals paste it: in quotes, with escaped blanks, as a file:// URI."""
    path = local_path(_unquoted(text.strip()))
    return Path(path if _is_file(path) else re.sub(r"\\(.)", r"\1", path))


def find_pictures(line: str) -> tuple[str, list[Picture]]:
    """Take the pictures out of a line.

    Only files that exist and are named like pictures count, and http(s) addresses whose path is. One at the beginning
    or the end of the line vanishes from the text; one within a sentence leaves its file's name there.

    Returns:
        The text that is left, and the pictures, read, in their order.

    Raises:
        ImageError: one of them cannot be read.
    """
    end = 0
    pieces: list[str | Picture] = []
    for found in _scan(line):
        pieces += [line[end : found.start], Picture.read(found.source)]
        end = found.end
    pieces.append(line[end:])
    pictures = [piece for piece in pieces if isinstance(piece, Picture)]
    if not pictures:
        return line.strip(), []
    while pieces and not _is_text(pieces[0]):
        pieces.pop(0)
    while pieces and not _is_text(pieces[-1]):
        pieces.pop()
    text = "".join(piece if isinstance(piece, str) else piece.short_name for piece in pieces)
    return text.strip().lstrip(",;:").lstrip(), pictures


def leading_pictures(text: str) -> tuple[list[Picture], str]:
    """What follows `/image`: one or more pictures, then perhaps a question.

    Here an address may be any, and a path that does not exist is an error.

    Returns:
        The pictures and the rest.

    Raises:
        ImageError: the first is no picture that can be read.
    """
    text = text.strip()
    if _is_file(whole := local_path(_unquoted(text))) or not text:
        return [Picture.read(whole)], ""
    pictures: list[Picture] = []
    rest = text
    while rest and (found := _picture_at(rest, 0, any_address=True)):
        pictures.append(Picture.read(found.source))
        rest = rest[found.end :].lstrip()
    return (pictures, rest) if pictures else ([Picture.read(whole)], "")


def _is_text(piece: str | Picture) -> bool:
    return isinstance(piece, str) and bool(piece.strip(" \t\n,;"))


def _scan(line: str) -> list[Found]:
    result: list[Found] = []
    for word in re.finditer(r"\S+", line):
        start = max(word.start(), result[-1].end if result else 0)
        if start < word.end() and (found := _picture_at(line, start)):
            result.append(found)
    return result


def _picture_at(line: str, start: int, *, any_address: bool = False) -> Found | None:
    """The picture that is named from `start` on."""
    if (quoted := _QUOTED.match(line, start)) and (found := _found(_unquoted(quoted[0]), start, quoted.end(), False)):
        return found
    bare = _BARE.match(line, start)
    if bare is None:
        return None
    word = bare[0]
    for piece in (word, word.rstrip(_PUNCTUATION)):
        for text in (piece, re.sub(r"\\(.)", r"\1", piece)):
            if found := _found(text, start, start + len(piece), any_address):
                return found
    if re.match(r"~?/|\.\.?/", word):  # a bare path with blanks
        for match in _ENDS_LIKE_A_PICTURE.finditer(line, start, start + _MAX_PATH):
            if found := _found(line[start : match.end()], start, match.end(), False):
                return found
    return None


def _found(text: str, start: int, end: int, any_address: bool) -> Found | None:
    if re.match(r"https?://", text, re.IGNORECASE):
        if any_address or _is_named_like_a_picture(_url_path(text)):
            return Found(text, start, end)
        return None
    if any_address and text.lower().startswith("data:"):
        return Found(text, start, end)
    path = local_path(text)
    if (any_address or _is_named_like_a_picture(path)) and _is_file(path):
        return Found(path, start, end)
    return None


def _url_path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:  # brackets that are no IPv6 address
        return ""


def _is_named_like_a_picture(path: str) -> bool:
    return path.lower().endswith(_SUFFIXES)


def _is_file(text: str) -> bool:
    try:
        return 0 < len(text) <= _MAX_PATH and Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):  # longer than a name can be, with a NUL, a home of nobody
        return False


def _unquoted(text: str) -> str:
    """Without the quotes of a shell, if it is one word in quotes."""
    if text[:1] not in ("'", '"'):
        return text
    try:
        words = shlex.split(text)
    except ValueError:
        return text
    return words[0] if len(words) == 1 else text
