"""Models on the Hub that are GGUF files already: `user/repo[:QUANT]`, as llama.cpp's `-hf` takes them."""

from __future__ import annotations

import functools
import glob
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pyvllama.errors import FormatError, ModelNotFound
from pyvllama.file_names import MMPROJ_PREFIX, is_text_name, parse_file_name, shards_of
from pyvllama.gguf_file import GGUFFile
from pyvllama.hub_client import HUB, fetch, is_hub_id, list_files, report
from pyvllama.types import Pair

__all__ = [
    "DEFAULT_QUANTS",
    "FileProgress",
    "PairNames",
    "check_mmproj",
    "fetch_pair",
    "parse_hub_name",
    "pull",
    "pull_mmproj",
    "select_mmproj",
    "select_pair",
]

FileProgress = Callable[[str, int, int | None], bool | None]
"""Called with (path in the repository, bytes that are there, bytes in all or None); returning False stops."""

DEFAULT_QUANTS = ("Q4_K_M", "Q8_0")
"""The types of a text file that are chosen if none is named, llama.cpp's; then whatever comes first."""
_MMPROJ_TYPES = ("Q8_0", "F16", "BF16", "F32")
"""The towers' types, best choice first: no larger than it need be, no worse than has been measured."""

_QUANT = re.compile(r"\w[\w.-]*", re.ASCII)
_MAX_LISTED = 40


@dataclass(frozen=True)
class PairNames:
    """Files of a repository that make a model; paths in the repository."""

    text: tuple[str, ...]
    """The text model: one file, or all of a split one in order."""
    mmproj: str


def parse_hub_name(name: str) -> tuple[str, str | None] | None:
    """(`user/repo`, QUANT or None) of `user/repo[:QUANT]`; None if a name has another form."""
    repo_id, colon, quant = name.partition(":")
    if not is_hub_id(repo_id) or (colon and not _QUANT.fullmatch(quant)):
        return None
    return repo_id, quant or None


def pull(
    repo_id: str, quant: str | None = None, *, mmproj_type: str | None = None, revision: str | None = None
) -> Pair:
    """Fetch a text GGUF and its mmproj into the Hub client's own cache; what that holds already is not fetched again.

    Environment and behaviour are the client's: HF_HOME, HF_TOKEN, HF_HUB_OFFLINE, progress bars; after a cut, files
    that are complete are not fetched again. The mmproj comes first: where it is none of ours, nothing else is fetched.

    Args:
        repo_id: `user/repo`.
        quant: type of the text file as its name has it, in any case; None: Q4_K_M, else Q8_0, else the first.
        mmproj_type: likewise of the mmproj; None: Q8_0, else F16, BF16, F32, else the first.
        revision: branch, tag or commit; None: the main branch.

    Raises:
        ModelNotFound: the repository or such files in it cannot be had; the message lists what it has.
        FormatError: the mmproj is of another model family.
    """
    names = select_pair(list_files(repo_id, revision).files, quant, mmproj_type, where=repo_id)
    return fetch_pair(repo_id, names, revision=revision)


def fetch_pair(
    repo_id: str, names: PairNames, *, revision: str | None = None, progress: FileProgress | None = None
) -> Pair:
    """Fetch the files that `select_pair` chose, the mmproj first.

    Args:
        repo_id: `user/repo`.
        names: the files.
        revision: branch, tag or commit; None: the main branch.
        progress: told of each file: at its beginning (0, None), while its bytes come in, and at its end (all, all).

    Raises:
        ModelNotFound, FormatError: as `pull`. Cancelled: progress returned False.
    """
    _pull_mmproj(repo_id, names.mmproj, revision, progress)
    if progress is not None:
        for name in names.text:
            _fetch_one(repo_id, name, revision, progress)
    folder = fetch(repo_id, revision, [glob.escape(name) for name in (names.mmproj, *names.text)])
    if missing := [name for name in (*names.text, names.mmproj) if not (folder / name).is_file()]:
        raise ModelNotFound(f"{repo_id}: not in the Hub's cache, and the Hub cannot be reached: {', '.join(missing)}")
    return Pair(folder / names.text[0], folder / names.mmproj)


def pull_mmproj(repo_id: str, mmproj_type: str | None = None, *, revision: str | None = None) -> Path:
    """Fetch an mmproj alone, for a text model that one has.

    Raises:
        ModelNotFound, FormatError: as `pull`.
    """
    name = select_mmproj(list_files(repo_id, revision).files, mmproj_type, where=repo_id)
    return _pull_mmproj(repo_id, name, revision)


def _fetch_one(repo_id: str, name: str, revision: str | None, progress: FileProgress | None) -> Path:
    if progress is None:
        return fetch(repo_id, revision, [glob.escape(name)]) / name
    of_file = functools.partial(progress, name)
    report(of_file, 0, None)
    path = fetch(repo_id, revision, [glob.escape(name)], progress=of_file) / name
    if path.is_file():
        n_bytes = path.stat().st_size
        report(of_file, n_bytes, n_bytes)
    return path


def _pull_mmproj(repo_id: str, name: str, revision: str | None, progress: FileProgress | None = None) -> Path:
    path = _fetch_one(repo_id, name, revision, progress)
    if not path.is_file():
        raise ModelNotFound(f"{repo_id}: not in the Hub's cache, and the Hub cannot be reached: {name}")
    check_mmproj(path)
    return path


def check_mmproj(path: Path) -> None:
    """Refuse the mmproj of another model family.

    Raises:
        FormatError: it is one, or no GGUF file.
    """
    if (projector := GGUFFile(path).metadata.get("clip.projector_type")) != "mllama":
        raise FormatError(
            f"{path}: clip.projector_type is {projector!r}, not 'mllama': these files are of another model family, "
            "which llama.cpp's own programs can run"
        )


def select_pair(
    files: Iterable[str], quant: str | None = None, mmproj_type: str | None = None, *, where: str
) -> PairNames:
    """Choose among a repository's files, by their names alone.

    Args:
        files: paths in the repository.
        quant, mmproj_type: see `pull`.
        where: the repository, for messages.

    Raises:
        ModelNotFound: nothing fits, or several models do; lists what there is.
    """
    files = sorted(files)
    texts = [name for name in files if is_text_name(name)]
    if not texts:
        raise ModelNotFound(f"{where}: no GGUF file of a text model in it. {_listing(files, where)}")
    text = _of_types(texts, (quant,) if quant else DEFAULT_QUANTS, where)
    if text is None and quant:
        raise ModelNotFound(f"{where}: no text file of type {quant} in it. {_listing(texts, where)}")
    text = text or texts[0]
    shards = shards_of(text, files)
    if len(shards) < (n := parse_file_name(text).n_shards):
        raise ModelNotFound(f"{where}: of {text} only {len(shards)} of {n} files are there")
    return PairNames(shards, select_mmproj(files, mmproj_type, where=where, text=text))


def select_mmproj(files: Iterable[str], mmproj_type: str | None = None, *, where: str, text: str | None = None) -> str:
    """Choose an mmproj among a repository's files.

    Args:
        files: paths in the repository.
        mmproj_type: see `pull`.
        where: the repository, for messages.
        text: path of the text file: the mmproj lies in its folder or above, nearest first, and has its base name where
            one has.

    Raises:
        ModelNotFound: there is none, or several that are nothing to choose between.
    """
    files = sorted(files)
    found = [name for name in files if _is_mmproj_name(name)]
    near = found
    if text is not None:
        folders = PurePosixPath(text).parents  # nearest first
        near = next(filter(None, ([n for n in found if PurePosixPath(n).parent == f] for f in folders)), [])
        same = [n for n in near if parse_file_name(n).base.lower() == parse_file_name(text).base.lower()]
        near = same or near
    if not near:
        raise ModelNotFound(
            f"{where}: no mmproj-*.gguf in it, and without one the model has no eyes. {_listing(files, where)}; "
            "an mmproj of another source is named with --mmproj"
        )
    chosen = _of_types(near, (mmproj_type,) if mmproj_type else _MMPROJ_TYPES, where)
    if chosen is None and mmproj_type:
        raise ModelNotFound(f"{where}: no mmproj of type {mmproj_type} in it. {_listing(near, where)}")
    return chosen or near[0]


def _is_mmproj_name(name: str) -> bool:
    file = PurePosixPath(name).name
    return file.startswith(MMPROJ_PREFIX) and file.endswith(".gguf") and parse_file_name(file).shard == 1


def _of_types(names: Sequence[str], types: Sequence[str], where: str) -> str | None:
    """The file of the first of these types that there is; None if there is none."""
    for wanted in types:
        pattern = re.compile(rf"(?<![A-Za-z0-9]){re.escape(wanted)}[.-]", re.IGNORECASE)
        matching = [name for name in names if pattern.search(PurePosixPath(name).name)]
        if len(matching) > 1:
            raise ModelNotFound(f"{where}: several files of type {wanted} in it. {_listing(matching, where)}")
        if matching:
            return matching[0]
    return None


def _listing(files: Sequence[str], where: str) -> str:
    names = [name for name in files if name.endswith(".gguf")]
    if not names:
        weights = any(name.endswith(".safetensors") for name in files)
        hint = f", but a checkpoint's weights: pyvllama convert {where} -o DIR" if weights else ""
        return f"It holds no GGUF files at all{hint}; see {HUB}/{where}/tree/main"
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"It has {', '.join(names[:_MAX_LISTED])}{more}"
