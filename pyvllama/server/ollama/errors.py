"""Whatever goes wrong, in Ollama's shape: `{"error": "words"}`."""

import logging
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from pyvllama.errors import VllamaError
from pyvllama.server.errors import status_of
from pyvllama.server.ollama.responses import ErrorResponse
from pyvllama.tokenizer import well_formed

__all__ = ["ERRORS", "OllamaError", "error_line", "not_found", "ollama_error"]

logger = logging.getLogger("pyvllama")

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request is wrong, or there is no such model."},
    "5XX": {"model": ErrorResponse, "description": "The server failed, or is closing."},
}
"""The `responses` of a route."""

_MAX_SHOWN = 200  # characters of a client's own words
_MAX_PROBLEMS = 3


class OllamaError(HTTPException):
    """A refusal in Ollama's own words.

    Args:
        status: HTTP status.
        message: what is wrong and what to do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)


def not_found(name: str) -> OllamaError:
    """What Ollama says of a model that it does not have; clients look for these words."""
    return OllamaError(404, f'model "{name:.{_MAX_SHOWN}}" not found, try pulling it first')


def ollama_error(error: Exception) -> JSONResponse:
    """The answer to a request that failed. What is no error of ours is logged, and told in no detail."""
    if isinstance(error, RequestValidationError):
        return _response(400, _problems(error))
    if isinstance(error, HTTPException):
        return _response(error.status_code, str(error.detail), dict(error.headers or {}))
    if not isinstance(error, VllamaError):
        logger.error("a request to Ollama's API failed", exc_info=error)
        return _response(500, "internal error: the server's log says more")
    status = status_of(error)
    headers = {} if status.retry_after_s is None else {"Retry-After": str(status.retry_after_s)}
    return _response(status.http, str(error), headers)


def error_line(error: Exception) -> bytes:
    """The last line of a stream that failed on its way."""
    return bytes(ollama_error(error).body) + b"\n"


def _response(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": well_formed(message)}, status, headers)


def _problems(error: RequestValidationError) -> str:
    """What is wrong with a request, each problem with its field."""
    found = list(dict.fromkeys(_problem(e) for e in error.errors()))
    more = f"; and {len(found) - _MAX_PROBLEMS} more" if len(found) > _MAX_PROBLEMS else ""
    return "; ".join(found[:_MAX_PROBLEMS]) + more


def _problem(error: Any) -> str:
    if error["type"] == "json_invalid":
        return f"the body is no valid JSON: {error.get('ctx', {}).get('error', error['msg'])}"
    field = ""
    for part in error["loc"][1:]:  # the first is "body"
        if isinstance(part, int):
            field += f"[{part}]"
        elif str(part).isidentifier():  # else the name of a union's member
            field += f".{part}" if field else str(part)
    if not field:
        return "missing request body" if error["type"] == "missing" else f"the body: {error['msg']}"
    return f"{field:.{_MAX_SHOWN}}: {error['msg']}"
