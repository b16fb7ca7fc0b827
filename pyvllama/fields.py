"""Typed access to a JSON object whose keys are required by default."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pyvllama.errors import ConfigError

__all__ = ["Fields", "Triple", "as_mapping"]

T = TypeVar("T")
Triple = tuple[float, float, float]

MAX_COUNT = 1 << 24
"""No size in a config.json of today comes near it."""


def as_mapping(value: Any, key: str, where: str) -> Mapping[str, Any]:
    """`value`, if it is a JSON object.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {key} is {value!r}, but it must be an object")
    return value


class Fields:
    """Typed access to a JSON object that is required by default.

    A missing key yields a stand-in and is noted; `build` then raises one ConfigError that lists all of them.
    """

    def __init__(self, values: Mapping[str, Any], where: str, missing: list[str] | None = None) -> None:
        self.values = values
        self.where = where
        self.missing: list[str] = [] if missing is None else missing

    def build(self, make: Callable[[], T]) -> T:
        """What `make` reads; raises one ConfigError that lists all keys it missed."""
        result = make()
        if self.missing:
            raise ConfigError(f"{self.where}: missing {', '.join(dict.fromkeys(self.missing))}")
        return result

    def refuse(self, key: str, value: Any, supported: str) -> NoReturn:
        """Raise the ConfigError of an unsupported value."""
        raise ConfigError(f"{self.where}: {key} = {value!r} is not supported; it must be {supported}")

    def divides(self, small_key: str, small: int, big_key: str, big: int) -> None:
        """Refuse a `big` that is no multiple of `small`."""
        if big % small:
            self.refuse(big_key, big, f"a multiple of {small_key} = {small}")

    def require_value(self, key: str, supported: tuple[Any, ...], *, default: Any) -> None:
        """Refuse any other value than the supported ones; a missing key counts as `default`."""
        if (value := self.values.get(key, default)) not in supported:
            self.refuse(key, value, " or ".join(map(repr, supported)))

    def optional(self, key: str, default: Any) -> Any:
        """The value as it is, or `default`."""
        return self.values.get(key, default)

    def required(self, key: str, *aliases: str) -> Any:
        """The value under the key or one of its aliases; None, and noted, if there is none."""
        for name in (key, *aliases):
            if self.values.get(name) is not None:
                return self.values[name]
        self.missing.append(key)
        return None

    def whole(self, key: str, *aliases: str) -> int:
        """An int of at least 0."""
        return self._int(key, self.required(key, *aliases), least=0)

    def count(self, key: str, *aliases: str, most: int = MAX_COUNT) -> int:
        """An int from 1 to `most`: a size that memory will be taken for."""
        value = self.required(key, *aliases)
        return 1 if value is None else self._int(key, value, least=1, most=most)

    def number(self, key: str) -> float:
        """A finite float."""
        value = self.required(key)
        return 1.0 if value is None else self._float(key, value)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A JSON object."""
        value = self.required(key)
        return {} if value is None else as_mapping(value, key, self.where)

    def indices(self, key: str) -> tuple[int, ...]:
        """A list of ints of at least 0."""
        return tuple(self._int(key, x, least=0) for x in self._list(key))

    def pairs(self, key: str) -> tuple[tuple[int, int], ...]:
        """A list of pairs of ints of at least 1."""
        pairs = self._list(key)
        if any(not isinstance(x, Sequence) or len(x) != 2 for x in pairs):
            self.refuse(key, pairs, "a list of pairs")
        return tuple((self._int(key, x[0], least=1), self._int(key, x[1], least=1)) for x in pairs)

    def triple(self, key: str) -> Triple:
        """Three finite floats."""
        values = [self._float(key, x) for x in self._list(key)]
        if key in self.missing:
            return (1.0, 1.0, 1.0)
        if len(values) != 3:
            self.refuse(key, values, "three numbers")
        return (values[0], values[1], values[2])

    def token_id(self, key: str) -> int | None:
        """A token id, or the first of a list; None without the key."""
        ids = self.token_ids(key)
        return ids[0] if ids else None

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them, as a tuple; empty without the key."""
        value = self.optional(key, None)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        return tuple(self._int(key, x, least=0) for x in ids)

    def _list(self, key: str) -> list[Any]:
        value = self.required(key)
        if value is None:
            return []
        if not isinstance(value, (list, tuple)):
            self.refuse(key, value, "a list")
        return list(value)

    def _int(self, key: str, value: Any, *, least: int, most: int = 2**63 - 1) -> int:
        if value is None:
            return least
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(key, value, f"a whole number of at least {least} and at most {most}")
        return int(value)

    def _float(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            self.refuse(key, value, "a finite number")
        return float(value)
