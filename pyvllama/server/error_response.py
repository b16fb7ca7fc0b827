"""Errors in the words of the API that was asked: the one place that knows both shapes, and picks by the path."""

import math
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from pyvllama.tokenizer import well_formed

__all__ = ["error_body", "error_response", "is_ollama_path"]

_OPENAI: dict[int, tuple[str, str | None]] = {  # OpenAI's `type` and `code` of an error by HTTP status
    400: ("invalid_request_error", None),
    401: ("authentication_error", "invalid_api_key"),
    403: ("permission_error", None),
    404: ("invalid_request_error", "not_found"),
    405: ("invalid_request_error", "method_not_allowed"),
    413: ("invalid_request_error", "request_too_large"),
    422: ("invalid_request_error", None),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    501: ("not_supported_error", "not_supported"),
    503: ("unavailable_error", None),
    504: ("timeout_error", "timeout"),
}
_OTHERS = ("server_error", None)


def is_ollama_path(path: str) -> bool:
    """Whether a path belongs to Ollama's API."""
    return path.startswith("/api/")


def error_body(
    path: str,
    status: int,
    message: str,
    *,
    kind: str | None = None,
    code: str | int | None = None,
    param: str | None = None,
) -> dict[str, Any]:
    """An error as the API of `path` has it: Ollama's `{"error": message}`, else OpenAI's object.

    Args:
        path: of the request.
        status: HTTP status.
        message: what is wrong and what to do.
        kind: OpenAI's `type`; None: the one of the status.
        code: OpenAI's `code`; None: the one of the status, if it has one.
        param: the field of the request that is wrong.
    """
    message = well_formed(message)  # a client's own words, quoted, can hold what UTF-8 cannot
    if is_ollama_path(path):
        return {"error": message}
    usual_kind, usual_code = _OPENAI.get(status, _OTHERS)
    param = None if param is None else well_formed(param)
    code = usual_code if code is None else code
    return {"error": {"message": message, "type": kind or usual_kind, "param": param, "code": code}}


def error_response(
    path: str,
    status: int,
    message: str,
    *,
    retry_after_s: float | None = None,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> JSONResponse:
    """The answer to a request that failed.

    Args:
        path, status, message, more: see `error_body`.
        retry_after_s: when it is worth to ask again.
        headers: of the answer.
    """
    given = dict(headers or {})
    if retry_after_s is not None:
        given["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    return JSONResponse(error_body(path, status, message, **more), status, given)
