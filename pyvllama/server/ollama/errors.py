"""Whatever goes wrong, in Ollama's shape: `{"error": "words"}`."""

from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from pyvllama.errors import VllamaError
from pyvllama.server.error_response import error_response
from pyvllama.server.errors import status_of
from pyvllama.server.ollama.responses import ErrorResponse
from pyvllama.server.openai.events import log_unless_ours
from pyvllama.server.validation import validation_message

__all__ = ["ERRORS", "OllamaError", "error_line", "not_found", "ollama_error"]

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorResponse, "description": "The request is wrong, or there is no such model."},
    "5XX": {"model": ErrorResponse, "description": "The server failed, or is closing."},
}
"""The `responses` of a route."""

_PATH = "/api/"  # of all that is answered in this shape
_MAX_SHOWN = 200  # characters of a client's own words


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
    """The answer to a request that failed; an error that is none of ours is told in no detail."""
    if isinstance(error, RequestValidationError):
        return error_response(_PATH, 400, validation_message(error.errors(), error.body)[0])
    if isinstance(error, HTTPException):
        return error_response(_PATH, error.status_code, str(error.detail), headers=error.headers)
    status = status_of(error)
    message = str(error) if isinstance(error, VllamaError) else "the server failed; its log tells more"
    return error_response(_PATH, status.http, message, retry_after_s=status.retry_after_s)


def error_line(error: Exception) -> bytes:
    """The last line of a stream that failed on its way; what the client is not told, the log has."""
    log_unless_ours(error)
    return bytes(ollama_error(error).body) + b"\n"
