"""What `/v1/responses` answers, for the OpenAPI document. `response_events` makes these objects."""

from typing import Any, Literal

from pydantic import Field

from pyvllama.server.openai.answers import LogprobEntry, Timings
from pyvllama.server.openai.wire import Answered, JSONObject

__all__ = ["ResponseEvent", "ResponseObject"]

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class OutputText(Answered):
    """What was said."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[LogprobEntry] | None = None


class OutputMessage(Answered):
    """A message of the model's."""

    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Status
    content: list[OutputText]


class OutputCall(Answered):
    """A call that the model asks for."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str = Field(description="A JSON object, as text.")
    status: Status


class InputDetails(Answered):
    """Where the prompt's tokens came from."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Answered):
    """Of the answer's tokens."""

    reasoning_tokens: int


class ResponseUsage(Answered):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseError(Answered):
    """Why a response failed."""

    code: str
    message: str


class IncompleteDetails(Answered):
    """Why a response is cut short."""

    reason: Literal["max_output_tokens"]


class ResponseObject(Answered):
    """A response."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Status
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: None
    store: Literal[False]
    temperature: float
    text: JSONObject
    tool_choice: JSONObject | str
    tools: list[JSONObject]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    usage: ResponseUsage | None
    timings: Timings | None = Field(None, description="Once the response has ended.")


class ResponseEvent(Answered):
    """An event of a stream: `response.created`, `response.output_text.delta`, ..., `response.completed`."""

    type: str
    sequence_number: int
