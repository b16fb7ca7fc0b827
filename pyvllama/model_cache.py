"""Models that were converted or imported once, kept for the next time.

One directory each, with a note of what it was made of. Safe against other processes and against being interrupted: a
directory bears its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pyvllama.errors import ConfigError
from pyvllama.types import Pair

__all__ = ["Entry", "ModelCache", "Recipe", "cache_root", "directory_fingerprint"]

_LAYOUT = 1
"""Of `entry.json`; entries of another layout are made again."""

_NOTE = "entry.json"
_MAX_NOTE_BYTES = 1 << 16
_SOURCE_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".model", ".pth"})
_UNSAFE = re.compile(r"[^\w.+-]+", re.ASCII)

logger = logging.getLogger("pyvllama")


def cache_root() -> Path:
    """Where models are kept: $PYVLLAMA_CACHE, or `pyvllama` in the platform's directory for caches."""
    if own := os.environ.get("PYVLLAMA_CACHE"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "pyvllama" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pyvllama"
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(xdg) if Path(xdg).is_absolute() else Path.home() / ".cache") / "pyvllama"  # XDG: relative is ignored


def directory_fingerprint(folder: Path) -> str:
    """What changes when a checkpoint's files do: a digest of their names, sizes and times.

    Raises:
        ConfigError: the directory cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(p for p in folder.iterdir() if p.suffix in _SOURCE_SUFFIXES):
            stat = path.stat()
            digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    except OSError as e:
        raise ConfigError(f"{folder} cannot be read: {e.strerror or e}") from e
    return digest.hexdigest()


@dataclass(frozen=True)
class Recipe:
    """What a model is made of.

    Kind, source and options say which entry it is, the fingerprint whether it is current.
    """

    kind: str
    """checkpoint, hub or ollama."""
    source: str
    """An absolute path, `org/name`, or a name of Ollama's."""
    name: str
    """What its files are called, before their types."""
    fingerprint: str
    """Of the source: a digest of its files' sizes and times, a commit, a digest of Ollama's manifest."""
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The entry's directory: readable, and another one for another source or other options."""
        what = json.dumps([self.kind, self.source, sorted(self.options.items())])
        return f"{self.title}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"

    @property
    def title(self) -> str:
        """What people call it: name and text type."""
        parts = [self.name, self.options.get("text_type", "").upper()]
        return _UNSAFE.sub("-", "-".join(filter(None, parts))).strip(".-")[:150] or "model"


@dataclass(frozen=True)
class Entry:
    """A model in the cache."""

    recipe: Recipe
    folder: Path
    pair: Pair
    made: datetime
    used: datetime

    @property
    def id(self) -> str:
        """Its directory's name."""
        return self.folder.name

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes of the text file, or of all its parts, and of the mmproj."""
        files = {p.name: p.stat().st_size for p in self.folder.glob("*.gguf")}
        mmproj = files.pop(self.pair.mmproj.name)
        return sum(files.values()), mmproj


class ModelCache:
    """The directory with all of them."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or cache_root()).absolute()

    def entries(self) -> list[Entry]:
        """All models that are whole, the one used last first."""
        try:
            folders = [p for p in self.root.iterdir() if not p.name.startswith(".") and not p.is_symlink()]
        except OSError:  # no cache yet
            return []
        found = (_read_entry(p) for p in folders if p.is_dir())
        return sorted(filter(None, found), key=lambda e: e.used, reverse=True)

    def find(self, recipe: Recipe) -> Entry | None:
        """The entry of the recipe's source and options, whatever its fingerprint."""
        entry = _read_entry(self.root / recipe.id)
        return entry if entry is not None and _same_thing(entry.recipe, recipe) else None

    def use(self, entry: Entry) -> Pair:
        """An entry's pair; remembers that it was used now."""
        with suppress(OSError):  # a cache that one may only read is good enough
            os.utime(entry.folder / _NOTE)
        return entry.pair

    def provide(self, recipe: Recipe, make: Callable[[Path], Pair], note: Callable[[str], object]) -> Pair:
        """The model of a recipe, made now if there is none or its source has changed.

        Args:
            recipe: what it is made of.
            make: makes the pair in the (empty) directory that it is given.
            note: called with a line where there is something to say: another process is at it, say.

        Returns:
            The pair in the cache.

        Raises:
            ConfigError: the cache cannot be written.
            Whatever `make` raises; nothing is kept then.
        """
        if pair := self._current(recipe):
            return pair
        with self._locked(recipe.id, note):
            if pair := self._current(recipe):  # made by another process while we waited
                return pair
            self._sweep(recipe.id)
            work = self.root / f".{recipe.id}-{secrets.token_hex(4)}"
            try:
                with _writing(self.root):
                    work.mkdir()
                pair = make(work)
                with _writing(self.root):
                    (work / _NOTE).write_text(_note(recipe, pair), encoding="utf-8")
                    final = self.root / recipe.id
                    if final.exists():
                        final.rename(self.root / f".{recipe.id}-{secrets.token_hex(4)}")
                    work.rename(final)
            finally:
                self._sweep(recipe.id)
        return Pair(final / pair.text.name, final / pair.mmproj.name)

    def remove(self, entry: Entry) -> None:
        """Delete an entry's directory.

        Raises:
            ConfigError: it is no directory of this cache, another process is making it anew, or it cannot be deleted.
        """
        if entry.folder.parent != self.root or entry.folder.is_symlink():
            raise ConfigError(f"{entry.folder} is no model of the cache {self.root}")

        def busy(_: str) -> None:
            raise ConfigError(f"{entry.id} is being made by another process just now")

        with self._locked(entry.id, busy), _writing(self.root):
            gone = self.root / f".{entry.id}-{secrets.token_hex(4)}"
            entry.folder.rename(gone)
            shutil.rmtree(gone)

    def _current(self, recipe: Recipe) -> Pair | None:
        entry = self.find(recipe)
        if entry is None or entry.recipe.fingerprint != recipe.fingerprint:
            return None
        return self.use(entry)

    def _sweep(self, entry_id: str) -> None:
        """Delete what is left of interrupted work on an entry; only who holds its lock may."""
        for path in self.root.glob(f".{entry_id}-????????"):
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _locked(self, entry_id: str, note: Callable[[str], object]) -> Iterator[None]:
        import filelock  # noqa: PLC0415  (slow to import, and needed for making and deleting alone)

        locks = self.root / ".locks"
        with _writing(self.root):
            locks.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(str(locks / f"{entry_id}.lock"))
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                note(f"{entry_id} is being made by another process: waiting for it.")
                lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _same_thing(a: Recipe, b: Recipe) -> bool:
    return (a.kind, a.source, dict(a.options)) == (b.kind, b.source, dict(b.options))


def _note(recipe: Recipe, pair: Pair) -> str:
    return json.dumps(
        {
            "layout": _LAYOUT,
            "kind": recipe.kind,
            "source": recipe.source,
            "name": recipe.name,
            "fingerprint": recipe.fingerprint,
            "options": dict(recipe.options),
            "text": pair.text.name,
            "mmproj": pair.mmproj.name,
            "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
        indent=2,
    )


def _read_entry(folder: Path) -> Entry | None:
    """The entry in a directory; None if it is none, or not whole: then it will be made again."""
    path = folder / _NOTE
    try:
        with path.open(encoding="utf-8") as f:
            values: Any = json.loads(f.read(_MAX_NOTE_BYTES))
        if values["layout"] != _LAYOUT:
            return None
        kind, source, name, fingerprint = (_string(values[key]) for key in ("kind", "source", "name", "fingerprint"))
        options = {_string(k): _string(v) for k, v in values["options"].items()}
        recipe = Recipe(kind, source, name, fingerprint, options)
        files = [folder / Path(_string(values[key])).name for key in ("text", "mmproj")]
        made = datetime.fromisoformat(_string(values["made"]))
        used = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc)
        if not all(file.is_file() for file in files):
            return None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        logger.debug("%s is no readable note of a model: %s", path, e)
        return None
    return Entry(recipe, folder, Pair(*files), made, used)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.50} is no string")
    return value


@contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise ConfigError(
            f"the cache {root} cannot be written: {e.strerror or e}; PYVLLAMA_CACHE names another directory"
        ) from e
