"""What an error means to a client, whichever API it speaks."""

import math
from dataclasses import dataclass

from pyvllama.errors import (
    BackendError,
    Cancelled,
    ConfigError,
    ContextOverflow,
    DeadlineExceeded,
    ImageError,
    ImageTooLarge,
    ModelNotFound,
    PromptError,
    QueueFull,
    VllamaError,
)

__all__ = ["Status", "status_of"]


@dataclass(frozen=True)
class Status:
    """How an error is answered.

    Attributes:
        http: the status.
        kind: OpenAI's `type`.
        code: OpenAI's `code`, if it has one for this.
        retry_after_s: for the header Retry-After.
    """

    http: int
    kind: str
    code: str | None = None
    retry_after_s: int | None = None


# The first class that fits.
_STATUS: tuple[tuple[type[VllamaError], Status], ...] = (
    (ContextOverflow, Status(400, "invalid_request_error", "context_length_exceeded")),
    (PromptError, Status(400, "invalid_request_error")),
    (ImageTooLarge, Status(400, "invalid_request_error", "image_too_large")),
    (ImageError, Status(400, "invalid_request_error", "invalid_image")),
    (ConfigError, Status(400, "invalid_request_error")),
    (ModelNotFound, Status(404, "invalid_request_error", "model_not_found")),
    (QueueFull, Status(429, "rate_limit_error", "rate_limit_exceeded", 1)),
    (DeadlineExceeded, Status(504, "timeout_error", "timeout")),
    (Cancelled, Status(503, "server_error", "cancelled")),
    (BackendError, Status(500, "server_error")),
)
_OTHERS = Status(500, "server_error")


def status_of(error: Exception) -> Status:
    """The status of an error; what is none of ours is an internal one."""
    found = next((status for kind, status in _STATUS if isinstance(error, kind)), _OTHERS)
    wait_s = getattr(error, "retry_after_s", None)
    if wait_s is not None:
        return Status(found.http, found.kind, found.code, max(1, math.ceil(wait_s)))
    return found
