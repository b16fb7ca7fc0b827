"""What renders chats for `pyvllama.Llama`: those with images our way, all others llama-cpp-python's."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyvllama._runtime import llama_cpp

__all__ = ["ChatHandler"]

_formats = llama_cpp.llama_chat_format


class ChatHandler:
    """A chat handler of llama-cpp-python's kind.

    A chat without images goes to the handler that llama_cpp.Llama would have chosen, by `chat_format` or the text
    file's template. One with images is rendered by the model's own template, whatever `chat_format` says: formats of
    llama-cpp-python's own leave images out.
    """

    def __call__(self, *, llama: Any, messages: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        """Answer a chat; arguments and result are those of `create_chat_completion`."""
        if not _has_images(messages):
            handler = llama._chat_handlers.get(llama.chat_format)
            handler = handler or _formats.get_chat_completion_handler(llama.chat_format)
            return handler(llama=llama, messages=messages, **options)
        rendered = _Rendered(llama)
        handler = _formats.chat_formatter_to_chat_completion_handler(rendered.render)
        return handler(llama=rendered, messages=messages, **options)


class _Rendered:
    """A Llama for a handler of llama-cpp-python's, to which a prompt is a text: its tokens are there already."""

    def __init__(self, llama: Any) -> None:
        self._llama = llama
        self._tokens: list[int] = []
        self.verbose = llama.verbose
        self.create_completion = llama.create_completion

    def render(
        self,
        *,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        functions: Sequence[Mapping[str, Any]] | None = None,
        function_call: Any = None,  # OpenAI's older words for tools; the handler forces the call
        tool_choice: Any = None,
        **variables: Any,
    ) -> Any:
        if functions and not tools:
            tools = [{"type": "function", "function": function} for function in functions]
        self._tokens = self._llama.render(messages, tools=tools, variables=variables)
        return _formats.ChatFormatterResponse(prompt="", added_special=True)

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        return self._tokens


def _has_images(messages: object) -> bool:
    """Whether a chat, well-formed or not, has a part that is an image."""
    if not isinstance(messages, Iterable):
        return False
    contents = [m.get("content") for m in messages if isinstance(m, Mapping)]
    parts = [part for content in contents if isinstance(content, (list, tuple)) for part in content]
    return any(isinstance(part, Mapping) and part.get("type") in ("image", "image_url") for part in parts)
