"""What the bodies of `/v1/chat/completions` and `/v1/completions` share: several choices, streamed or not."""

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from pyvllama.server.openai.tools import ResponseFormat
from pyvllama.server.openai.wire import AS_WHOLE, Said, SamplingFields, Stop, as_json

__all__ = ["MAX_CHOICES", "ChoicesRequest"]

MAX_CHOICES = 128
"""Of a request, OpenAI's limit."""


class StreamOptions(Said):
    """What a stream has beside the answer."""

    include_usage: bool | None = Field(None, description="A last chunk without choices has the `usage`.")


class ChoicesRequest(SamplingFields):
    """How many answers, how they end and what they look like."""

    stream_options: StreamOptions | None = Field(None, description="With stream only.")
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES), AS_WHOLE] | None = Field(
        None, description="How many answers to each prompt; with a seed the i-th has seed + i."
    )
    stop: Stop | None = Field(None, description="The answer ends before the first of these strings.")
    response_format: ResponseFormat | None = Field(None, description="JSON, of a schema or any.")

    @field_validator("stream_options")
    @classmethod
    def _with_stream_only(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("it is only allowed when stream is true")
        return value

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def choices(self) -> dict[str, Any]:
        """These fields and those of `sampling`, for `ChatOptions.from_options`."""
        return {
            **self.sampling(),
            "n": self.n or 1,
            "stop": self.stop or None,
            "response_format": None if self.response_format is None else as_json(self.response_format),
        }
