"""The files of `Llama.from_pretrained`: what llama-cpp-python would fetch, and the mmproj with it."""

import glob
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from pyvllama.file_names import is_text_name, parse_file_name, shards_of
from pyvllama.hub_client import fetch, list_files
from pyvllama.hub_models import check_mmproj, select_mmproj, select_pair

__all__ = ["fetch_files"]


def fetch_files(
    repo_id: str,
    filename: str | None,
    additional_files: Sequence[str] | None,
    mmproj_filename: str | None,
    local_dir: str | Path | None,
    cache_dir: str | Path | None,
    *,
    wants_mmproj: bool = True,
) -> tuple[Path, Path | None]:
    """Fetch them; what is there already is not fetched again.

    Args:
        repo_id: `user/repo`.
        filename: of the text file, or a pattern that fits one alone; patterns leave mmprojs and later parts of split
            files out of account. None: as `pyvllama pull` chooses.
        additional_files: names or patterns of more files, each of one.
        mmproj_filename: likewise of the mmproj; None: the one that belongs to the text file.
        local_dir: where they shall lie; None: in the Hub's cache.
        cache_dir: another place for that.
        wants_mmproj: whether an mmproj is to be fetched.

    Returns:
        The text file, of a split one the first, and the mmproj.

    Raises:
        ValueError: a pattern fits no file, or several.
        ModelNotFound: the repository or its mmproj cannot be had. FormatError: the mmproj is of another model family.
    """
    files = list_files(repo_id).files
    texts = [name for name in files if is_text_name(name)]
    if filename is None:
        text = select_pair(files, where=repo_id).text[0]
    elif filename in files:
        text = filename
    else:
        text = _only(texts, filename, repo_id)
    names = [_only(files, pattern, repo_id) for pattern in additional_files or ()]
    names += shards_of(text, files) if parse_file_name(text).shard == 1 else [text]
    mmproj = None
    if wants_mmproj:
        chosen = _only(files, mmproj_filename, repo_id) if mmproj_filename else None
        chosen = chosen or select_mmproj(files, where=repo_id, text=text)
        # First: where it is none of ours, nothing else is fetched.
        mmproj = fetch(repo_id, None, [glob.escape(chosen)], local_dir=local_dir, cache_dir=cache_dir) / chosen
        check_mmproj(mmproj)
    folder = fetch(repo_id, None, [glob.escape(name) for name in names], local_dir=local_dir, cache_dir=cache_dir)
    return folder / text, mmproj


def _only(files: Sequence[str], pattern: str, repo_id: str) -> str:
    """The file that fits, by llama-cpp-python's rule: the pattern is compared with the whole path in the repository."""
    found = [name for name in files if name == pattern] or [name for name in files if fnmatchcase(name, pattern)]
    if len(found) != 1:
        what = f"{len(found)} files in {repo_id} match {pattern!r}" if found else f"no file in {repo_id} is {pattern!r}"
        raise ValueError(f"{what}; it has {', '.join(found or files)}")
    return found[0]
