"""Files that a client may name because they lie below one directory; nothing else, however it is spelled."""

import os
import stat
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pyvllama.errors import ImageError, ImageTooLarge

__all__ = ["read_below"]

_FOLLOWS_NOTHING = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_IS_RACE_FREE = os.open in os.supports_dir_fd and hasattr(os, "O_NOFOLLOW")


def read_below(root: Path, given: str, max_bytes: int) -> bytes:
    """The bytes of a file below `root`, at most `max_bytes` + 1 of them.

    Symbolic links are followed as long as they lead to something below `root`. Between the check and the opening
    nobody can put another file in its place: the path that was checked is opened part by part, without links.

    Args:
        root: an existing directory.
        given: a path relative to it; an absolute one; or a file: URL of either (`file://cats/a.png`,
            `file:///media/cats/a.png`).
        max_bytes: of the file.

    Raises:
        ImageError: it is not below `root`, does not exist, or is no regular file; which of these is not told of what
            is outside.
        ImageTooLarge: it is larger.
    """
    shown = given if len(given) <= 100 else f"{given[:60]}…{given[-35:]}"
    try:
        top = Path(os.path.realpath(root, strict=True))
        path = Path(os.path.realpath(top / _path_of(given), strict=True))  # an absolute one stands for itself
        parts = path.relative_to(top).parts
        descriptor = _open(top, parts)
    except (OSError, ValueError) as e:  # a loop of links, a name too long or with a NUL, not below
        raise ImageError(f"there is no picture {shown!r} below the directory that the server opens files from") from e
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise ImageError(f"{shown!r} is no regular file")
        if info.st_size > max_bytes:
            raise ImageTooLarge(
                f"{shown!r} has {info.st_size} bytes, over the limit of {max_bytes}: use a smaller picture"
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes + 1)
    finally:
        os.close(descriptor)


def _path_of(given: str) -> str:
    if not given.lower().startswith("file:"):
        return given
    parts = urlsplit(given)
    if parts.query or parts.fragment:
        raise ValueError("a file has no query")
    host = "" if parts.netloc.lower() == "localhost" else parts.netloc
    return unquote(host + parts.path, errors="strict")


def _open(top: Path, parts: tuple[str, ...]) -> int:
    """A descriptor of the file at `parts` below `top`. A pipe does not make it wait."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _FOLLOWS_NOTHING
    if not _IS_RACE_FREE:
        return os.open(top.joinpath(*parts), flags)
    descriptor = os.open(top, os.O_RDONLY | os.O_DIRECTORY | _FOLLOWS_NOTHING)
    for i, part in enumerate(parts):
        try:
            is_last = i == len(parts) - 1
            below = os.open(part, flags if is_last else flags | os.O_DIRECTORY, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor
