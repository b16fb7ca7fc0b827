"""What an id of a repository on the Hub looks like."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["is_hub_id"]

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)


def is_hub_id(src: str | Path) -> bool:
    """Whether `src` means a repository: `org/name`, as a str, where no such path exists."""
    return isinstance(src, str) and _HUB_ID.fullmatch(src) is not None and not Path(src).exists()
