"""Errors in the words of the API that was asked: one place that picks the shape by the path."""

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from pyvllama.tokenizer import well_formed

__all__ = ["KINDS", "error_response", "is_ollama_path"]

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
