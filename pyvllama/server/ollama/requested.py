"""What a request works with: the model it names, the options it gives."""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from pyvllama.server.answer import Answer
from pyvllama.server.model_list import ModelCard
from pyvllama.server.model_pool import ModelPool
from pyvllama.server.ollama.answers import AnswerShape, metrics
from pyvllama.server.ollama.durations import FOREVER_S, duration_s
from pyvllama.server.ollama.errors import OllamaError, not_found
from pyvllama.server.ollama.names import exact_card, find_card
from pyvllama.server.ollama.schema import Inference
from pyvllama.server.request_log import log_fields
from pyvllama.server.served_model import ServedModel

__all__ = ["Begun", "card_named", "load_or_unload", "use_model"]


@dataclass(frozen=True)
class Begun:
    """A request whose model is there.

    Attributes:
        served: the model.
        start: when the request came, by time.perf_counter.
        load_s: seconds until the model was there.
        log: what stands in the request's line of the log.
    """

    served: ServedModel
    start: float
    load_s: float
    log: dict[str, Any]

    def costs(self, answer: Answer) -> dict[str, int]:
        """What an answer that has ended did cost; the log has it, too."""
        total_s = time.perf_counter() - self.start
        self.log.update({name: round(value, 1) for name, value in answer.timings.as_dict().items()})
        return metrics(answer.timings, answer.usage, load_s=self.load_s, total_s=total_s)


async def card_named(pool: ModelPool, name: str) -> ModelCard:
    """The model of that name.

    Raises:
        OllamaError: 400 if no name was given, 404 if there is none of it.
    """
    if not name:
        raise OllamaError(400, "model is required")
    loaded = exact_card((model.card for model in pool.loaded()), name)  # looks at no directory
    card = loaded or find_card(await asyncio.to_thread(pool.cards), name)
    if card is None:
        raise not_found(name)
    return card


async def use_model(request: Request, stack: AsyncExitStack, body: Inference) -> Begun:
    """The model of a request, loaded, and kept so until the stack is closed.

    Raises:
        OllamaError: as `card_named`. What loading raises.
    """
    start = time.perf_counter()
    pool: ModelPool = request.app.state.pool
    keep_alive_s = duration_s(body.keep_alive)
    more: dict[str, Any] = {}
    if keep_alive_s is not None:
        more["keep_alive_s"] = None if keep_alive_s == FOREVER_S else keep_alive_s
    card = await card_named(pool, body.model)
    served = await stack.enter_async_context(pool.use(card.name, **more))
    log = log_fields(request.scope)
    log["model"] = card.name
    if body.options is not None and (body.options.num_ctx or 0) > served.n_ctx:
        log["num_ctx_ignored"] = body.options.num_ctx  # most apps send one: to refuse them would help nobody
    return Begun(served, start, time.perf_counter() - start, log)


async def load_or_unload(request: Request, body: Inference, shape: AnswerShape) -> Any:
    """The answer to a request that says nothing: its model is loaded, or with keep_alive 0 unloaded.

    Raises:
        As `use_model`.
    """
    if duration_s(body.keep_alive) == 0:
        pool: ModelPool = request.app.state.pool
        await pool.unload((await card_named(pool, body.model)).name)
        return shape.empty("unload")
    async with AsyncExitStack() as stack:
        await use_model(request, stack, body)
        return shape.empty("load")
