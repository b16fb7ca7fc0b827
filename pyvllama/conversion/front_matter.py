"""The YAML head of a README.md, as model cards on the Hub have it.

Anybody may have written it: nothing in it is trusted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["MAX_FRONT_MATTER_BYTES", "front_matter", "read_readme"]

MAX_FRONT_MATTER_BYTES = 1 << 16
"""The longest heads on the Hub (language lists of hundreds of entries) have a few KiB."""


class _Loader(yaml.BaseLoader):  # type: ignore[misc]
    """Strings, lists and dicts alone: `no` is Norway, 1.0 is a version, and no name makes an object."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few hundred bytes of them can stand for gigabytes
            raise yaml.YAMLError("aliases (*name) are not taken")
        return super().compose_node(parent, index)


def read_readme(folder: Path) -> str | None:
    """The start of a directory's README.md: as much as a head can be. None if there is none, or none that opens."""
    try:
        with (folder / "README.md").open("rb") as f:
            return f.read(2 * MAX_FRONT_MATTER_BYTES).decode("utf-8", errors="replace")
    except (OSError, ValueError):  # no such file, a directory, no permission: a card is never needed
        return None


def front_matter(readme: str) -> tuple[dict[str, Any], str | None]:
    """Read the head of a README.

    Args:
        readme: the text, or its start.

    Returns:
        (keys -> str, list or dict of them; {} without a head), and what is wrong with it, or None. Never raises.
    """
    lines = readme.removeprefix("\ufeff")[: 2 * MAX_FRONT_MATTER_BYTES].splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}, None
    end = next((i for i, line in enumerate(lines[1:], 1) if line.rstrip() in ("---", "...")), None)
    if end is None:
        return {}, "README.md: its YAML head has no end (---): ignored"
    head = "\n".join(lines[1:end]).replace("\t", "  ")  # tabs are no indentation in YAML, but people write them
    if len(head.encode()) > MAX_FRONT_MATTER_BYTES:
        return {}, f"README.md: its YAML head is larger than {MAX_FRONT_MATTER_BYTES >> 10} KiB: ignored"
    try:
        values = yaml.load(head, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError) as e:
        problem = getattr(e, "problem", None) or str(e) or type(e).__name__
        return {}, f"README.md: its YAML head cannot be read ({problem:.100}): ignored"
    if not isinstance(values, dict):
        return {}, None if not values else "README.md: its YAML head is no list of keys: ignored"
    return {key: value for key, value in values.items() if isinstance(key, str)}, None
