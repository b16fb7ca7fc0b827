"""Errors in the words of the API that was asked: one place that picks the shape by the path."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import JSONResponse

from pyvllama.tokenizer import well_formed

__all__ = ["KINDS", "error_response", "is_ollama_path", "validation_message"]

KINDS = {  # OpenAI's `type` of an error by HTTP status
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}
_OTHERS = "server_error"


def is_ollama_path(path: str) -> bool:
    """Whether a path belongs to Ollama's API."""
    return path.startswith("/api/")


def error_response(
    path: str,
    status: int,
    message: str,
    *,
    kind: str | None = None,
    code: str | int | None = None,
    param: str | None = None,
    retry_after_s: float | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error as the API of `path` has it: Ollama's `{"error": message}`, else OpenAI's object.

    Args:
        path: of the request.
        status: HTTP status.
        message: what is wrong and what to do.
        kind: OpenAI's `type`; None: the one of the status.
        code: OpenAI's `code`.
        param: the field of the request that is wrong.
        retry_after_s: when it is worth to ask again.
        headers: more of them.
    """
    body: dict[str, Any]
    message = well_formed(message)  # a client's own words, quoted, can hold what UTF-8 cannot
    if is_ollama_path(path):
        body = {"error": message}
    else:
        found = kind or KINDS.get(status, _OTHERS)
        body = {"error": {"message": message, "type": found, "param": param, "code": code}}
    more = dict(headers or {})
    if retry_after_s is not None:
        more["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    return JSONResponse(body, status, more)


def validation_message(errors: Sequence[Mapping[str, Any]]) -> tuple[str, str | None]:
    """(one sentence, the first wrong field) of what pydantic found wrong with a request."""
    if not errors:
        return "the request is not valid", None
    said = []
    for error in errors[:3]:
        field = _field(error.get("loc", ()))
        text = str(error.get("msg", "is not valid"))
        if error.get("type") == "json_invalid":
            field, text = "", f"the body is no valid JSON: {dict(error.get('ctx') or {}).get('error', text)}"
        elif error.get("type") == "missing":
            text = "is required" if field else "a JSON body is required"
        said.append(f"{field}: {text}" if field else text)
    if len(errors) > len(said):
        said.append(f"and {len(errors) - len(said)} more")
    return "; ".join(said), _field(errors[0].get("loc", ())) or None


def _field(loc: Sequence[Any]) -> str:
    """`messages[0].content` of ("body", "messages", 0, "content"); without the names of a union's members."""
    name = ""
    for part in loc[1:] if loc and loc[0] in ("body", "query", "path", "header", "cookie") else loc:
        if isinstance(part, int):
            name += f"[{part}]" if name else ""  # a bare number is a position in the text, of broken JSON
        elif str(part).isidentifier() and not str(part)[0].isupper() and part not in _TYPE_NAMES:
            name += f".{part}" if name else str(part)
    return name


_TYPE_NAMES = frozenset({"str", "int", "float", "bool", "list", "dict", "none", "constrained"})
