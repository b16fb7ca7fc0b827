"""A plugin for `llm` (https://llm.datasette.io): chat with pictures from its command line and from its Python API.

Models: `pyvllama-pocket` (bundled); `pyvllama/NAME` for all that `pyvllama list` shows; and `pyvllama`, which takes any
model that `pyvllama run` takes by `-o model NAME`.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

import llm
from llm.parts import AttachmentPart, TextPart, ToolCallPart, ToolResultPart
from pydantic import Field

from pyvllama.errors import VllamaError
from pyvllama.inventory import inventory
from pyvllama.llm import LLM
from pyvllama.loading import load

__all__ = ["AsyncPyvllamaModel", "PyvllamaModel", "register_models"]

_LOADING_OPTIONS = ("model", "mmproj", "n_ctx", "n_threads", "n_gpu_layers")


class _Loaded:
    """The model that was used last: a second question needs no loading, and two never fill the memory."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # an LLM takes one call at a time
        self._key: tuple[Any, ...] | None = None
        self._model: LLM | None = None

    def get(self, options: dict[str, Any]) -> LLM:
        key = tuple(sorted(options.items()))
        if self._model is None or key != self._key:
            if self._model is not None:
                self._model.close()
                self._model = None
            self._model, self._key = load(**options), key
        return self._model


_loaded = _Loaded()


class _Options(llm.Options):  # type: ignore[misc]  # llm is not looked into
    max_tokens: int | None = Field(description="Tokens to generate at most", default=None)
    temperature: float | None = Field(description="0 always takes the likeliest token", default=None)
    top_p: float | None = Field(description="Nucleus of probability to choose from; 1 is off", default=None)
    top_k: int | None = Field(description="Likeliest tokens to choose from; 0 is off", default=None)
    min_p: float | None = Field(description="Least probability, relative to the likeliest token's", default=None)
    repeat_penalty: float | None = Field(description="Divides the logits of recent tokens; 1 is off", default=None)
    presence_penalty: float | None = Field(description="Taken from the logits of recent tokens, once", default=None)
    frequency_penalty: float | None = Field(description="The same, once per occurrence", default=None)
    seed: int | None = Field(description="Same seed, same answer", default=None)
    stop: str | None = Field(description="The answer ends before this text", default=None)
    n_ctx: int | None = Field(description="Positions of the context", default=None)
    n_threads: int | None = Field(description="CPU threads", default=None)
    n_gpu_layers: int | None = Field(description="Text layers on the GPU, -1 for all", default=None)


class _AnyModelOptions(_Options):
    model: str | None = Field(
        description="A GGUF file, a directory, user/repo[:QUANT] or ollama:NAME; left out: the pocket model",
        default=None,
    )
    mmproj: str | None = Field(description="The mmproj file, where it is not beside the model", default=None)


class _Named:
    """What both of `llm`'s kinds of model have here."""

    can_stream = True
    supports_schema = True
    supports_tools = True
    attachment_types: ClassVar[set[str]] = {"image/png", "image/jpeg", "image/webp", "image/gif"}
    Options = _Options

    def __init__(self, model_id: str, source: str | None = None, *, any_model: bool = False) -> None:
        self.model_id = model_id
        self.source = source
        if any_model:
            self.Options = _AnyModelOptions

    def __str__(self) -> str:
        return f"pyvllama: {self.model_id}"


class PyvllamaModel(_Named, llm.Model):  # type: ignore[misc]  # llm is not looked into
    """A model of pyvllama's for `llm`.

    Args:
        model_id: its name in `llm`.
        source: what `pyvllama.load` takes; None: the pocket model.
        any_model: whether the option `model` names the source.
    """

    def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> Iterator[str]:
        """Answer; called by `llm`. What pyvllama refuses becomes llm.ModelError, with the same words."""
        return _answer(self.source, prompt, response)


class AsyncPyvllamaModel(_Named, llm.AsyncModel):  # type: ignore[misc]  # llm is not looked into
    """The same for `llm`'s asynchronous interface; llama.cpp computes in a thread."""

    async def execute(self, prompt: Any, stream: bool, response: Any, conversation: Any) -> AsyncIterator[str]:
        """Answer; called by `llm`."""
        deltas = _answer(self.source, prompt, response)
        while (delta := await asyncio.to_thread(next, deltas, None)) is not None:
            yield delta


@llm.hookimpl  # type: ignore[untyped-decorator]
def register_models(register: Callable[..., None]) -> None:
    """Called by `llm`."""
    for args in [("pyvllama-pocket",), *((f"pyvllama/{item.name}", item.name) for item in inventory())]:
        register(PyvllamaModel(*args), AsyncPyvllamaModel(*args))
    register(PyvllamaModel("pyvllama", any_model=True), AsyncPyvllamaModel("pyvllama", any_model=True))


def _answer(source: str | None, prompt: Any, response: Any) -> Iterator[str]:
    """The answer's pieces. The lock is held while one is computed, not between: a stream may be left lying open."""
    options = {key: value for key, value in prompt.options.model_dump().items() if value is not None}
    loading = {"model": source, **{key: options.pop(key) for key in _LOADING_OPTIONS if key in options}}
    if prompt.schema:
        schema = {"name": "answer", "schema": prompt.schema}
        options["response_format"] = {"type": "json_schema", "json_schema": schema}
    if prompt.tools:
        options["tools"] = [_function(tool) for tool in prompt.tools]
    try:
        with _loaded.lock:
            chunks = _loaded.get(loading).chat(_messages(prompt.messages), stream=True, **options)
        while True:
            with _loaded.lock:
                chunk = next(chunks, None)
            if chunk is None:
                return
            if usage := chunk.get("usage"):
                response.set_usage(input=usage["prompt_tokens"], output=usage["completion_tokens"])
                reason, timings = chunk["choices"][0]["finish_reason"], chunk.get("timings")
                response.response_json = {"finish_reason": reason, "timings": timings}
            delta = chunk["choices"][0]["delta"]
            for call in delta.get("tool_calls", ()):
                name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
                response.add_tool_call(llm.ToolCall(name, arguments, tool_call_id=call["id"]))
            if text := delta.get("content"):
                yield text
    except VllamaError as e:
        raise llm.ModelError(str(e)) from e


def _function(tool: Any) -> dict[str, Any]:
    """OpenAI's description of one of llm's tools."""
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _messages(messages: list[Any]) -> list[dict[str, Any]]:
    """OpenAI's shape of llm's messages. Pictures come before the text of their message, as Meta's prompts have them."""
    found: list[dict[str, Any]] = []
    for message in messages:
        results = [part for part in message.parts if isinstance(part, ToolResultPart)]
        if results:
            found += map(_result, results)
            continue
        text = "".join(part.text for part in message.parts if isinstance(part, TextPart))
        images = [part.attachment for part in message.parts if isinstance(part, AttachmentPart) and part.attachment]
        calls = [_call(part) for part in message.parts if isinstance(part, ToolCallPart)]
        more = {"tool_calls": calls} if calls else {}
        if not images:
            found.append({"role": message.role, "content": text, **more})
            continue
        content: list[dict[str, Any]] = [{"type": "image", "image": _source(image)} for image in images]
        found.append({"role": message.role, "content": content + [{"type": "text", "text": text}] * bool(text), **more})
    return found


def _call(part: Any) -> dict[str, Any]:
    function = {"name": part.name, "arguments": json.dumps(part.arguments)}
    return {"id": part.tool_call_id or "", "type": "function", "function": function}


def _result(part: Any) -> dict[str, Any]:
    if part.attachments:
        raise llm.ModelError(f"the tool {part.name} returned a picture: the model sees pictures in questions only")
    return {"role": "tool", "tool_call_id": part.tool_call_id or "", "content": part.output}


def _source(attachment: Any) -> Any:
    """What pyvllama loads the picture from; never by llm's own client, which fetches from anywhere without bounds."""
    return attachment.content or attachment.path or attachment.url
