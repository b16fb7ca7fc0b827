"""What pydantic found wrong with a request, in one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["validation_message"]

_BY_TAG = ("union_tag_invalid", "union_tag_not_found")  # an object whose `type` or `role` is none of ours


def validation_message(errors: Sequence[Mapping[str, Any]], body: Any) -> tuple[str, str | None]:
    """(message, field) of the first thing that is wrong.

    Where a field may be one of several things, pydantic says of each why it isn't it; the one that got furthest into
    the body is the one that was meant.

    Args:
        errors: of a RequestValidationError.
        body: of the same; tells which parts of a location are places in it, and which name alternatives.
    """
    if not errors:
        return "the request is not valid", None
    if errors[0]["type"] == "json_invalid":
        where = errors[0]["loc"][-1]
        return f"the body is no valid JSON: {errors[0].get('ctx', {}).get('error')} at character {where}", None
    first = errors[0]["loc"][:2]
    paths = [(_path(e, body), e) for e in errors if e["loc"][:2] == first]
    path, _ = max(paths, key=lambda pair: (len(pair[0]), pair[1]["type"] != "missing"))
    if not path:
        return "the body must be a JSON object, sent with Content-Type: application/json", None
    said = dict.fromkeys(_words(e) for other, e in paths if other == path)
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)[1:]
    return f"{field}: {', or '.join(said)}", field


def _words(error: Mapping[str, Any]) -> str:
    if error["type"] in _BY_TAG:
        tag, expected = error["ctx"].get("tag"), error["ctx"].get("expected_tags")
        return f"is {tag!r}, but must be one of {expected}" if tag is not None else "is required"
    if error["type"] == "missing":
        return "is required"
    words = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    return words[:1].lower() + words[1:]


def _path(error: Mapping[str, Any], body: Any) -> list[int | str]:
    """The places in the body (or the query) that a location of pydantic's goes through; the rest names alternatives."""
    loc = error["loc"]
    if loc[0] != "body":
        return [part for part in loc[1:] if not isinstance(part, int)] or [str(loc[0])]
    path: list[int | str] = []
    at = body
    for i, part in enumerate(loc[1:], 1):
        is_key = isinstance(at, Mapping) and part in at
        is_index = isinstance(at, list) and isinstance(part, int) and part < len(at)
        if is_key or is_index:
            path.append(part)
            at = at[part]
        elif error["type"] == "missing" and i == len(loc) - 1:
            path.append(part)
    if error["type"] in _BY_TAG and isinstance(at, Mapping):
        by = error["ctx"]["discriminator"].strip("'")
        path.append("type" if by.endswith("()") else by)
    return path
