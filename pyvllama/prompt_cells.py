"""From messages to what stands at each position: tokens, and the encoded images among them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyvllama.image.source import load_image
from pyvllama.model import Model
from pyvllama.prompt import build_prompt
from pyvllama.session import Cell
from pyvllama.types import Timings
from pyvllama.vision_cache import VisionCache

__all__ = ["read_prompt"]


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
