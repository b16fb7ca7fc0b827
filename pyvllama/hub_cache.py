"""Our GGUF pairs in the Hub client's cache: what `pull` has fetched, or another program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvllama.errors import ConfigError, VllamaError
from pyvllama.file_names import MMPROJ_PREFIX, is_text_name, parse_file_name, shards_of
from pyvllama.hub_client import scan_cache
from pyvllama.hub_models import check_mmproj, select_mmproj
from pyvllama.types import Pair

__all__ = ["HubPair", "hub_pairs", "remove_pairs"]


@dataclass(frozen=True)
class HubPair:
    """A text model and its mmproj in the cache."""

    repo_id: str
    commit: str
    path: str
    """Of the text file in the repository."""
    type: str | None
    """Of the text file, as its name says."""
    pair: Pair
    text_bytes: int
    """Of all parts of the text file."""
    mmproj_bytes: int
    used: float
    """When one of the files was last read, in seconds since 1970, as far as the file system remembers."""


def hub_pairs() -> list[HubPair]:
    """All pairs of ours (clip.projector_type = mllama) in the cache, whole ones only, the one used last first."""
    scanned = scan_cache()
    repos = [] if scanned is None else [r for r in scanned.repos if r.repo_type == "model"]
    found = [pair for repo in repos for revision in repo.revisions for pair in _pairs_in(repo.repo_id, revision)]
    return sorted(found, key=lambda p: p.used, reverse=True)


def remove_pairs(pairs: Sequence[HubPair]) -> int:
    """Delete text files, and the mmprojs that no other text file beside them needs.

    A revision that holds nothing else goes as a whole. Blobs that other revisions share are kept.

    Returns:
        Bytes that are free now.

    Raises:
        ConfigError: a file cannot be deleted.
    """
    doomed = {path for pair in pairs for path in _files_of(pair.pair)}
    kept = [p.pair for p in hub_pairs() if p.pair.text not in doomed]
    doomed -= {pair.mmproj for pair in kept}
    n_bytes = 0
    for whole in (True, False):  # one after the other, as the client plans with what it has seen
        scanned = scan_cache()
        if (strategy := _strategy(scanned, doomed, whole=whole)) is not None:
            n_bytes += strategy.expected_freed_size
            try:
                strategy.execute()
            except OSError as e:
                raise ConfigError(f"the Hub's cache cannot be written: {e}") from e
    return n_bytes


def _strategy(scanned: Any, doomed: set[Path], *, whole: bool) -> Any:
    """The client's plan to delete the revisions that hold nothing but these files, or the files of the others."""
    revisions = [r for repo in getattr(scanned, "repos", ()) for r in repo.revisions]
    if whole:
        hashes = [r.commit_hash for r in revisions if r.files and all(f.file_path in doomed for f in r.files)]
        return scanned.delete_revisions(*hashes) if hashes else None
    files = [f for r in revisions for f in r.files if f.file_path in doomed]
    if files and not hasattr(scanned, "delete_files"):
        raise ConfigError(
            "this version of huggingface_hub deletes whole revisions only, and there are other files in this one: "
            "upgrade it (pip install -U huggingface_hub), or delete with `hf cache`"
        )
    return scanned.delete_files(*files) if files else None


def _files_of(pair: Pair) -> set[Path]:
    """All files that go with a pair: its text, and every mmproj in reach if no other text model is there."""
    there = [p for p in pair.text.parent.iterdir() if p.name.endswith(".gguf")]
    text = {pair.text.parent / name for name in shards_of(pair.text.name, (p.name for p in there))}
    alone = not any(is_text_name(p) for p in there if p not in text)
    return text | {pair.mmproj} | ({p for p in there if p.name.startswith(MMPROJ_PREFIX)} if alone else set())


def _pairs_in(repo_id: str, revision: Any) -> list[HubPair]:
    root = revision.snapshot_path
    files = {f.file_path.relative_to(root).as_posix(): f for f in revision.files}
    pairs = []
    for text in filter(is_text_name, sorted(files)):
        try:
            mmproj = select_mmproj(files, where=repo_id, text=text)
            check_mmproj(files[mmproj].file_path)
        except (VllamaError, OSError):  # none, of another family, or damaged: not ours to list
            continue
        shards = shards_of(text, files)
        parts = parse_file_name(text)
        if len(shards) < parts.n_shards:
            continue
        pairs.append(
            HubPair(
                repo_id,
                revision.commit_hash,
                text,
                parts.type,
                Pair(files[text].file_path, files[mmproj].file_path),
                sum(files[name].size_on_disk for name in shards),
                files[mmproj].size_on_disk,
                max(files[name].blob_last_accessed for name in (*shards, mmproj)),
            )
        )
    return pairs
