"""Our GGUF pairs in the Hub client's cache: what `pull` has fetched, or another program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvllama.errors import ConfigError, ModelNotFound, VllamaError
from pyvllama.file_names import is_text_name, parse_file_name, shards_of
from pyvllama.hub_client import scan_cache
from pyvllama.hub_models import check_mmproj, select_mmproj
from pyvllama.types import Pair

__all__ = ["HubPair", "Removal", "hub_pairs", "plan_removal"]


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


@dataclass(frozen=True)
class Removal:
    """What will be deleted; `execute` does it."""

    files: tuple[Path, ...]
    n_bytes: int
    """That will be free then: what other revisions share is kept."""
    strategy: Any

    def execute(self) -> None:
        """Delete.

        Raises:
            ConfigError: a file cannot be deleted.
        """
        try:
            self.strategy.execute()
        except OSError as e:
            raise ConfigError(f"the Hub's cache cannot be written: {e}") from e


def hub_pairs() -> list[HubPair]:
    """All pairs of ours (clip.projector_type = mllama) in the cache, whole ones only, the one used last first."""
    scanned = scan_cache()
    repos = [] if scanned is None else [r for r in scanned.repos if r.repo_type == "model"]
    found = [pair for repo in repos for revision in repo.revisions for pair in _pairs_in(repo.repo_id, revision)]
    return sorted(found, key=lambda p: p.used, reverse=True)


def plan_removal(pairs: Sequence[HubPair]) -> Removal:
    """What deleting these pairs means: text files, and each mmproj that no other text model of ours needs.

    A revision that holds nothing else goes as a whole.
    """
    scanned = scan_cache()
    if scanned is None:
        raise ModelNotFound("there is no cache of the Hub")
    needed = {p.pair.mmproj for p in hub_pairs() if p not in pairs}
    paths = {path for p in pairs for path in _text_files(p.pair.text)} | ({p.pair.mmproj for p in pairs} - needed)
    strategies, whole, single = [], [], []
    for revision in (r for repo in scanned.repos for r in repo.revisions):
        files = [f for f in revision.files if f.file_path in paths]
        if files and len(files) == len(revision.files):
            whole.append(revision.commit_hash)
        else:
            single += files
    if whole:
        strategies.append(scanned.delete_revisions(*whole))
    if single:
        if not hasattr(scanned, "delete_files"):
            raise ConfigError(
                "this version of huggingface_hub deletes whole revisions only, and others need files of this one: "
                "upgrade it (pip install -U huggingface_hub), or delete with `hf cache`"
            )
        strategies.append(scanned.delete_files(*single))
    n_bytes = sum(s.expected_freed_size for s in strategies)
    return Removal(tuple(sorted(paths)), n_bytes, _All(strategies))


@dataclass(frozen=True)
class _All:
    strategies: list[Any]

    def execute(self) -> None:
        for strategy in self.strategies:
            strategy.execute()


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


def _text_files(text: Path) -> list[Path]:
    names = shards_of(text.name, (p.name for p in text.parent.iterdir()))
    return [text.parent / name for name in names]
