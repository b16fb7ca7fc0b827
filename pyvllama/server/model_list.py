"""The models that a server's clients can ask for, by names that are never paths."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from pyvllama.errors import VllamaError
from pyvllama.file_names import parse_file_name, shards_of
from pyvllama.gguf_file import GGUFFile
from pyvllama.inventory import inventory
from pyvllama.types import Pair

__all__ = ["ModelCard", "default_card", "model_cards"]

_LONG_AGO = datetime.fromtimestamp(0, timezone.utc)


@dataclass(frozen=True)
class ModelCard:
    """A model that can be asked for.

    Attributes:
        name: its first name.
        pair: its files.
        aliases: further names.
        type: of the text file, such as Q4_K_M.
        n_bytes: of all its files, the parts of a split text file too.
        modified: when the text file was last written.
        is_kept: it lies in a cache of ours or the Hub's, where `pyvllama rm` can delete it.
    """

    name: str
    pair: Pair
    aliases: tuple[str, ...] = ()
    type: str | None = None
    n_bytes: int = 0
    modified: datetime = _LONG_AGO
    is_kept: bool = False

    def answers_to(self, name: str) -> bool:
        """Whether it is meant by a name; `:latest` behind it, as Ollama's clients write, means nothing."""
        plain = name.removesuffix(":latest").lower()
        return any(plain == own.removesuffix(":latest").lower() for own in (self.name, *self.aliases))


def default_card(pair: Pair, aliases: Iterable[str] = ()) -> ModelCard:
    """The card of the pair that a server was started with; reads the text file's header.

    It is called by its first alias, or else by the name in the file; it answers to the file's name, too.

    Raises:
        FormatError: the file is damaged.
    """
    title = str(GGUFFile(pair.text).metadata.get("general.name") or pair.text.stem)
    names = dict.fromkeys([*aliases, title, pair.text.stem])
    first, *others = names
    shards = shards_of(pair.text.name, [path.name for path in pair.text.parent.glob("*.gguf")])
    n_bytes = sum(path.stat().st_size for path in (*map(pair.text.with_name, shards), pair.mmproj))
    return _card(first, pair, tuple(others), n_bytes)


def model_cards(default: ModelCard | None) -> Sequence[ModelCard]:
    """The default one, then all that are kept on this machine (see `inventory`), the one used last first."""
    cards = [] if default is None else [default]
    try:
        items = inventory()
    except (OSError, VllamaError):  # a cache that cannot be read keeps nobody from the default model
        items = []
    for item in items:
        if default is None or item.pair.text.resolve() != default.pair.text.resolve():
            aliases = (item.title,) if item.title != item.name else ()
            n_bytes = item.text_bytes + item.mmproj_bytes
            cards.append(_card(item.name, item.pair, aliases, n_bytes, is_kept=True))
    return cards


def _card(name: str, pair: Pair, aliases: tuple[str, ...], n_bytes: int, *, is_kept: bool = False) -> ModelCard:
    modified = datetime.fromtimestamp(pair.text.stat().st_mtime, timezone.utc)
    return ModelCard(name, pair, aliases, parse_file_name(pair.text).type, n_bytes, modified, is_kept)
