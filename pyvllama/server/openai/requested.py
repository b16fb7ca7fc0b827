"""From a request to the answer that is under way for it."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import Request

from pyvllama.chat_options import ChatOptions
from pyvllama.server.answer import Answer
from pyvllama.server.openai.errors import InvalidRequest
from pyvllama.server.openai.wire import SamplingFields
from pyvllama.server.request_log import log_fields
from pyvllama.server.served_model import ServedModel
from pyvllama.tokenizer import Tokenizer

__all__ = ["begin_chat", "check_tokens", "note_costs", "read_options", "served_model", "text_of"]

_MAY_BE_LARGE = ("response_format", "grammar", "tools", "logit_bias", "stop")


async def served_model(request: Request, stack: AsyncExitStack, name: str | None) -> ServedModel:
    """The model of a request; it stays loaded until the stack is closed.

    Raises:
        ModelNotFound: there is none of this name.
    """
    model: ServedModel = await stack.enter_async_context(request.app.state.pool.use(name or None))
    log_fields(request.scope)["model"] = model.name
    return model


async def read_options(served: ServedModel, options: Mapping[str, Any]) -> ChatOptions:
    """As `ChatOptions.from_options`; on another thread where there may be something large to read."""
    if not any(options.get(name) for name in _MAY_BE_LARGE):
        return ChatOptions.from_options(served.model.sampling_defaults, options)
    return await asyncio.to_thread(ChatOptions.from_options, served.model.sampling_defaults, options)


def check_tokens(tokenizer: Tokenizer, tokens: Sequence[int], field: str) -> None:
    """Refuse tokens that the model does not have.

    Args:
        tokenizer: of the model.
        tokens: not below 0.
        field: of the request, where they stand.

    Raises:
        InvalidRequest: names the first of them.
    """
    if bad := [token for token in tokens if token >= tokenizer.n_tokens]:
        raise InvalidRequest(f"{field} has the token {bad[0]}, but tokens go from 0 to {tokenizer.n_tokens - 1}", field)


def text_of(tokenizer: Tokenizer, tokens: Sequence[int], field: str) -> str:
    """The text of tokens, that of special ones too. Arguments and errors as of `check_tokens`."""
    check_tokens(tokenizer, tokens, field)
    return b"".join(tokenizer.piece(token, special=True) for token in tokens).decode(errors="replace")


async def begin_chat(
    request: Request,
    stack: AsyncExitStack,
    served: ServedModel,
    body: SamplingFields,
    messages: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    context_shift: bool = False,
) -> Answer:
    """An answer that is under way; it is cancelled when the stack is closed.

    Raises:
        VllamaError: whatever is wrong with the request.
    """
    state = request.app.state
    answer = await served.chat(
        messages,
        await read_options(served, options),
        limits=state.image_limits,
        reuse=body.reuse,
        deadline_s=state.settings.deadline_s,
        context_shift=context_shift,
    )
    note_costs(request, stack, answer)
    return await stack.enter_async_context(answer)


def note_costs(request: Request, stack: AsyncExitStack, *answers: Answer) -> None:
    """When the stack is closed, what the answers cost goes into the request's line of the log."""

    def note() -> None:
        log_fields(request.scope).update(
            prompt_tokens=sum(answer.usage.prompt_tokens for answer in answers),
            completion_tokens=sum(answer.usage.completion_tokens for answer in answers),
            image_encode_ms=round(sum(answer.timings.image_encode_ms for answer in answers)),
        )

    stack.callback(note)
