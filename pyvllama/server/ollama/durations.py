"""Times as Ollama writes them: Go's durations in, nanoseconds and RFC 3339 out."""

import math
import re
from datetime import datetime, timedelta, timezone

from pyvllama.errors import ConfigError

__all__ = ["DURATION", "FOREVER", "FOREVER_S", "duration_s", "ns_of_ms", "ns_of_s", "rfc3339"]

_UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = rf"(\d+(?:\.\d*)?|\.\d+)({'|'.join(sorted(_UNITS_S, key=len, reverse=True))})"  # one way to read each: linear
DURATION = rf"^[+-]?(({_PART})+|\d+(\.\d+)?)$"
"""What a duration may look like: Go's `1h30m`, `5m`, `-1s`; and a bare number of seconds."""

FOREVER_S = math.inf
"""A duration that does not end."""
_LONGEST_S = 1e9
FOREVER = timedelta(microseconds=(2**63 - 1) // 1000)
"""How Ollama shows it: Go's longest duration, 292 years."""


def duration_s(value: float | str | None) -> float | None:
    """`keep_alive` in seconds; FOREVER_S for negative ones and those of decades, None if it was not given.

    Args:
        value: seconds, or a text that `DURATION` describes.

    Raises:
        ConfigError: it is none.
    """
    if value is None:
        return None
    seconds = _parse(value) if isinstance(value, str) else float(value)
    return seconds if 0 <= seconds <= _LONGEST_S else FOREVER_S


def _parse(text: str) -> float:
    if re.fullmatch(DURATION, text, re.ASCII) is None:
        raise ConfigError(f'keep_alive is {text!r:.80}: give seconds, or a duration such as "5m", "1h30m" or "-1"')
    sign = -1.0 if text.startswith("-") else 1.0
    bare = text.lstrip("+-")
    if bare[-1].isdigit():
        return sign * float(bare)
    return sign * sum(float(n) * _UNITS_S[unit] for n, unit in re.findall(_PART, bare))


def ns_of_ms(ms: float) -> int:
    """Milliseconds in whole nanoseconds."""
    return round(ms * 1e6)


def ns_of_s(s: float) -> int:
    """Seconds in whole nanoseconds."""
    return round(s * 1e9)


def rfc3339(time: datetime) -> str:
    """A time in UTC as `2026-11-23T05:10:00.123456Z`."""
    return time.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
