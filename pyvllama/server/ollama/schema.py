"""Requests of Ollama's API, as its documentation and its Go types have them (api/types.go, version 0.24).

What Ollama ignores is ignored: unknown fields, and `null` stands for what was not given. What it refuses is refused: a
string where a number should be. Two leniencies of clients that it shares are kept: a whole number may be written with a
fraction (`8192.0`), and `stop` may be one string.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pyvllama.server.ollama.durations import DURATION

__all__ = [
    "ChatRequest",
    "DeleteRequest",
    "GenerateRequest",
    "Message",
    "Options",
    "PullRequest",
    "Request",
    "ShowRequest",
    "Tool",
    "ToolCall",
    "ToolCallFunction",
]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Int = Annotated[int, BeforeValidator(_whole)]
Role = Literal["system", "user", "assistant", "tool", "developer", "ipython"]


class Request(BaseModel):
    """What all requests have in common: exact types, finite numbers, unknown fields ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class ToolCallFunction(Request):
    """A function and what it is called with."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict, description="An object; not JSON text as in OpenAI's API.")
    index: Int | None = None


class ToolCall(Request):
    """A call that the model made in an earlier turn."""

    id: str | None = None
    function: ToolCallFunction


class Message(Request):
    """A message of a conversation."""

    role: Annotated[Role, BeforeValidator(_lower)]
    content: str | None = ""
    images: list[str] | None = Field(
        default=None, description="Pictures in base64, with or without `data:...;base64,`."
    )
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = Field(default=None, description="Of a tool's answer: which tool.")
    tool_call_id: str | None = None
    thinking: str | None = Field(default=None, description="Ignored: the model does not think aloud.")


class ToolFunction(Request):
    """What a tool is called, what it does, what it takes."""

    model_config = ConfigDict(extra="allow")

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(default=None, description="A JSON schema.")


class Tool(Request):
    """A tool that the model may call."""

    model_config = ConfigDict(extra="allow")

    type: str | None = "function"
    function: ToolFunction


class Options(Request):
    """How tokens are chosen. Values out of range are moved to its edge, as Ollama does; others' options are ignored."""

    num_predict: Int | None = Field(
        default=None, description="Tokens to generate at most; 0 or less: until the model ends."
    )
    temperature: float | None = None
    top_k: Int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = Field(default=None, description="1 is off; so is 0 or less.")
    repeat_last_n: Int | None = Field(default=None, description="-1: all of the context.")
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Int | None = Field(default=None, description="Negative: another answer each time.")
    stop: Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=list[str] | str)] | None = None
    num_ctx: Int | None = Field(default=None, description="Ignored: the server's --ctx-size counts.")


Format = Literal["", "json"] | dict[str, Any]
KeepAlive = float | Annotated[str, Field(pattern=DURATION)]


class Inference(Request):
    """What chat and generate have in common."""

    model: str
    stream: bool | None = True
    format: Format | None = Field(default=None, description='"json", or a JSON schema.')
    options: Options | None = None
    keep_alive: KeepAlive | None = Field(
        default=None,
        description='How long the model stays loaded: seconds, or "5m", "1h30m"; negative: for ever; 0: not at all.',
        examples=["5m", 300, -1],
    )
    think: bool | str | None = Field(default=None, description="Ignored: the model does not think aloud.")
    logprobs: bool | None = False
    top_logprobs: Annotated[int, BeforeValidator(_whole), Field(ge=0, le=20)] | None = Field(
        default=None, description="Counts with logprobs only."
    )
    truncate: bool | None = Field(
        default=True, description="Leave the oldest turns away where a conversation does not fit into the context."
    )


class ChatRequest(Inference):
    """`POST /api/chat`."""

    messages: list[Message] | None = Field(
        default=None, description="None, or an empty list: load the model, or with keep_alive 0 unload it."
    )
    tools: list[Tool] | None = None


class GenerateRequest(Inference):
    """`POST /api/generate`."""

    prompt: str | None = Field(default="", description="Empty: load the model, or with keep_alive 0 unload it.")
    images: list[str] | None = Field(
        default=None, description="Pictures in base64, with or without `data:...;base64,`."
    )
    system: str | None = ""
    raw: bool | None = Field(default=False, description="The prompt as it is, without the chat template.")
    context: list[Int] | None = Field(
        default=None,
        description="Token ids that an earlier answer came with: its conversation goes on.",
        json_schema_extra={"deprecated": True},
    )
    suffix: str | None = Field(default="", description="Refused: this model cannot fill in.")
    template: str | None = Field(default="", description="Refused: it would be in Go's language.")


class Named(Request):
    """A request about a model; `name` is the older word for `model`."""

    model: str | None = None
    name: str | None = Field(default=None, json_schema_extra={"deprecated": True})

    @property
    def wanted(self) -> str:
        """The name that was given, "" if none was."""
        return self.model or self.name or ""


class ShowRequest(Named):
    """`POST /api/show`."""

    verbose: bool | None = Field(
        default=False, description="With long arrays, such as the vocabulary, and the tensors."
    )


class PullRequest(Named):
    """`POST /api/pull`."""

    stream: bool | None = True


class DeleteRequest(Named):
    """`DELETE /api/delete`."""
