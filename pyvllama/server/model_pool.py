"""The models of a server: loaded when they are asked for, unloaded when nobody has asked for a while."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from pyvllama.errors import Cancelled, ModelNotFound
from pyvllama.server.model_list import ModelCard
from pyvllama.server.served_model import ServedModel

__all__ = ["Loaded", "ModelPool"]

_AS_CONFIGURED: Any = object()

logger = logging.getLogger("pyvllama")


@dataclass(frozen=True)
class Loaded:
    """A model in memory.

    Attributes:
        card: its names and files.
        served: the model.
        expires_at: when it is unloaded if nobody asks for it; None: never, or it is in use.
    """

    card: ModelCard
    served: ServedModel
    expires_at: datetime | None


@dataclass(eq=False)
class _Place:
    card: ModelCard
    served: ServedModel
    keep_alive_s: float | None
    n_users: int = 0
    timer: asyncio.TimerHandle | None = None
    expires_at: datetime | None = None


class ModelPool:
    """Models by name, the least recently used one unloaded first. Belongs to one event loop.

    Who comes first is served first: while a request waits for room for its model, later ones wait behind it, so that a
    busy model cannot keep another one out.

    Args:
        cards: the models that can be asked for, the default one first; called anew each time.
        load: from a card to the model; blocks, called on a thread.
        default: the first of the cards, where it stays the same: asking for it then costs no look at directories.
        max_models: in memory at a time.
        keep_alive_s: how long a model stays after its last request; None: forever.
    """

    def __init__(
        self,
        cards: Callable[[], Sequence[ModelCard]],
        load: Callable[[ModelCard], ServedModel],
        *,
        default: ModelCard | None = None,
        max_models: int = 1,
        keep_alive_s: float | None = None,
    ) -> None:
        self._cards, self._load, self._default = cards, load, default
        self._max_models, self._keep_alive_s = max_models, keep_alive_s
        self._places: dict[str, _Place] = {}  # by the card's name, the least recently used one first
        self._door = asyncio.Lock()
        self._left = asyncio.Event()  # somebody has left a model
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def cards(self) -> Sequence[ModelCard]:
        """The models that can be asked for; reads directories."""
        return self._cards()

    def card(self, name: str | None) -> ModelCard:
        """The model of a name; None or "": the default one.

        Raises:
            ModelNotFound: there is none of that name. A name is never a path, and never fetched.
        """
        cards = self._cards()
        if not name and cards:
            return cards[0]
        for card in cards:
            if name is not None and card.answers_to(name):
                return card
        raise ModelNotFound(f"model {(name or '')[:100]!r} not found; GET /v1/models lists those that are there")

    def loaded(self) -> list[Loaded]:
        """Those in memory, the one used last first."""
        return [Loaded(p.card, p.served, p.expires_at) for p in reversed(self._places.values())]

    @asynccontextmanager
    async def use(self, name: str | None, *, keep_alive_s: float | None = _AS_CONFIGURED) -> AsyncIterator[ServedModel]:
        """The model, loaded; it stays so at least as long as it is used.

        Args:
            name: see `card`.
            keep_alive_s: how long it stays after that, instead of what the pool was made with.

        Raises:
            ModelNotFound: there is none of that name. What loading raises. Cancelled: the pool is closed.
        """
        async with self._door:
            card = self._known_card(name)
            if card is None:
                card = await asyncio.to_thread(self.card, name)
            place = await self._obtain(card)
            place.n_users += 1
        if keep_alive_s is not _AS_CONFIGURED:
            place.keep_alive_s = keep_alive_s
        try:
            yield place.served
        finally:
            place.n_users -= 1
            self._leave(place)

    async def unload(self, name: str | None) -> bool:
        """Unload a model: now, or when its last user leaves it. Returns whether it was loaded.

        Raises:
            ModelNotFound: there is none of that name.
        """
        place = self._places.get((await asyncio.to_thread(self.card, name)).name)
        if place is None:
            return False
        place.keep_alive_s = 0.0
        if place.n_users == 0:
            await self._drop(place)
        return True

    async def close(self, grace_s: float = 0.0) -> None:
        """Unload everything. Answers that are being generated have grace_s seconds to end, then they are cancelled."""
        self._is_closed = True
        deadline = asyncio.get_running_loop().time() + grace_s
        while any(p.n_users for p in self._places.values()):
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:
                break
            self._left.clear()
            try:
                await asyncio.wait_for(self._left.wait(), left_s)
            except asyncio.TimeoutError:
                break
        self._left.set()
        for place in [*self._places.values()]:
            await self._drop(place)
        if self._closing:
            await asyncio.wait(self._closing)

    def _known_card(self, name: str | None) -> ModelCard | None:
        """The default model or one that is loaded, if that is meant."""
        if not name:
            return self._default
        known = [*([self._default] if self._default else []), *(place.card for place in self._places.values())]
        return next((card for card in known if card.answers_to(name)), None)

    async def _obtain(self, card: ModelCard) -> _Place:
        if self._is_closed:
            raise Cancelled("the server is shutting down")
        place = self._places.pop(card.name, None)
        if place is None:
            while len(self._places) >= self._max_models:
                idle = next((p for p in self._places.values() if p.n_users == 0), None)
                if idle is not None:
                    await self._drop(idle)
                else:
                    await self._somebody_leaves()
                if self._is_closed:
                    raise Cancelled("the server is shutting down")
            logger.info("loading %s", card.name)
            served = await asyncio.to_thread(self._load, card)
            if self._is_closed:
                await served.close()
                raise Cancelled("the server is shutting down")
            place = _Place(card, served, self._keep_alive_s)
        self._places[card.name] = place
        if place.timer is not None:
            place.timer.cancel()
        place.timer = place.expires_at = None
        return place

    async def _somebody_leaves(self) -> None:
        self._left.clear()
        await self._left.wait()

    def _leave(self, place: _Place) -> None:
        self._left.set()
        if place.n_users or self._is_closed or place.keep_alive_s is None:
            return
        loop = asyncio.get_running_loop()
        place.expires_at = datetime.now(timezone.utc) + timedelta(seconds=place.keep_alive_s)
        place.timer = loop.call_later(place.keep_alive_s, self._expire, place)

    def _expire(self, place: _Place) -> None:
        if place.n_users == 0 and self._places.get(place.card.name) is place:
            del self._places[place.card.name]  # at once: nobody may come in between
            task = asyncio.get_running_loop().create_task(self._drop(place))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _drop(self, place: _Place) -> None:
        if self._places.get(place.card.name) is place:
            del self._places[place.card.name]
        if place.timer is not None:
            place.timer.cancel()
        logger.info("unloading %s", place.card.name)
        await place.served.close()
