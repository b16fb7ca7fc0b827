"""A server with Ollama's API alone and the pocket model, on a real socket in a thread."""

import contextlib
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import uvicorn
from fastapi import FastAPI

from pyvllama.image.limits import ImageLimits
from pyvllama.locate import pocket_pair
from pyvllama.server.model_list import default_card, model_cards
from pyvllama.server.model_pool import ModelPool
from pyvllama.server.ollama import chat, generate, models
from pyvllama.server.served_model import ServedModel

N_CTX = 2048


def make_app(*, alone: bool = True, **given: Any) -> FastAPI:
    settings = SimpleNamespace(
        **{"deadline_s": None, "manage_models": False, "aliases": (), "n_gpu_layers": 0, "keep_alive_s": None, **given}
    )
    default = default_card(pocket_pair(), settings.aliases)

    def load(card):
        return ServedModel.load(card.name, card.pair.text, card.pair.mmproj, n_slots=4, n_ctx=N_CTX, n_threads=1)

    pool = ModelPool(lambda: [default] if alone else model_cards(default), load, keep_alive_s=settings.keep_alive_s)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI):
        yield
        await pool.close()

    app = FastAPI(lifespan=lifespan)
    for module in (chat, generate, models):
        app.include_router(module.router)
    app.state.settings = settings
    app.state.image_limits = ImageLimits(allow_files=False)
    app.state.pool = pool
    return app


@contextlib.contextmanager
def serving(**given: Any) -> Iterator[Any]:
    """serving(**settings) -> an object with `url` and `app`; no model lies in a cache."""
    app = make_app(**given)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield SimpleNamespace(url=f"http://127.0.0.1:{port}", app=app)
    finally:
        server.should_exit = True
        thread.join(60)
