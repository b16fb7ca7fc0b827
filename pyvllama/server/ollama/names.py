"""Names of models between Ollama's habits and ours."""

import re
from collections.abc import Iterable, Sequence

from pyvllama.errors import ConfigError, ModelNotFound
from pyvllama.hub_models import DEFAULT_QUANTS, parse_hub_name
from pyvllama.server.model_list import ModelCard

__all__ = ["displayed", "exact_card", "find_card", "hub_name", "own_name"]

_HUB_HOSTS = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/", re.IGNORECASE)
_LATEST = ":latest"
_FROM_OLLAMA = "ollama:"  # before the name of a model that `pyvllama serve ollama:NAME` took from Ollama's files


def displayed(name: str) -> str:
    """A model's name as Ollama lists it: with a tag, `latest` if it has none of its own."""
    name = name.removeprefix(_FROM_OLLAMA)
    return name if ":" in name.rsplit("/", 1)[-1] else name + _LATEST


def own_name(name: str) -> str:
    """The name that our pool knows: without `hf.co/` before it and `:latest` behind it."""
    bare = _HUB_HOSTS.sub("", name, count=1) if _HUB_HOSTS.match(name) else name
    return bare.removesuffix(_LATEST)


def exact_card(cards: Iterable[ModelCard], name: str) -> ModelCard | None:
    """The model that answers to a client's name for it, None if there is none."""
    wanted = own_name(name)
    return next((c for c in cards if c.answers_to(wanted) or c.answers_to(_FROM_OLLAMA + wanted)), None)


def find_card(cards: Sequence[ModelCard], name: str) -> ModelCard | None:
    """The model that a client means, None if there is none.

    A repository's name alone means the one of its models that `pull` would choose.
    """
    if (exact := exact_card(cards, name)) is not None:
        return exact
    wanted = own_name(name)
    if (hub := parse_hub_name(wanted)) is None or hub[1] is not None:
        return None
    prefixes = (f"{wanted.lower()}:", f"{wanted.lower()}/")
    found = [card for card in cards if card.is_kept and card.name.lower().startswith(prefixes)]
    for quant in DEFAULT_QUANTS:
        if (best := next((card for card in found if card.type == quant), None)) is not None:
            return best
    return min(found, key=lambda card: card.name, default=None)


def hub_name(name: str) -> tuple[str, str | None]:
    """(`user/repo`, QUANT or None) of what a client wants to pull: `user/repo[:QUANT]`, `hf.co/user/repo[:QUANT]`.

    Raises:
        ConfigError: no name was given.
        ModelNotFound: it is no repository of the Hub; one of Ollama's library, most likely.
    """
    if not name:
        raise ConfigError("model is required")
    found = parse_hub_name(own_name(name))
    if found is None:
        raise ModelNotFound(
            f"{name!r:.200} cannot be pulled: this is pyvllama, not Ollama, and has no access to Ollama's library. "
            "Pull GGUF files from the Hub by USER/REPO or USER/REPO:QUANT (hf.co/USER/REPO:QUANT is taken too); a "
            "model that Ollama has already downloaded is served with `pyvllama serve ollama:NAME`"
        )
    return found
