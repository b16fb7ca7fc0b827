"""All models that are kept on this machine: converted or imported ones in our cache, pairs in the Hub's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from pyvllama.errors import ModelNotFound
from pyvllama.file_names import parse_file_name
from pyvllama.hub_cache import HubPair, hub_pairs, remove_pairs
from pyvllama.model_cache import Entry, ModelCache
from pyvllama.types import Pair

__all__ = ["Item", "find_items", "inventory", "remove_items"]

_KINDS = {"checkpoint": "converted", "hub": "converted", "ollama": "imported"}


@dataclass(frozen=True)
class Item:
    """A model, wherever it is kept."""

    name: str
    """What `run`, `show` and `rm` take; no other item has it."""
    title: str
    """The same, perhaps shorter; several items may share it."""
    kind: str
    """converted, imported or pulled."""
    type: str | None
    """Of the text file."""
    source: str
    pair: Pair
    text_bytes: int
    mmproj_bytes: int
    used: datetime
    kept_in: Entry | tuple[HubPair, ...]
    """Pairs: the same files at several revisions of a repository, the one used last first."""

    def as_dict(self) -> dict[str, Any]:
        """A JSON object; sizes in bytes, the time in ISO 8601."""
        return {
            "name": self.name,
            "kind": self.kind,
            "type": self.type,
            "source": self.source,
            "text": str(self.pair.text),
            "mmproj": str(self.pair.mmproj),
            "text_bytes": self.text_bytes,
            "mmproj_bytes": self.mmproj_bytes,
            "used": self.used.isoformat(timespec="seconds"),
        }


def inventory() -> list[Item]:
    """All of them, the one used last first."""
    own = [_of_entry(entry) for entry in ModelCache().entries()]
    by_path: dict[tuple[str, str], list[HubPair]] = {}
    for pair in hub_pairs():
        by_path.setdefault((pair.repo_id, pair.path), []).append(pair)
    items = [*own, *map(_of_pairs, by_path.values())]
    titles = Counter(item.title for item in items)
    items = [replace(item, name=item.title) if titles[item.title] == 1 else item for item in items]
    return sorted(items, key=lambda item: item.used, reverse=True)


def find_items(names: Sequence[str]) -> list[Item]:
    """The items of these names; of the Hub also by `user/repo`, if there is one of them.

    Raises:
        ModelNotFound: a name that no item has, or several have; nothing is guessed.
    """
    items = inventory()
    chosen: list[Item] = []
    for name in names:
        found = [item for item in items if item.name == name] or [item for item in items if name == item.title]
        found = found or [i for i in items if isinstance(i.kept_in, tuple) and i.kept_in[0].repo_id == name]
        if not found:
            raise ModelNotFound(f"{name}: no model of that name is kept; `pyvllama list` shows those that are")
        if len(found) > 1:
            raise ModelNotFound(f"{name} may mean {' or '.join(i.name for i in found)}: name one of them")
        chosen += [found[0]] if found[0] not in chosen else []
    return chosen


def remove_items(items: Sequence[Item]) -> int:
    """Delete models from their caches. Returns the bytes that are free now.

    Raises:
        ConfigError: a file cannot be deleted, or is being made.
    """
    n_bytes = 0
    if pairs := [pair for item in items if isinstance(item.kept_in, tuple) for pair in item.kept_in]:
        n_bytes += remove_pairs(pairs)
    for item in items:
        if isinstance(item.kept_in, Entry):
            ModelCache(item.kept_in.folder.parent).remove(item.kept_in)
            n_bytes += item.text_bytes + item.mmproj_bytes
    return n_bytes


def _of_entry(entry: Entry) -> Item:
    recipe = entry.recipe
    source = f"ollama:{recipe.source}" if recipe.kind == "ollama" else recipe.source
    return Item(
        entry.id,
        recipe.title,
        _KINDS.get(recipe.kind, "converted"),
        parse_file_name(entry.pair.text).type,
        source,
        entry.pair,
        *entry.sizes,
        entry.used,
        entry,
    )


def _of_pairs(pairs: Sequence[HubPair]) -> Item:
    last = pairs[0]
    return Item(
        f"{last.repo_id}/{last.path}",
        f"{last.repo_id}:{last.type}" if last.type else last.repo_id,
        "pulled",
        last.type,
        f"{last.repo_id}@{last.commit[:8]}",
        last.pair,
        last.text_bytes,
        last.mmproj_bytes,
        datetime.fromtimestamp(last.used, timezone.utc),
        tuple(pairs),
    )
