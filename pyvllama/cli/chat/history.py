"""What was typed, kept for the next time: for nobody else's eyes, and not without end."""

import contextlib
import os
import secrets
import sys
from pathlib import Path

from prompt_toolkit.history import FileHistory, History, InMemoryHistory

__all__ = ["data_root", "open_history"]

_MAX_BYTES = 1 << 20  # of the file, when a chat begins
_MAX_ENTRY = 1 << 14  # characters: a pasted book is not kept


def data_root() -> Path:
    """Where what the user made is kept: $PYVLLAMA_DATA, or `pyvllama` in the platform's directory for data."""
    if own := os.environ.get("PYVLLAMA_DATA"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "pyvllama"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "pyvllama"
    xdg = os.environ.get("XDG_DATA_HOME", "")
    return (Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".local" / "share") / "pyvllama"


def open_history(*, keep: bool = True) -> History:
    """The lines of earlier chats; where they may not or cannot be kept, those of this chat alone."""
    if keep:
        with contextlib.suppress(OSError, RuntimeError):
            return _PrivateHistory(data_root() / "history")
    return InMemoryHistory()


class _PrivateHistory(FileHistory):
    """A file that only its owner reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._create()
        path.chmod(0o600)  # where it was there already
        if path.stat().st_size > _MAX_BYTES:
            with contextlib.suppress(OSError):  # longer than it should be is better than none
                _forget_oldest(path)
        super().__init__(str(path))

    def store_string(self, string: str) -> None:
        if len(string) <= _MAX_ENTRY:
            with contextlib.suppress(OSError):  # a full disk is no reason to end a chat
                self._create()  # it may have been deleted
                super().store_string(string)

    def _create(self) -> None:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))


def _forget_oldest(path: Path) -> None:
    """Keep the newer half. Entries begin with an empty line and a comment with the time."""
    newest = path.read_bytes()[-_MAX_BYTES // 2 :]
    work = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(newest[newest.find(b"\n# ") :])
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)
