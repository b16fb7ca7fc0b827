"""A model's own chat template (Jinja, from the GGUF), rendered in a sandbox.

The file may come from anyone: a template can compute text and nothing else (CVE-2024-34359). The environment is the one
that transformers gives to templates, so that both render the same text.
"""

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pyvllama.errors import PromptError

__all__ = ["ChatTemplate"]


class _RefusalError(Exception):
    """What `raise_exception(...)` in a template raises."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`, which marks the assistant's text for training: here only its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own way)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: object) -> None:
    raise _RefusalError(str(message))


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own `tojson` escapes HTML characters, which a model should not see."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment(now: Callable[[], datetime.datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: now().strftime(pattern)
    return environment


class ChatTemplate:
    """A chat template; compiled once, then safe to use from several threads.

    Args:
        source: the template's Jinja text (`tokenizer.chat_template` or `clip.mllama.chat_template`).
        bos_token: the text of the token that begins a prompt, for templates that write it themselves.
        eos_token: the text of the token that ends a text.
        now: the clock behind the template's `strftime_now`, local time by default.

    Raises:
        PromptError: if the text is no Jinja template.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._takes_images: dict[str, bool] = {}
        try:
            self._template = _environment(now).from_string(source)
        except jinja2.TemplateSyntaxError as e:
            raise PromptError(
                f"the model's chat template is no valid Jinja, line {e.lineno}: {e.message}. "
                "The GGUF needs a correct tokenizer.chat_template"
            ) from e

    def takes_images(self, image_token: str) -> bool:
        """Whether the template writes an image part of a user's message as one `image_token`.

        Templates of text models take the content for a string: they fail on parts, or write them as Python does. This
        is found by trying, once.
        """
        if image_token not in self._takes_images:
            text = "What is this?"
            content = [{"type": "image"}, {"type": "text", "text": text}]
            try:
                rendered = self.render([{"role": "user", "content": content}])
            except PromptError:
                rendered = ""
            self._takes_images[image_token] = rendered.count(image_token) == 1 and rendered.count(text) == 1
        return self._takes_images[image_token]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Render a conversation.

        Args:
            messages: in the template's shape: `role`, and `content` as a string or as parts `{"type": "text", "text"}`
                and `{"type": "image"}`. Plain dicts, lists and strings: the template sees these objects themselves,
                and cannot change them. (`build_prompt` makes this from OpenAI's shape.)
            add_generation_prompt: end with the header of the assistant's answer.
            tools: OpenAI's function descriptions, None for none.
            variables: further names that the template may look at (`date_string`, `tools_in_user_message`, ...).

        Raises:
            PromptError: if the template refuses the conversation, or fails on it.
        """
        names = {
            **self._tokens,
            "messages": messages,
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            **(variables or {}),
        }
        try:
            return self._template.render(names)
        except _RefusalError as e:
            raise PromptError(f"the model's chat template refuses these messages: {e}") from e
        except jinja2.exceptions.SecurityError as e:
            raise PromptError(
                f"the model's chat template does what no template may: {e}. Don't trust this model file"
            ) from e
        except Exception as e:  # a template is a program: any error can come out of it
            raise PromptError(
                f"the model's chat template fails on these messages: {type(e).__name__}: {e}. "
                "It may not support a role, a tool call or a kind of content that they use"
            ) from e
