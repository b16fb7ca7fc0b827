"""From a server's settings to the pool of its models."""

from collections.abc import Callable
from pathlib import Path

from pyvllama.resolve import resolve
from pyvllama.server.answer import Answer
from pyvllama.server.model_list import ModelCard, default_card, model_cards
from pyvllama.server.model_pool import ModelPool
from pyvllama.server.served_model import ServedModel
from pyvllama.server.settings import Settings

__all__ = ["make_pool"]

_OF_LOAD = (  # settings that `pyvllama.load` has by the same names
    *("n_ctx", "n_batch", "n_ubatch", "n_threads", "n_gpu_layers", "mmproj_offload", "repack"),
    *("kv_type", "cross_kv_type", "flash_attn"),
    *("image_cache_bytes", "image_cache_dir", "image_cache_disk_bytes"),
)


def make_pool(settings: Settings, on_answered: Callable[[Answer], object] | None = None) -> ModelPool:
    """The pool of the default model and of all that are kept on this machine; nothing is loaded yet.

    Args:
        settings: see `Settings`.
        on_answered: see `ServedModel`.

    Raises:
        ModelNotFound, FormatError: there is no such model, or its files are damaged.
    """
    mmproj = None if settings.mmproj is None else Path(settings.mmproj)
    default = default_card(resolve(settings.model, mmproj, text_type=settings.text_type), settings.aliases)

    def load(card: ModelCard) -> ServedModel:
        served = ServedModel.load(
            card.name,
            card.pair.text,
            card.pair.mmproj,
            n_slots=settings.parallel,
            max_queue=settings.max_queue,
            grammars=settings.grammars,
            **{name: getattr(settings, name) for name in _OF_LOAD},
        )
        served.on_answered = on_answered
        return served

    return ModelPool(
        lambda: model_cards(default),
        load,
        default=default,
        max_models=settings.max_models,
        keep_alive_s=settings.keep_alive_s,
    )
