"""A conversation to token ids with image slots.

Special tokens come from the chat template alone. Whatever a message holds, `<|image|>` and `<|eot_id|>` included, stays
text; and an image belongs to the place of its part in the message, never to a token that somebody typed.

How: every special token holds a character that is its guard (`|` in all of Llama's). In all strings of the conversation
guards are replaced by private characters that occur nowhere in it, so that no special token can arise from them, not
even out of two halves in two messages. The template is rendered, the result cut at its special tokens, and the pieces
between, with their guards put back, are tokenized as plain text.

A text model's template, as a grafted model has it, knows no image parts: it gets strings that hold the image token
where the image stands in the message, before the text as a rule.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pyvllama.errors import PromptError
from pyvllama.messages import ImagePart, read_messages, read_tools
from pyvllama.template import ChatTemplate
from pyvllama.tokenizer import IMAGE_TOKEN

__all__ = ["ImageSlot", "Prompt", "build_prompt"]

_PRIVATE_USE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


class _Tokenizer(Protocol):
    """What is used of `pyvllama.tokenizer.Tokenizer`."""

    @property
    def bos(self) -> int | None: ...
    @property
    def special_tokens(self) -> Mapping[str, int]: ...
    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]: ...


@dataclass(frozen=True, eq=False)
class ImageSlot:
    """The place of an image in a prompt.

    Attributes:
        position: index of its image token in `Prompt.token_ids`.
        source: what `load_image` takes.
        where: its part, for messages, such as `messages[0].content[1]`.
    """

    position: int
    source: Any
    where: str


@dataclass(frozen=True, eq=False)
class Prompt:
    """A conversation, ready for the model.

    Attributes:
        token_ids: beginning with BOS if the vocabulary has one; the image token's id at every image's position.
        images: by rising position.
    """

    token_ids: tuple[int, ...]
    images: tuple[ImageSlot, ...]


def build_prompt(
    messages: Sequence[Mapping[str, Any]],
    template: ChatTemplate,
    tokenizer: _Tokenizer,
    *,
    image_token_id: int,
    image_token: str = IMAGE_TOKEN,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Prompt:
    """Render a conversation and tokenize it.

    Args:
        messages: OpenAI's: `{"role": ..., "content": str | parts}` with parts `{"type": "text", "text": str}`,
            `{"type": "image_url", "image_url": {"url": path, address or data: URI}}` and `{"type": "image", "image":
            anything that load_image takes}`.
        template: the model's chat template.
        tokenizer: the model's vocabulary. It need not know the image token.
        image_token_id: the id that stands for an image in `Prompt.token_ids`.
        image_token: what the template writes for an image; what it is given, if it takes no image parts.
        add_generation_prompt: end with the header of the assistant's answer.
        tools: OpenAI's function descriptions for the template.
        variables: further names for the template.

    Raises:
        PromptError: if the messages are not in that shape, the template refuses them, or has no place for their images.
    """
    specials = dict(tokenizer.special_tokens) | {image_token: image_token_id}
    pattern, guards = _recognizer(tuple(specials))
    try:
        conversation = read_messages(messages)
        names = {"messages": conversation.messages, "tools": read_tools(tools), "variables": dict(variables or {})}
        hide, restore = _disguise(guards, itertools.chain([template.source], _strings(names)))
        hidden = _map_strings(names, lambda text: text.translate(hide))
    except RecursionError as e:
        raise PromptError("the messages are nested too deeply") from e
    if conversation.images and not template.takes_images(image_token):
        hidden["messages"] = [_without_parts(message, image_token) for message in hidden["messages"]]
    rendered = template.render(
        hidden["messages"],
        tools=hidden["tools"],
        add_generation_prompt=add_generation_prompt,
        variables=hidden["variables"],
    )

    ids: list[int] = []
    positions: list[int] = []
    pieces = pattern.split(rendered)  # [text, special, text, special, ..., text]
    for text, special in itertools.zip_longest(pieces[::2], pieces[1::2]):
        ids += tokenizer.tokenize(text.translate(restore))
        if special == image_token:
            positions.append(len(ids))
        if special is not None:
            ids.append(specials[special])
    if tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:  # some templates leave it to the tokenizer
        ids.insert(0, tokenizer.bos)
        positions = [position + 1 for position in positions]
    return Prompt(tuple(ids), _bind(positions, conversation.images))


def _without_parts(message: dict[str, Any], image_token: str) -> dict[str, Any]:
    """The message with a string for its content, guards already hidden: its image tokens are those of image parts."""
    content = message["content"]
    if isinstance(content, str):
        return message
    texts = [image_token if part["type"] == "image" else part["text"] for part in content]
    return {**message, "content": "".join(texts)}


def _bind(positions: list[int], parts: list[ImagePart]) -> tuple[ImageSlot, ...]:
    """The k-th image token is the k-th image part."""
    if len(positions) != len(parts):
        where = f" ({', '.join(part.where for part in parts)})" if parts else ""
        raise PromptError(
            f"the chat template wrote {len(positions)} image tokens for {len(parts)} images{where}: it is not made for "
            "images in these places. Put images into user messages, or use the model's own template"
        )
    return tuple(ImageSlot(position, part.source, part.where) for position, part in zip(positions, parts, strict=True))


@functools.lru_cache(maxsize=16)
def _recognizer(specials: tuple[str, ...]) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """A pattern that splits a text at special tokens (the first, and of those the longest), and all their guards.

    The guard of a token is its `|`, or else the marks it begins and ends with. Guards are never letters, digits, `_` or
    white space: templates compare names and trim. A token that has none is a plain word, and stays one.
    """
    guards_of = {special: _guards(special) for special in specials}
    longest_first = sorted((special for special in specials if guards_of[special]), key=len, reverse=True)
    pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
    return pattern, tuple(sorted(set().union(*guards_of.values())))


def _guards(special: str) -> set[str]:
    if "|" in special:
        return {"|"}
    return {mark for mark in (special[0], special[-1]) if not (mark.isalnum() or mark.isspace() or mark == "_")}


def _disguise(guards: Sequence[str], texts: Iterable[str]) -> tuple[dict[int, str], dict[int, str]]:
    """Tables for str.translate: guards to private characters that occur in none of the texts, and back."""
    used = set[str]().union(*map(set, texts))
    free = (char for char in map(chr, itertools.chain(*_PRIVATE_USE)) if char not in used)
    masks = list(itertools.islice(free, len(guards)))
    if len(masks) < len(guards):
        raise PromptError("the messages use every private-use character of Unicode: leave some out")
    pairs = list(zip(guards, masks, strict=True))
    return {ord(guard): mask for guard, mask in pairs}, {ord(mask): guard for guard, mask in pairs}


def _strings(value: Any) -> Iterator[str]:
    """All strings inside JSON-like data, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of JSON-like data with every string changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    return value
