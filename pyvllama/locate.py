"""From what a user calls a model to the two files of a pair."""

import re
from pathlib import Path

from pyvllama.errors import ModelNotFound
from pyvllama.types import Pair

__all__ = ["find_mmproj", "locate", "pocket_pair", "pocket_picture"]

_POCKET = Path(__file__).parent / "pocket"  # importlib.resources finds no path in an editable installation
_MMPROJ_PREFIX = "mmproj-"
_TYPE_SUFFIX = re.compile(r"[-.](F32|F16|BF16|I?Q\d\w*|TQ\d\w*|MXFP4\w*)$", re.IGNORECASE)


def pocket_pair() -> Pair:
    """The bundled pocket model: 12.7 million parameters, knows coloured shapes and short texts."""
    return _pair_in(_POCKET)


def pocket_picture() -> Path:
    """A bundled picture for the pocket model."""
    return _POCKET / "shapes.png"


def locate(model: str | Path | None, mmproj: str | Path | None = None) -> Pair:
    """The pair that a name stands for.

    Args:
        model: a text GGUF, a directory that holds a pair, or None: the bundled pocket model.
        mmproj: the mmproj file, where it is not beside the text file or there are several.

    Raises:
        ModelNotFound: nothing there, no mmproj, or several to choose from; says what to do.
    """
    named = None if mmproj is None else _path(mmproj)
    if named is not None and not named.is_file():
        raise ModelNotFound(f"{named}: no such mmproj file")
    path = _POCKET if model is None else _path(model)
    if path.is_dir():
        return _pair_in(path, named)
    if not path.is_file():
        raise ModelNotFound(f"{path}: no such file or directory")
    return Pair(path, named or find_mmproj(path))


def find_mmproj(text: Path) -> Path:
    """The mmproj file beside a text file: of the same base name if there are several.

    Raises:
        ModelNotFound: none, or several and none of that name.
    """
    found = sorted(p for p in text.parent.glob("*.gguf") if p.name.startswith(_MMPROJ_PREFIX))
    same = [p for p in found if _base(p.stem.removeprefix(_MMPROJ_PREFIX)) == _base(text.stem)]
    candidates = same or found
    if not candidates:
        raise ModelNotFound(
            f"{text}: there is no mmproj-*.gguf beside it, and without one the model has no eyes. Put the mmproj file "
            "there, name it with --mmproj, or make both with `pyvllama convert`"
        )
    if len(candidates) > 1:
        names = ", ".join(p.name for p in candidates)
        raise ModelNotFound(f"{text}: several mmproj files lie beside it ({names}); choose one with --mmproj")
    return candidates[0]


def _pair_in(folder: Path, mmproj: Path | None = None) -> Pair:
    texts = sorted(p for p in folder.glob("*.gguf") if not p.name.startswith(_MMPROJ_PREFIX))
    texts = [p for p in texts if mmproj is None or not p.samefile(mmproj)]
    if not texts:
        if (folder / "config.json").is_file():
            raise ModelNotFound(f"{folder}: this is a checkpoint; convert it first: pyvllama convert {folder} -o DIR")
        raise ModelNotFound(f"{folder}: no GGUF files in it")
    if len(texts) > 1:
        names = ", ".join(p.name for p in texts)
        raise ModelNotFound(f"{folder}: several text files in it ({names}); name one of them")
    return Pair(texts[0], mmproj or find_mmproj(texts[0]))


def _base(stem: str) -> str:
    return _TYPE_SUFFIX.sub("", stem).lower()


def _path(name: str | Path) -> Path:
    """The name as a path that may be asked whether it exists."""
    if not str(name):
        raise ModelNotFound("the model's name is empty")
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as e:  # a home of nobody; a name too long, or with a NUL
        raise ModelNotFound(f"{str(name)[:200]!r} names no file: {getattr(e, 'strerror', None) or e}") from e
    return path
