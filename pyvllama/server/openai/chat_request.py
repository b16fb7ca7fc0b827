"""The body of `/v1/chat/completions`."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field

from pyvllama.server.openai.choices_request import ChoicesRequest
from pyvllama.server.openai.tools import Tool, ToolChoice, chosen_tools
from pyvllama.server.openai.wire import AS_WHOLE, MaxTokens, Said, Text, as_json

__all__ = ["ChatMessage", "ChatRequest", "read_conversation"]

Detail = Literal["auto", "low", "high"]


class TextPart(Said):
    """Text of a message."""

    type: Literal["text"]
    text: str


class RefusalPart(Said):
    """What an assistant said when it refused."""

    type: Literal["refusal"]
    refusal: str


class ImageURL(Said):
    """Where a picture is."""

    url: Text = Field(description="A data: URI, or an http(s) address; a path below --media-path where that is set.")
    detail: Detail | None = Field(None, description="Has no effect: every picture is seen in full detail.")


class ImagePart(Said):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageURL | Text


Parts = Annotated[list[TextPart], Field(min_length=1)]
AssistantParts = Annotated[list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]], Field(min_length=1)]
UserParts = Annotated[list[Annotated[TextPart | ImagePart, Field(discriminator="type")]], Field(min_length=1)]


class SystemMessage(Said):
    """What holds for the whole conversation; `developer` is OpenAI's newer word."""

    role: Literal["system", "developer"]
    content: str | Parts
    name: str | None = None


class UserMessage(Said):
    """What the user said and showed."""

    role: Literal["user"]
    content: Text | UserParts
    name: str | None = None


class FunctionCall(Said):
    """A call of a function."""

    name: str
    arguments: str = Field(description="A JSON object, as text.")


class ToolCall(Said):
    """A call that the assistant made."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(Said):
    """What the model said before: text, or a call."""

    role: Literal["assistant"]
    content: str | AssistantParts | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    function_call: FunctionCall | None = Field(None, description="OpenAI's old form of a call.", deprecated=True)


class ToolMessage(Said):
    """What a function answered; `ipython` is Meta's word."""

    role: Literal["tool", "ipython"]
    content: str | Parts
    tool_call_id: str | None = None
    name: str | None = None


class FunctionMessage(Said):
    """What a function answered, in OpenAI's old form."""

    role: Literal["function"]
    name: str
    content: str


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage | FunctionMessage, Field(discriminator="role")
]


class ChatRequest(ChoicesRequest):
    """A conversation to be answered."""

    messages: list[ChatMessage] = Field(min_length=1, description="What was said and shown so far.")
    max_completion_tokens: MaxTokens = Field(
        None, description="Tokens to generate at most; -1 and null: until the context is full."
    )
    max_tokens: MaxTokens = Field(None, description="OpenAI's old name of max_completion_tokens, which goes first.")
    logprobs: bool | None = Field(None, description="Log-probabilities of the answer's tokens.")
    top_logprobs: Annotated[int, Field(ge=0, le=20), AS_WHOLE] | None = Field(
        None, description="And those of so many of the likeliest tokens at each place; needs logprobs."
    )
    tools: list[Tool] | None = Field(None, description="Functions that may be called, one at a time.")
    tool_choice: ToolChoice | None = Field(
        None, description="Whether one must be called, and which; auto where there are tools."
    )
    context_shift: bool | None = Field(
        None, description="Leave the oldest turns away if the conversation would not fit into the context otherwise."
    )

    def options(self) -> dict[str, Any]:
        """For `ChatOptions.from_options`."""
        limit = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return {
            **self.choices(),
            **chosen_tools(self.tools, self.tool_choice),
            "max_tokens": None if limit == -1 else limit,
            "logprobs": bool(self.logprobs),
            "top_logprobs": self.top_logprobs,
        }


def read_conversation(messages: Iterable[ChatMessage]) -> list[dict[str, Any]]:
    """The messages for `build_prompt`: OpenAI's shape of today, and nothing in it that was not asked for."""
    return [_as_of_today(as_json(message)) for message in messages]


def _as_of_today(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] == "function":
        message["role"] = "tool"
    if (call := message.pop("function_call", None)) is not None:
        message.setdefault("tool_calls", [{"type": "function", "function": call}])
    if isinstance(message.get("content"), list):
        message["content"] = [
            {"type": "text", "text": part["refusal"]} if part["type"] == "refusal" else part
            for part in message["content"]
        ]
    return message
