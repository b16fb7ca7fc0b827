"""Functions that an answer may call, and what it may look like: the fields of chat and of responses, as one option."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from pyvllama.server.openai.wire import JSONObject, Said, as_json

__all__ = [
    "AllowedTools",
    "Function",
    "JSONObjectFormat",
    "JSONSchema",
    "NamedTool",
    "ResponseFormat",
    "TextFormat",
    "Tool",
    "ToolChoice",
    "chosen_tools",
]

_FunctionName = Annotated[str, Field(min_length=1, max_length=256)]


class Function(Said):
    """A function that can be called."""

    name: _FunctionName
    description: str | None = None
    parameters: JSONObject | None = Field(None, description="JSON Schema of its arguments, an object.")
    strict: bool | None = Field(None, description="A call always follows the schema here.")


class Tool(Said):
    """OpenAI's description of a function."""

    type: Literal["function"]
    function: Function


class FunctionName(Said):
    """One of the functions."""

    name: _FunctionName


class NamedTool(Said):
    """The function that must be called."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Said):
    """Those of the tools that may or must be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1)


class AllowedToolsChoice(Said):
    """Those of the tools that may or must be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = (
    Literal["none", "auto", "required"] | Annotated[NamedTool | AllowedToolsChoice, Field(discriminator="type")]
)


class TextFormat(Said):
    """Any text."""

    type: Literal["text"]


class JSONObjectFormat(Said):
    """A JSON object."""

    type: Literal["json_object"]
    schema_: JSONObject | None = Field(None, alias="schema", description="JSON Schema. (llama-server's)")


class JSONSchema(Said):
    """A named JSON Schema."""

    name: str | None = None
    description: str | None = None
    schema_: JSONObject = Field(alias="schema")
    strict: bool | None = Field(None, description="The answer always follows the schema here.")


class JSONSchemaFormat(Said):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: JSONSchema


ResponseFormat = Annotated[TextFormat | JSONObjectFormat | JSONSchemaFormat, Field(discriminator="type")]


def chosen_tools(tools: Sequence[Tool] | None, choice: Any) -> dict[str, Any]:
    """The options `tools` and `tool_choice` of `ChatOptions`, in OpenAI's chat shape.

    With `allowed_tools` the model is told of those alone.
    """
    said = [as_json(tool) for tool in tools or ()]
    if isinstance(choice, AllowedToolsChoice):
        allowed = {tool.function.name for tool in choice.allowed_tools.tools}
        said = [tool for tool in said if tool["function"]["name"] in allowed]
        return {"tools": said or None, "tool_choice": choice.allowed_tools.mode}
    return {"tools": said or None, "tool_choice": as_json(choice) if isinstance(choice, NamedTool) else choice}
