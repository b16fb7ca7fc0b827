"""The Hugging Face Hub's own client, and its errors in our words."""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvllama.errors import Cancelled, ConfigError, ModelNotFound

__all__ = [
    "HUB",
    "LIBRARY",
    "BytesProgress",
    "Listing",
    "fetch",
    "hub_cache_path",
    "hub_errors",
    "is_hub_id",
    "list_files",
    "report",
    "scan_cache",
    "unreachable",
]

HUB = "https://huggingface.co"
"""Where pages for people are; the client itself asks HF_ENDPOINT."""

LIBRARY = "pyvllama"
"""What the client calls itself in its requests."""

BytesProgress = Callable[[int, int | None], bool | None]
"""Called with (bytes that are there, bytes in all or None while that is unknown); returning False stops."""

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_MAX_WAIT_S = 10.0


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `org/name`. A path of that name wins over the Hub: ask for that first."""
    return _HUB_ID.fullmatch(name) is not None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the Hub."""
    from huggingface_hub import constants  # noqa: PLC0415  (slow to import, and needed for Hub ids alone)

    return constants.HF_HUB_OFFLINE


@dataclass(frozen=True)
class Listing:
    """What a repository holds at a commit."""

    commit: str
    files: tuple[str, ...]
    """Paths in the repository, sorted."""


def list_files(repo_id: str, revision: str | None = None) -> Listing:
    """The files of a repository: the Hub's list, or offline those that its cache holds.

    Raises:
        ModelNotFound: there is no such repository or revision, it is private, or nothing of it is in the cache.
    """
    import huggingface_hub  # noqa: PLC0415

    with hub_errors(repo_id, revision):
        if not is_offline():
            api = huggingface_hub.HfApi(library_name=LIBRARY)
            with contextlib.suppress(*unreachable()):  # then what the cache holds has to do
                info = api.model_info(repo_id, revision=revision, timeout=_MAX_WAIT_S)
                return Listing(info.sha or "", tuple(sorted(s.rfilename for s in info.siblings or ())))
        for cached in _cached_revisions(repo_id):
            if (revision or "main") in (cached.commit_hash, *cached.refs):
                files = (f.file_path.relative_to(cached.snapshot_path).as_posix() for f in cached.files)
                return Listing(cached.commit_hash, tuple(sorted(files)))
        raise huggingface_hub.errors.LocalEntryNotFoundError(f"{repo_id} is not in the cache")


def hub_cache_path() -> Path:
    """Where the client keeps what it downloads (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import constants  # noqa: PLC0415

    return Path(constants.HF_HUB_CACHE)


def scan_cache() -> Any:
    """The client's view of its cache (an HFCacheInfo); None if there is none yet."""
    import huggingface_hub  # noqa: PLC0415
    from huggingface_hub import errors  # noqa: PLC0415

    try:
        return huggingface_hub.scan_cache_dir()
    except (errors.CacheNotFound, ValueError):  # ValueError: the cache is a file
        return None


def _cached_revisions(repo_id: str) -> Iterator[Any]:
    for repo in getattr(scan_cache(), "repos", ()):
        if (repo.repo_type, repo.repo_id) == ("model", repo_id):
            yield from repo.revisions


def unreachable() -> tuple[type[BaseException], ...]:
    """What the client raises where no server answers.

    Its HTTP library changed twice (requests, httpx, httpx2); the base of its own error tells which it is.
    """
    from huggingface_hub import errors  # noqa: PLC0415

    library = sys.modules[errors.HfHubHTTPError.__bases__[0].__module__.split(".")[0]]
    named = (getattr(library, name, None) for name in ("TransportError", "ConnectionError", "Timeout"))
    return (ConnectionError, *(e for e in named if isinstance(e, type) and issubclass(e, BaseException)))


def fetch(
    repo_id: str,
    revision: str | None,
    patterns: Sequence[str],
    *,
    local_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    progress: BytesProgress | None = None,
) -> Path:
    """Download the files that match one of the patterns into the Hub's cache; what that holds is not fetched again.

    Args:
        repo_id, revision, patterns: of the files.
        local_dir: put them there instead of into the cache.
        cache_dir: another place for the cache.
        progress: called while bytes come in, from any thread, instead of the client's own bars. (Older clients do not
            tell: then it is never called.) After a stop, files that are complete are not fetched again; one that is
            not may begin anew: the client of 2.4 keeps no part of it.

    Returns:
        The directory of the snapshot in the cache, or local_dir.

    Raises:
        ModelNotFound: see `hub_errors`.
        ConfigError: the disk is full.
        Cancelled: progress returned False.
    """
    import huggingface_hub  # noqa: PLC0415

    given: dict[str, Any] = {
        "local_dir": local_dir,
        "cache_dir": cache_dir,
        "tqdm_class": None if progress is None else _reporting_bar(progress),
    }
    with hub_errors(repo_id, revision), _room_in(Path(local_dir or cache_dir or hub_cache_path())):
        folder = huggingface_hub.snapshot_download(
            repo_id,
            revision=revision,
            allow_patterns=list(patterns),
            library_name=LIBRARY,
            **{name: value for name, value in given.items() if value is not None},
        )
    return Path(str(folder))


@contextlib.contextmanager
def _room_in(directory: Path) -> Iterator[None]:
    """What the client raises where the disk is full names no file."""
    try:
        yield
    except OSError as e:
        if e.errno not in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            raise
        raise ConfigError(
            f"{directory} cannot be written: the disk is full; free some space, or set HF_HOME to another directory; "
            "the same command then goes on"
        ) from e


def report(progress: BytesProgress, done: int, total: int | None) -> None:
    """Tell how far a download is.

    Raises:
        Cancelled: progress returned False.
    """
    if progress(done, total) is False:
        raise Cancelled("the download was stopped; asked for again, it fetches only the files that are not complete")


def _reporting_bar(progress: BytesProgress) -> type[Any]:
    """A progress bar for the client that shows nothing and reports bytes.

    The client makes several: one counts files, one or two count bytes (received, written). Of the latter the furthest
    counts, and the least total, as the client lets one grow to draw it.
    """
    from tqdm.auto import tqdm  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415  (the client's own)

    bars: list[Any] = []

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread of tqdm's own

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "disable": True})
            if options.get("unit") == "B":
                bars.append(self)

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            if any(bar is self for bar in bars):  # tqdm's == compares places on the screen
                done, totals = max(bar.n for bar in bars), [bar.total for bar in bars if bar.total]
                report(progress, int(done), int(min(totals)) if totals else None)
            return None

    return Bar


@contextlib.contextmanager
def hub_errors(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the client raises into a ModelNotFound that says what to do.

    Raises:
        ModelNotFound: there is no such repository or revision, it is gated, the Hub cannot be reached or lacks the
            right token, or the cache lacks what is asked for while the Hub is not to be used.
    """
    from huggingface_hub import errors  # noqa: PLC0415

    other: tuple[type[BaseException], ...] = (
        errors.HFValidationError, errors.HfHubHTTPError, OSError, *unreachable()
    )  # fmt: skip
    page = f"{HUB}/{repo_id}"
    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except errors.GatedRepoError as e:  # before RepositoryNotFoundError, of which it is one
        raise ModelNotFound(
            f"{repo_id} is gated: accept its licence at {page}, then log in with `hf auth login` or set HF_TOKEN to a "
            "token of the same account"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise ModelNotFound(
            f"{repo_id} is neither a local directory nor a repository that the Hub shows you; see {page}, and where it "
            "is private, log in with `hf auth login` or set HF_TOKEN"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise ModelNotFound(
            f"{repo_id} has no revision {revision}; its branches and tags are at {page}/tree/main"
        ) from e
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as e:
        raise ModelNotFound(
            f"{repo_id}{at} is no local directory, and not (wholly) in the Hub's cache, and the Hub is not to be used "
            "(HF_HUB_OFFLINE) or cannot be reached: download it while online, or name a directory"
        ) from e
    except other as e:
        raise ModelNotFound(f"{repo_id}{at} could not be downloaded; the same command goes on later: {e}") from e
