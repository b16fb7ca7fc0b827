"""What the OpenAPI document says of routes whose answer may be a stream."""

from typing import Any

from pydantic import BaseModel

from pyvllama.server.openai.errors import ERRORS, ErrorAnswer

__all__ = ["streamed"]


def streamed(
    piece: type[BaseModel], whole: str, events: str, *, ends_with_done: bool = True
) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that answers in JSON, or with stream in server-sent events.

    Args:
        piece: the data of an event.
        whole: what the JSON is, in words.
        events: what the events are.
        ends_with_done: whether `[DONE]` is the last of them.
    """
    schema = {"anyOf": [_inlined(piece), _inlined(ErrorAnswer)]}
    json = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    data = {"anyOf": [json, {"const": "[DONE]"}]} if ends_with_done else json
    item = {"type": "object", "properties": {"event": {"type": "string"}, "data": data}, "required": ["data"]}
    content = {"text/event-stream": {"itemSchema": item}}  # OpenAPI 3.2's word, which FastAPI writes into 3.1 as well
    return {200: {"description": f"{whole} With stream: {events}", "content": content}, **ERRORS}


def _inlined(model: type[BaseModel]) -> Any:
    """A model's JSON Schema without references: a place inside of a media type cannot have definitions."""
    schema = model.model_json_schema(mode="serialization")
    definitions = schema.pop("$defs", {})

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "$ref" in value:
            return resolved(definitions[value["$ref"].rpartition("/")[2]])
        return {key: resolved(item) for key, item in value.items()}

    return resolved(schema)
