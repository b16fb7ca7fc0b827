"""From what a user calls a model to the two files of a pair: by looking, nothing is fetched or made (see `resolve`)."""

from __future__ import annotations

from pathlib import Path

from pyvllama.errors import ModelNotFound
from pyvllama.file_names import IMATRIX_PREFIX, LORA_SUFFIX, MMPROJ_PREFIX, parse_file_name
from pyvllama.types import Pair

__all__ = ["as_path", "find_mmproj", "is_checkpoint", "locate", "pocket_pair", "pocket_picture", "pocket_samples"]

_POCKET = Path(__file__).parent / "pocket"  # importlib.resources finds no path in an editable installation
_SAMPLES = (
    ("shapes.png", "What colour is the star?"),
    ("hearts.png", "Describe the image."),
    ("text.png", "What does the text say?"),
)
_CHECKPOINT_CONFIGS = ("config.json", "params.json")  # Hugging Face's form, Meta's


def pocket_pair() -> Pair:
    """The bundled pocket model: 12.7 million parameters, knows coloured shapes and short texts."""
    return _pair_in(_POCKET)


def pocket_picture() -> Path:
    """A bundled picture for the pocket model."""
    return _POCKET / "shapes.png"


def pocket_samples() -> list[tuple[Path, str]]:
    """The bundled pictures, each with a question that the pocket model can answer."""
    return [(_POCKET / name, question) for name, question in _SAMPLES]


def locate(model: str | Path | None, mmproj: str | Path | None = None) -> Pair:
    """The pair that a name stands for.

    Args:
        model: a text GGUF (of a split one the first file), a directory that holds a pair, or None: the bundled pocket
            model.
        mmproj: the mmproj file, where it is not beside the text file or there are several.

    Raises:
        ModelNotFound: nothing there, no mmproj, or several to choose from; says what to do.
    """
    named = None if mmproj is None else as_path(mmproj)
    if named is not None and not named.is_file():
        raise ModelNotFound(f"{named}: no such mmproj file")
    path = _POCKET if model is None else as_path(model)
    if path.is_dir():
        return _pair_in(path, named)
    if not path.is_file():
        raise ModelNotFound(f"{path}: no such file or directory")
    if (name := parse_file_name(path)).shard > 1:
        raise ModelNotFound(f"{path}: this is file {name.shard} of {name.n_shards} of a split model; name the first")
    return Pair(path, named or find_mmproj(path))


def find_mmproj(text: Path) -> Path:
    """The mmproj file beside a text file: of the same base name if there are several.

    Raises:
        ModelNotFound: the file is no GGUF; no mmproj, or several and none of that name.
    """
    found = sorted(p for p in text.parent.glob("*.gguf") if p.name.startswith(MMPROJ_PREFIX))
    same = [p for p in found if _base(p) == _base(text)]
    candidates = [p for p in same or found if parse_file_name(p).shard == 1]
    if not candidates:
        if not _is_gguf(text):
            raise ModelNotFound(f"{text}: this is no GGUF file; name a text GGUF, or a directory with a pair")
        raise ModelNotFound(
            f"{text}: there is no mmproj-*.gguf beside it, and without one the model has no eyes. Put the mmproj file "
            "there, name it with --mmproj, or make both with `pyvllama convert`"
        )
    if len(candidates) > 1:
        names = ", ".join(p.name for p in candidates)
        raise ModelNotFound(f"{text}: several mmproj files lie beside it ({names}); choose one with --mmproj")
    return candidates[0]


def _is_gguf(path: Path) -> bool:
    try:
        with path.open("rb") as f:
            return f.read(4) in (b"GGUF", b"")  # of an empty file the reader says more
    except OSError:  # who reads it says why it cannot be read
        return True


def is_checkpoint(folder: Path) -> bool:
    """Whether a directory holds a checkpoint to be converted: a configuration, and no text GGUF."""
    return any((folder / name).is_file() for name in _CHECKPOINT_CONFIGS) and not _texts_in(folder)


def as_path(name: str | Path) -> Path:
    """The name as a path that may be asked whether it exists.

    Raises:
        ModelNotFound: no file can have that name.
    """
    if not str(name):
        raise ModelNotFound("the model's name is empty")
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as e:  # a home of nobody; a name too long, or with a NUL
        raise ModelNotFound(f"{str(name)[:200]!r} names no file: {getattr(e, 'strerror', None) or e}") from e
    return path


def _pair_in(folder: Path, mmproj: Path | None = None) -> Pair:
    texts = [p for p in _texts_in(folder) if mmproj is None or not p.samefile(mmproj)]
    if not texts:
        if is_checkpoint(folder):
            raise ModelNotFound(f"{folder}: this is a checkpoint; convert it first: pyvllama convert {folder} -o DIR")
        if any(p.name.startswith(MMPROJ_PREFIX) for p in folder.glob("*.gguf")):
            raise ModelNotFound(
                f"{folder}: there is an mmproj in it, but no text model. Name one that it fits, and the mmproj with "
                "--mmproj"
            )
        raise ModelNotFound(f"{folder}: no GGUF files in it")
    if len(texts) > 1:
        names = ", ".join(p.name for p in texts)
        raise ModelNotFound(f"{folder}: several text files in it ({names}); name one of them")
    return Pair(texts[0], mmproj or find_mmproj(texts[0]))


def _texts_in(folder: Path) -> list[Path]:
    """Every text model's file, of split ones the first."""

    def is_no_model(p: Path) -> bool:
        return p.name.startswith((MMPROJ_PREFIX, IMATRIX_PREFIX)) or p.stem.lower().endswith(LORA_SUFFIX)

    found = (p for p in folder.glob("*.gguf") if not is_no_model(p))
    return sorted(p for p in found if parse_file_name(p).shard == 1)


def _base(path: Path) -> str:
    return parse_file_name(path).base.lower()
