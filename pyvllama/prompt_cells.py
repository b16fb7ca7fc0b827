"""From messages to what stands at each position: tokens, and the encoded images among them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyvllama.image.source import load_image
from pyvllama.model import Model
from pyvllama.prompt import build_prompt
from pyvllama.session import Cell
from pyvllama.turns import drop_turns
from pyvllama.types import Timings
from pyvllama.vision_cache import VisionCache

__all__ = ["read_prompt", "without_oldest_turns"]


def read_prompt(
    model: Model,
    images: VisionCache,
    messages: Sequence[Mapping[str, Any]],
    timings: Timings,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    progress: Callable[[float], bool | None] | None = None,
) -> list[Cell]:
    """Render a conversation and encode its images.

    Args:
        model: with its template and vocabulary.
        images: the cache that encodes.
        messages: see `build_prompt`.
        timings: `image_encode_ms` and `image_cached` grow.
        tools: see `build_prompt`.
        progress: called with the fraction of an image's encoding; returning False stops with Cancelled.

    Raises:
        As `build_prompt`, `load_image` and `VisionCache.encode`.
    """
    model.handle  # noqa: B018  raises when closed
    prompt = build_prompt(messages, model.template, model.tokenizer, image_token_id=model.image_token, tools=tools)
    pictures = [load_image(slot.source) for slot in prompt.images]  # all readable before the first is encoded
    at: dict[int, Any] = {}
    for slot, picture in zip(prompt.images, pictures, strict=True):
        encoded = images.encode(picture, progress)
        timings.image_encode_ms += encoded.encode_ms
        timings.image_cached += encoded.cached
        at[slot.position] = encoded.states
    return [Cell(token, at.get(i)) for i, token in enumerate(prompt.token_ids)]


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
