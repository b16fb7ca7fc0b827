"""The body of `/v1/responses`, and the conversation that it is."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator

from pyvllama.server.openai.chat_request import Detail, RefusalPart
from pyvllama.server.openai.tools import Function, JSONObjectFormat, JSONSchema, TextFormat, Tool
from pyvllama.server.openai.wire import AS_WHOLE, MaxTokens, Said, SamplingFields, Text, as_json

__all__ = ["ResponseRequest"]


class InputText(Said):
    """Text of a message; `output_text` is what an answer said."""

    type: Literal["input_text", "output_text"]
    text: str


class InputImage(Said):
    """A picture of a message."""

    type: Literal["input_image"]
    image_url: Text = Field(
        description="A data: URI, or an http(s) address; a path below --media-path where that is set."
    )
    detail: Detail | Literal["original"] | None = Field(
        None, description="Has no effect: every picture is seen in full detail."
    )


Part = Annotated[InputText | InputImage | RefusalPart, Field(discriminator="type")]


class Message(Said):
    """What somebody said; the output of an earlier response is one, too."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | Annotated[list[Part], Field(min_length=1)]


class FunctionCallItem(Said):
    """A call that an earlier response made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionOutputItem(Said):
    """What a function answered."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[list[InputText], Field(min_length=1)]


class ReasoningItem(Said):
    """Thoughts of another model; left away."""

    type: Literal["reasoning"]


def _type(item: Any) -> Any:
    return item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)


Item = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_type),
]


class FunctionTool(Function):
    """A function that can be called."""

    type: Literal["function"]


class NamedFunction(Said):
    """The function that must be called."""

    type: Literal["function"]
    name: Text


class JSONSchemaFormat(JSONSchema):
    """JSON of a schema."""

    type: Literal["json_schema"]


class TextConfig(Said):
    """What the answer looks like."""

    format: Annotated[TextFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")] | None = None


class ResponseRequest(SamplingFields):
    """An input to be answered."""

    input: Text | Annotated[list[Item], Field(min_length=1)] = Field(
        description="What the user says, or the whole conversation."
    )
    instructions: str | None = Field(None, description="The system message.")
    max_output_tokens: MaxTokens = Field(
        None, description="Tokens to generate at most; null: until the context is full."
    )
    text: TextConfig | None = Field(None, description="JSON, of a schema or any.")
    tools: list[FunctionTool] | None = Field(None, description="Functions that may be called, one at a time.")
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = Field(
        None, description="Whether one must be called, and which; auto where there are tools."
    )
    top_logprobs: Annotated[int, Field(ge=0, le=20), AS_WHOLE] | None = Field(
        None, description="Log-probabilities of so many of the likeliest tokens at each place."
    )
    include: list[str] | None = Field(
        None, description="`message.output_text.logprobs`: the log-probabilities of the answer's tokens."
    )
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="auto: leave the oldest turns away if the input would not fit into the context otherwise."
    )
    metadata: dict[str, str] | None = Field(None, description="Given back as it is.")
    parallel_tool_calls: bool | None = Field(None, description="Has no effect: an answer makes one call at most.")
    store: bool | None = Field(None, description="Has no effect: nothing is kept.")
    previous_response_id: None = Field(
        None, description="Refused: nothing is kept, the whole conversation belongs into `input`."
    )
    conversation: None = Field(None, description="Refused, as previous_response_id.")
    prompt: None = Field(None, description="Refused: no prompts are kept here.")
    background: Literal[False] | None = Field(
        None, description="Refused: nothing is kept that could be asked for later."
    )

    @field_validator("previous_response_id", "conversation", "prompt", "background", mode="before")
    @classmethod
    def _nothing_is_kept(cls, value: Any, info: ValidationInfo) -> Any:
        if value not in (None, False):
            raise ValueError(f"{_REFUSED[info.field_name or '']}")
        return value

    @property
    def with_logprobs(self) -> bool:
        """Whether the answer's log-probabilities were asked for."""
        return "message.output_text.logprobs" in (self.include or ()) or bool(self.top_logprobs)

    def options(self) -> dict[str, Any]:
        """For `ChatOptions.from_options`."""
        choice = self.tool_choice
        return {
            **self.sampling(),
            "max_tokens": None if self.max_output_tokens == -1 else self.max_output_tokens,
            "logprobs": self.with_logprobs,
            "top_logprobs": (self.top_logprobs or 0) if self.with_logprobs else None,
            "response_format": self._response_format(),
            "tools": [as_json(_chat_tool(tool)) for tool in self.tools or ()] or None,
            "tool_choice": (
                {"type": "function", "function": {"name": choice.name}} if isinstance(choice, NamedFunction) else choice
            ),
        }

    def conversation_messages(self) -> list[dict[str, Any]]:
        """The messages for `build_prompt`."""
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        if isinstance(self.input, str):
            return [*messages, {"role": "user", "content": self.input}]
        return [*messages, *(_message(item) for item in self.input if not isinstance(item, ReasoningItem))]

    def _response_format(self) -> dict[str, Any] | None:
        form = self.text.format if self.text is not None else None
        if form is None:
            return None
        if isinstance(form, JSONSchemaFormat):
            return {"type": "json_schema", "json_schema": {"schema": form.schema_}}
        return as_json(form)


_REFUSED = {
    "previous_response_id": "responses are not kept here: send the whole conversation as input",
    "conversation": "conversations are not kept here: send the whole conversation as input",
    "prompt": "prompts are not kept here: send the text as instructions and input",
    "background": "responses are not kept here, so none can be asked for later: use stream",
}


def _chat_tool(tool: FunctionTool) -> Tool:
    return Tool(type="function", function=Function(**tool.model_dump(exclude={"type"})))


def _message(item: Any) -> dict[str, Any]:
    if isinstance(item, FunctionCallItem):
        call = {"name": item.name, "arguments": item.arguments}
        return {
            "role": "assistant",
            "tool_calls": [{"id": item.call_id, "type": "function", "function": call}],
        }
    if isinstance(item, FunctionOutputItem):
        return {"role": "tool", "tool_call_id": item.call_id, "content": _content(item.output)}
    return {"role": item.role, "content": _content(item.content)}


def _content(content: str | list[Any]) -> str | list[dict[str, Any]]:
    return content if isinstance(content, str) else [_part(part) for part in content]


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, InputImage):
        return {"type": "image_url", "image_url": {"url": part.image_url}}
    return {"type": "text", "text": part.refusal if isinstance(part, RefusalPart) else part.text}
