"""Description files of another checkpoint, in place of those that a checkpoint lacks.

Merged fine-tunes often come as weights and little else. What they lack is taken from the model that they were made
from, part by part: files that only make sense together are taken together or not at all, and what the checkpoint says
itself is never overruled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvllama.conversion.chat_templates import TEMPLATE_FILES, Files, templates_in
from pyvllama.conversion.hub import download_descriptions, is_on_hub
from pyvllama.conversion.text_files import json_object, read_text
from pyvllama.errors import ModelNotFound

__all__ = ["BaseFiles", "BorrowedFile", "find_base"]

_ALONE = ("config.json", "generation_config.json", "tokenizer.json")
_TOKENS = ("tokenizer_config.json", "special_tokens_map.json")
_IMAGES, _PROCESSOR = "preprocessor_config.json", "processor_config.json"
_ALL = tuple(dict.fromkeys((*_ALONE, *_TOKENS, _IMAGES, _PROCESSOR, *TEMPLATE_FILES)))


@dataclass(frozen=True)
class BorrowedFile:
    """A file of the base that is read as if it lay in the checkpoint."""

    path: Path
    """Where it comes from; for messages."""
    text: str
    what: str
    """How a note calls it."""


@dataclass(frozen=True)
class BaseFiles:
    """The small files of a checkpoint directory."""

    path: Path
    name: str
    """As whoever asked for it spelt it."""

    def optional_text(self, name: str) -> str | None:
        """A text file of the base, or None."""
        path = self.path / name
        return read_text(path) if path.is_file() else None

    def optional_json(self, name: str) -> dict[str, Any] | None:
        """The object in a JSON file of the base, or None if there is no such file.

        Raises:
            CheckpointError: it holds no JSON object.
        """
        text = self.optional_text(name)
        return None if text is None else json_object(self.path / name, text)

    def missing_in(self, checkpoint: Files) -> dict[str, BorrowedFile]:
        """The files that a checkpoint lacks and the base has, by the names under which a conversion reads them.

        Args:
            checkpoint: its own files.
        """
        taken: dict[str, BorrowedFile] = {}

        def take(name: str, source: str = "", what: str = "") -> None:
            if (text := self.optional_text(source or name)) is not None:
                taken[name] = BorrowedFile(self.path / (source or name), text, what or name)

        def has(name: str) -> bool:
            return checkpoint.optional_text(name) is not None

        for name in _ALONE:
            if not has(name):
                take(name)
        if not any(has(name) for name in _TOKENS):
            for name in _TOKENS:
                take(name)
        if not has(_IMAGES) and "image_processor" not in (checkpoint.optional_json(_PROCESSOR) or {}):
            # transformers 5 keeps what describes the images inside of processor_config.json
            inside = "image_processor" in (self.optional_json(_PROCESSOR) or {})
            take(_IMAGES, _PROCESSOR if inside else _IMAGES, f"the image processor ({_PROCESSOR})" if inside else "")
        if not templates_in(checkpoint):
            self._take_template(taken)
        return taken

    def _take_template(self, taken: dict[str, BorrowedFile]) -> None:
        for source in TEMPLATE_FILES:
            if templates_in(self, (source,)):
                path, text = self.path / source, self.optional_text(source) or ""
                if source == "tokenizer_config.json":  # of which nothing else is wanted
                    text = json.dumps({"chat_template": json_object(path, text)["chat_template"]})
                name = "chat_template.jinja" if source == "chat_template.jinja" else "chat_template.json"
                taken[name] = BorrowedFile(path, text, f"the chat template ({source})")
                return


def find_base(base: str | Path) -> BaseFiles:
    """The description files of a directory or of a repository on the Hub, of which no weights are downloaded.

    Args:
        base: a directory; or, as a str and where no such path exists, a Hub id `org/name`.

    Raises:
        ModelNotFound: there is no such directory or repository, or it describes no model.
    """
    path = download_descriptions(str(base)) if is_on_hub(base) else Path(base)
    if not path.is_dir():
        raise ModelNotFound(f"base = {base}: no such directory; expected a checkpoint's directory or an id of the Hub")
    if not any((path / name).is_file() for name in _ALL):
        raise ModelNotFound(f"base = {base} holds none of the files that describe a model ({', '.join(_ALL)})")
    return BaseFiles(path, str(base))
