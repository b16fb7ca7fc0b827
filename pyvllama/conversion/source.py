"""Where a checkpoint is: in a directory, of either form, or in a repository on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pyvllama.conversion.checkpoint import Checkpoint
from pyvllama.conversion.hub import download
from pyvllama.conversion.meta import MetaCheckpoint, is_meta_checkpoint
from pyvllama.errors import ConfigError

__all__ = ["Source", "find_source"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A checkpoint's directory."""

    path: Path
    name: str
    """What its model is called unless somebody says otherwise."""

    def open(self) -> Checkpoint:
        """Read everything but the tensors' values.

        Raises:
            ModelNotFound, CheckpointError, ConfigError: see `Checkpoint` and `MetaCheckpoint`.
        """
        return MetaCheckpoint(self.path) if is_meta_checkpoint(self.path) else Checkpoint(self.path)


def find_source(src: str | Path, *, revision: str | None = None) -> Source:
    """The directory that `src` means; a repository on the Hub is downloaded.

    Args:
        src: a directory; or, as a str and where no such path exists, a Hub id `org/name`.
        revision: branch, tag or commit on the Hub.

    Raises:
        ModelNotFound: the Hub has no such repository, or does not give it.
        ConfigError: a revision of a directory was asked for.
    """
    if isinstance(src, str) and _HUB_ID.fullmatch(src) and not Path(src).exists():
        return Source(download(src, revision), src.split("/")[1])
    if revision is not None:
        raise ConfigError(
            f"revision = {revision!r}: {src} is no repository on the Hub (org/name); a directory has none"
        )
    return Source(Path(src), Path(src).resolve().name)
