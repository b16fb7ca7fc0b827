"""What a tensor of a GGUF file is, by its name: role and place, as the table of tensors has them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pyvllama.conversion.policy import Layer, Role
from pyvllama.conversion.tensor_map import TABLE

__all__ = ["Placed", "place_tensors"]

_PATTERNS = [(re.compile(re.sub(r"\\{\w+\\}", r"(\\d+)", re.escape(row.gguf))), row) for row in TABLE]


@dataclass(frozen=True)
class Placed:
    """A tensor's role and the layer it stands in."""

    role: Role
    layer: Layer


def place_tensors(names: Iterable[str], *, n_self: int, n_head: int, n_head_kv: int) -> dict[str, Placed]:
    """Role and layer of each tensor that the table knows; others (rope_freqs.weight, say) are left out.

    Args:
        names: of one file.
        n_self: self-attention layers of the text model.
        n_head, n_head_kv: its heads of queries, and of keys and values.
    """
    found = [(name, row, match) for name in names for pattern, row in _PATTERNS if (match := pattern.fullmatch(name))]
    indices: dict[str, set[int]] = {}
    for _, row, match in found:
        if row.kind:
            indices.setdefault(row.kind, set()).add(int(match[1]))
    order = {kind: sorted(layers) for kind, layers in indices.items()}
    n_gqa = max(1, n_head // max(1, n_head_kv))
    is_70b = n_self == 80 and n_gqa > 1

    def layer(kind: str, index: int) -> Layer:
        return Layer(order[kind].index(index), len(order[kind]), is_70b=is_70b, n_gqa=n_gqa)

    return {
        name: Placed(row.role, layer(row.kind, int(match[1])) if row.kind else Layer()) for name, row, match in found
    }
