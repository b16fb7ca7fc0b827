"""Prompts that a plain chat does not make: a conversation as token ids that goes on, an answer that was begun."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pyvllama.chat_options import ChatOptions
from pyvllama.model import Model
from pyvllama.prompt import Prompt, build_prompt
from pyvllama.prompt_cells import without_oldest_turns

__all__ = ["begun_answer", "context_of", "goes_on", "is_begun", "render"]

Message = Mapping[str, Any]

_EARLIER = ({"role": "user", "content": "x"}, {"role": "assistant", "content": "y"})
_END_OF_TURN = "<|eot_id|>"


def render(
    model: Model, messages: Sequence[Message], *, tools: Sequence[Any] | None = None, add_generation_prompt: bool = True
) -> Prompt:
    """A conversation in the model's chat template.

    Raises:
        PromptError: as `build_prompt`.
    """
    return build_prompt(
        messages,
        model.template,
        model.tokenizer,
        image_token_id=model.image_token,
        add_generation_prompt=add_generation_prompt,
        tools=tools,
    )


def goes_on(model: Model, context: Sequence[int], messages: Sequence[Message]) -> Prompt:
    """A prompt behind the token ids of an earlier conversation; of that its image tokens are left away.

    The new turn is what the template adds for it behind another turn.

    Raises:
        PromptError: as `build_prompt`.
    """
    before = [token for token in context if token != model.image_token]
    opening = render(model, _EARLIER, add_generation_prompt=False).token_ids
    both = render(model, [*_EARLIER, *messages])
    n = len(opening) if both.token_ids[: len(opening)] == opening else 0
    images = tuple(replace(slot, position=slot.position - n + len(before)) for slot in both.images)
    return Prompt((*before, *both.token_ids[n:]), images)


def context_of(model: Model, prompt: Sequence[int], answer: str) -> list[int]:
    """A conversation as token ids, without its pictures: who goes on with it talks about what was said of them."""
    tokenizer = model.tokenizer
    end = tokenizer.special_tokens.get(_END_OF_TURN, tokenizer.eos)
    ids = [*prompt, *tokenizer.tokenize(answer), *([] if end is None else [end])]
    return [token for token in ids if token != model.image_token]


def is_begun(messages: Sequence[Message]) -> bool:
    """Whether a conversation ends with the beginning of an answer, which Ollama goes on with."""
    last = messages[-1]
    return last["role"] == "assistant" and isinstance(last["content"], str) and not last.get("tool_calls")


def begun_answer(
    model: Model, messages: Sequence[Message], options: ChatOptions, n_ctx: int, *, may_drop: bool
) -> Prompt:
    """The prompt of a conversation that `is_begun`.

    Args:
        model: with its template.
        messages: in OpenAI's shape.
        options: of the request.
        n_ctx: positions of the context.
        may_drop: leave the oldest turns away where they do not fit.

    Raises:
        PromptError, ContextOverflow: as `build_prompt` and `without_oldest_turns`.
    """
    if may_drop:
        messages, _ = without_oldest_turns(model, messages, n_ctx, options.params.max_tokens, tools=options.tools)
    *before, last = messages
    prompt = render(model, before, tools=options.tools)
    begun = model.tokenizer.tokenize(last["content"])
    return replace(prompt, token_ids=(*prompt.token_ids, *begun))
