"""From messages to what stands at each position: tokens, and the encoded images among them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyvllama.errors import PromptError
from pyvllama.image.limits import ImageLimits
from pyvllama.image.source import load_images
from pyvllama.model import Model
from pyvllama.prompt import build_prompt
from pyvllama.session import Cell, require_room
from pyvllama.turns import drop_turns
from pyvllama.types import Timings
from pyvllama.vision_cache import VisionCache

__all__ = [
    "ReadPrompt",
    "read_messages_and_pictures",
    "read_prompt",
    "read_text_and_pictures",
    "without_oldest_turns",
]

_DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True)
class ReadPrompt:
    """A prompt whose pictures are read, but not encoded yet.

    Attributes:
        token_ids: with the image token where a picture stands.
        pictures: (position, RGB image), by rising position.
    """

    token_ids: Sequence[int]
    pictures: Sequence[tuple[int, Any]] = ()

    def encoded(
        self, images: VisionCache, timings: Timings, progress: Callable[[float], bool | None] | None = None
    ) -> list[Cell]:
        """What stands at each position.

        Args:
            images: the cache that encodes.
            timings: `image_encode_ms` and `image_cached` grow.
            progress: called with the fraction of an image's encoding; returning False stops with Cancelled.

        Raises:
            As `VisionCache.encode`.
        """
        at: dict[int, Any] = {}
        for position, picture in self.pictures:
            encoded = images.encode(picture, progress)
            timings.image_encode_ms += encoded.encode_ms
            timings.image_cached += encoded.cached
            at[position] = encoded.states
        return [Cell(token, at.get(i)) for i, token in enumerate(self.token_ids)]


def read_messages_and_pictures(
    model: Model,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    limits: ImageLimits = _DEFAULT_LIMITS,
    n_ctx: int | None = None,
) -> ReadPrompt:
    """Render a conversation and read its pictures: all that can be wrong with them shows here.

    Args:
        model: with its template and vocabulary.
        messages, tools: see `build_prompt`.
        limits: on the pictures.
        n_ctx: positions that the prompt may have; checked before a picture is touched.

    Raises:
        As `build_prompt` and `load_image`. ContextOverflow: more than n_ctx.
    """
    model.handle  # noqa: B018  raises when closed
    prompt = build_prompt(messages, model.template, model.tokenizer, image_token_id=model.image_token, tools=tools)
    if n_ctx is not None:
        require_room(len(prompt.token_ids), n_ctx)
    pictures = load_images([slot.source for slot in prompt.images], limits=limits)
    return ReadPrompt(prompt.token_ids, list(zip([slot.position for slot in prompt.images], pictures, strict=True)))


def read_text_and_pictures(
    model: Model,
    text: str | Sequence[int],
    sources: Sequence[Any] = (),
    *,
    limits: ImageLimits = _DEFAULT_LIMITS,
    n_ctx: int | None = None,
) -> ReadPrompt:
    """A prompt without a template: what llama.cpp calls raw.

    Args:
        model: with its vocabulary.
        text: special tokens that it spells are such tokens, BOS is put before it if it is missing; or token ids, which
            are taken as they are.
        sources: pictures, see `load_image`. They stand at the image tokens of the text, if it has as many, or, if it
            has none, at its beginning.
        limits, n_ctx: see `read_messages_and_pictures`.

    Raises:
        PromptError: image tokens without pictures, or token ids that do not exist. ContextOverflow: more than n_ctx.
        ImageError: a picture that cannot be read.
    """
    model.handle  # noqa: B018  raises when closed
    tokenizer = model.tokenizer
    ids = tokenizer.tokenize(text, parse_special=True) if isinstance(text, str) else list(text)
    if isinstance(text, str) and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
        ids.insert(0, tokenizer.bos)
    if bad := [i for i in ids if not (0 <= i < tokenizer.n_tokens or i == model.image_token)]:
        raise PromptError(f"there is no token {bad[0]}: they go from 0 to {tokenizer.n_tokens - 1}")
    positions = [at for at, token in enumerate(ids) if token == model.image_token]
    if sources and not positions:
        first = int(ids[:1] == [tokenizer.bos])
        ids[first:first] = [model.image_token] * len(sources)
        positions = list(range(first, first + len(sources)))
    if len(positions) != len(sources):
        raise PromptError(f"the prompt has {len(positions)} image tokens for {len(sources)} pictures")
    if n_ctx is not None:
        require_room(len(ids), n_ctx)
    pictures = load_images(sources, limits=limits)
    return ReadPrompt(ids, list(zip(positions, pictures, strict=True)))


def read_prompt(
    model: Model,
    images: VisionCache,
    messages: Sequence[Mapping[str, Any]],
    timings: Timings,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    progress: Callable[[float], bool | None] | None = None,
) -> list[Cell]:
    """Render a conversation, read its pictures, all of them before the first is encoded, and encode them.

    Raises:
        As `read_messages_and_pictures` and `ReadPrompt.encoded`.
    """
    return read_messages_and_pictures(model, messages, tools=tools).encoded(images, timings, progress)


def without_oldest_turns(
    model: Model,
    messages: Sequence[Mapping[str, Any]],
    n_ctx: int,
    max_tokens: int | None,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> tuple[Sequence[Mapping[str, Any]], int]:
    """The messages that fit into a context, and the number of turns left away; see `drop_turns`. Loads no image.

    Raises:
        ContextOverflow: not even the last turn fits. PromptError: as `build_prompt`.
    """
    model.handle  # noqa: B018  raises when closed

    def n_tokens(kept: Sequence[Mapping[str, Any]]) -> int:
        prompt = build_prompt(kept, model.template, model.tokenizer, image_token_id=model.image_token, tools=tools)
        return len(prompt.token_ids)

    return drop_turns(messages, n_tokens, n_ctx, max_tokens)
