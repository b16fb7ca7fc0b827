"""Whatever goes wrong, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

import re
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from pyvllama.errors import ContextOverflow, ModelNotFound, VllamaError
from pyvllama.server.error_response import error_body, error_response
from pyvllama.server.errors import status_of
from pyvllama.server.validation import validation_message

__all__ = ["ERRORS", "ErrorAnswer", "InvalidRequest", "error_object", "openai_error"]


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="The field of the request that is wrong.")
    code: str | None


class ErrorAnswer(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorObject


class InvalidRequest(HTTPException):
    """A request that is well-formed but asks for what is not there.

    Args:
        message: what is wrong and what to do.
        param: the field.
        status: of the answer.
    """

    def __init__(self, message: str, param: str | None = None, *, status: int = 400) -> None:
        super().__init__(status, message)
        self.param = param


_MEANINGS = {
    400: "The request is wrong; `param` names the field.",
    401: "An API key is needed, or the one that was given is wrong.",
    404: "There is no such model.",
    413: "The request is too large.",
    429: "Too many requests wait already; `Retry-After` says when to try again.",
    500: "The computation failed.",
    503: "The server is closing or cannot load the model.",
    504: "The request took longer than the server allows.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    **{status: {"model": ErrorAnswer, "description": meaning} for status, meaning in _MEANINGS.items()},
    "default": {"model": ErrorAnswer, "description": "Anything else that goes wrong."},  # else FastAPI promises 422
}
"""The `responses` of a route."""

_PATH = "/v1/"  # of all that is answered in this shape
_FIELDS = (
    *("messages", "tools", "tool_choice", "response_format", "grammar", "logit_bias", "stop", "prompt", "n"),
    *("top_logprobs", "logprobs", "max_tokens", "seed", "temperature", "input"),
)
_FIRST_FIELD = re.compile(
    rf"^(?:llama\.cpp does not understand the )?((?:{'|'.join(_FIELDS)})(?:\[\d+\]|\.\w+)*)(?= |:|$)"
)


def openai_error(error: Exception) -> JSONResponse:
    """The answer to a request that failed: status, body, and Retry-After where it helps to wait."""
    status, message, more, headers = _described(error)
    return error_response(_PATH, status, message, **more, **headers)


def error_object(error: Exception) -> dict[str, Any]:
    """The `error` object alone, for a stream whose headers are sent."""
    status, message, more, _ = _described(error)
    found: dict[str, Any] = error_body(_PATH, status, message, **more)["error"]
    return found


def _described(error: Exception) -> tuple[int, str, dict[str, Any], dict[str, Any]]:
    """(status, message, what else the body has, what the headers have), as `error_response` takes them."""
    if isinstance(error, RequestValidationError):
        message, param = validation_message(error.errors(), error.body)
        return 400, message, {"param": param}, {}
    if isinstance(error, HTTPException):
        param = getattr(error, "param", None)
        return error.status_code, str(error.detail), {"param": param}, {"headers": error.headers}
    status = status_of(error)
    message = str(error) if isinstance(error, VllamaError) else "something went wrong here: the server's log has more"
    more = {"kind": status.kind, "code": status.code, "param": _param_of(error)}
    return status.http, message, more, {"retry_after_s": status.retry_after_s}


def _param_of(error: Exception) -> str | None:
    """The field that an error of ours names first."""
    if isinstance(error, ModelNotFound):
        return "model"
    if found := _FIRST_FIELD.match(str(error)):
        return found.group(1)
    return "messages" if isinstance(error, ContextOverflow) else None
