"""A picture from the system's clipboard."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageGrab

from pyvllama.cli.chat.attachments import local_path
from pyvllama.cli.chat.picture import Picture
from pyvllama.errors import ImageError

__all__ = ["clipboard_pictures"]

_TIMEOUT_S = 10
_TYPES = ("image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp")
_EMPTY = "the clipboard holds no picture: copy one first, or attach a file with /image PATH"


@dataclass(frozen=True)
class _Tool:
    """A program that prints the clipboard."""

    display: str  # the environment variable of the system it is for
    list_types: Sequence[str]
    read_type: Sequence[str]  # the type comes last


_TOOLS = (
    _Tool("WAYLAND_DISPLAY", ("wl-paste", "--list-types"), ("wl-paste", "--no-newline", "--type")),
    _Tool(
        "DISPLAY",
        ("xclip", "-selection", "clipboard", "-o", "-t", "TARGETS"),
        ("xclip", "-selection", "clipboard", "-o", "-t"),
    ),
)


def clipboard_pictures() -> list[Picture]:
    """The picture in the clipboard, or the picture files that were copied there.

    Raises:
        ImageError: there is none, it cannot be read, or this system gives no access to a clipboard.
    """
    if sys.platform in ("darwin", "win32"):
        return _grabbed(ImageGrab.grabclipboard())
    tools = [tool for tool in _TOOLS if os.environ.get(tool.display) and shutil.which(tool.list_types[0])]
    if not tools:
        raise ImageError(
            "there is no way to the clipboard here: install wl-clipboard (Wayland) or xclip (X11), "
            "or attach a file with /image PATH"
        )
    return _read(tools[0])


def _grabbed(content: Image.Image | list[str] | None) -> list[Picture]:
    if content is None:
        raise ImageError(_EMPTY)
    if isinstance(content, list):
        return [Picture.read(path) for path in content]
    return [Picture.read(content, "the clipboard")]


def _read(tool: _Tool) -> list[Picture]:
    # The bytes go through our own reader: Pillow's would hand them to any of its decoders.
    types = _output(tool.list_types).decode(errors="replace").split()
    if wanted := next((t for t in _TYPES if t in types), None):
        return [Picture.read(_output((*tool.read_type, wanted)), "the clipboard")]
    if "text/uri-list" in types:
        uris = _output((*tool.read_type, "text/uri-list")).decode(errors="replace").split()
        if paths := [local_path(uri) for uri in uris if uri.lower().startswith("file://")]:
            return [Picture.read(path) for path in paths]
    raise ImageError(_EMPTY)


def _output(command: Sequence[str]) -> bytes:
    try:
        run = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT_S, check=False
        )  # an empty clipboard is an error to these programs, and no output
    except (OSError, subprocess.TimeoutExpired) as e:
        raise ImageError(f"the clipboard cannot be read: {command[0]} does not answer") from e
    return run.stdout
