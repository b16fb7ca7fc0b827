"""From what a user calls a model to its two files, with whatever has to be done for that.

That may be downloading, converting, importing. What was converted is kept (see `model_cache`), what was downloaded lies
in the Hub's own cache.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pyvllama.errors import ConfigError, ModelNotFound
from pyvllama.file_names import is_text_name
from pyvllama.hub_client import Listing, list_files
from pyvllama.hub_models import parse_hub_name, pull, pull_mmproj
from pyvllama.locate import as_path, is_checkpoint, locate
from pyvllama.model_cache import Entry, ModelCache, Recipe, directory_fingerprint
from pyvllama.types import DEFAULT_MMPROJ_TYPE, DEFAULT_TEXT_TYPE, Pair

if TYPE_CHECKING:
    from pyvllama.conversion.conversion_plan import ConversionPlan

__all__ = ["OLLAMA_PREFIX", "is_model_name", "resolve"]

Progress = Callable[[int, int, str], "bool | None"]
"""Called with (bytes done, bytes in all, what is being done) while a checkpoint is converted; False stops it."""

OLLAMA_PREFIX = "ollama:"
_WEIGHTS = (".safetensors", ".pth")

logger = logging.getLogger("pyvllama")


def resolve(
    model: str | Path | None,
    mmproj: str | Path | None = None,
    *,
    text_type: str | None = None,
    progress: Progress | None = None,
    note: Callable[[str], object] = logger.info,
) -> Pair:
    """The pair that a name stands for, made or fetched if need be.

    Args:
        model: None: the bundled pocket model; a text GGUF, or a directory with a pair: see `locate`; a directory with a
            checkpoint, of Hugging Face's form or Meta's: converted once; and, as a str where no such path exists,
            `ollama:NAME[:TAG]`: imported once; the name of a model that was converted or imported (see `pyvllama
            list`); `user/repo[:QUANT]` on the Hub: GGUF files are fetched; a repository with weights of a checkpoint
            and no QUANT is downloaded and converted once.
        mmproj: the mmproj file, where it is not beside the text file; or `user/repo[:TYPE]` on the Hub.
        text_type: type that a checkpoint is converted to (None: q4_k_m); in a repository with GGUF files only, QUANT.
        progress: of a conversion or an import. Downloads draw the Hub client's own bars.
        note: called with a line where something is done that takes time.

    Raises:
        ModelNotFound: there is no such model, or it cannot be had; says what to do.
        ConfigError: a text_type for what is not converted; the cache cannot be written.
        FormatError, CheckpointError, Cancelled: from the conversion or the import.
    """
    eyes = _mmproj(mmproj)
    if model is None or _is_path(model):
        path = None if model is None else as_path(model)
        if path is not None and path.is_dir() and is_checkpoint(path):
            return _with(_Maker(text_type, progress, note).from_directory(path), eyes)
        pair = locate(path, eyes)
        _refuse_type(text_type, model or "the pocket model")
        return pair
    name = str(model)
    maker = _Maker(text_type, progress, note)
    if name.startswith(OLLAMA_PREFIX):
        _refuse_type(text_type, name)
        return _with(maker.from_ollama(name), eyes)
    if entry := _named(maker.cache, name):
        _refuse_type(text_type, name)
        return _with(maker.cache.use(entry), eyes)
    if (hub := parse_hub_name(name)) and isinstance(model, str):
        return _with(maker.from_hub(*hub), eyes)
    return locate(model, eyes)  # says what is not there


def is_model_name(word: str) -> bool:
    """Whether a single word on the command line can only mean a model: a name of Ollama's, or of one in the cache."""
    if any(c.isspace() for c in word):
        return False
    return word.startswith(OLLAMA_PREFIX) or any(word in (e.id, e.recipe.title) for e in ModelCache().entries())


@dataclass(frozen=True)
class _Maker:
    """Makes pairs of what is none yet."""

    text_type: str | None
    progress: Progress | None
    note: Callable[[str], object]
    cache: ModelCache = field(default_factory=ModelCache)

    def from_directory(self, folder: Path) -> Pair:
        folder = folder.resolve()
        recipe = self._recipe("checkpoint", str(folder), folder.name, directory_fingerprint(folder))
        return self._convert(recipe, str(folder))

    def from_hub(self, repo_id: str, quant: str | None) -> Pair:
        name = repo_id.split("/")[1]
        made = None if quant else self.cache.find(self._recipe("hub", repo_id, name, ""))
        try:
            listing = list_files(repo_id)
        except ModelNotFound:
            if made is None:
                raise
            listing = Listing(made.recipe.fingerprint, ())  # offline, or gone from the Hub: what we have is good
        weights = any(file.endswith(_WEIGHTS) and "/" not in file for file in listing.files)
        if made is None and (quant or (not weights and any(map(is_text_name, listing.files)))):
            if quant:
                _refuse_type(self.text_type, f"{repo_id}:{quant}")
            return pull(repo_id, quant or self.text_type)
        recipe = self._recipe("hub", repo_id, name, listing.commit)
        return self._convert(recipe, repo_id)

    def from_ollama(self, name: str) -> Pair:
        from pyvllama.conversion.ollama import plan_import  # noqa: PLC0415  not loaded by those who only chat
        from pyvllama.conversion.ollama_store import ModelName, find_model  # noqa: PLC0415

        model = str(ModelName.parse(name.removeprefix(OLLAMA_PREFIX)))
        try:
            manifest = find_model(model)
        except ModelNotFound:
            if made := self.cache.find(_ollama_recipe(model, "")):  # no longer in Ollama's store
                return self.cache.use(made)
            raise
        model = str(manifest.name)  # as Ollama spells it: names are equal in any case
        digest = hashlib.sha256(manifest.path.read_bytes()).hexdigest()

        def make(work: Path) -> Pair:
            self.note(f"Importing {OLLAMA_PREFIX}{model} into {self.cache.root}, once; nothing is quantized anew.")
            return self._write(plan_import(model, work))

        return self.cache.provide(_ollama_recipe(model, digest), make, self.note)

    def _recipe(self, kind: str, source: str, name: str, fingerprint: str) -> Recipe:
        options = {"text_type": (self.text_type or DEFAULT_TEXT_TYPE).lower(), "mmproj_type": DEFAULT_MMPROJ_TYPE}
        return Recipe(kind, source, name, fingerprint, options)

    def _convert(self, recipe: Recipe, src: str) -> Pair:
        from pyvllama.conversion.pipeline import plan_conversion  # noqa: PLC0415  not loaded by those who only chat

        def make(work: Path) -> Pair:
            again = ", as it has changed" if self.cache.find(recipe) else ", once"
            text, mmproj = recipe.options["text_type"], recipe.options["mmproj_type"]
            plan = plan_conversion(  # a download draws bars of its own
                src, work, text_type=text, mmproj_type=mmproj, name=recipe.name
            )
            self.note(
                f"Converting {src} to {text.upper()} and {mmproj.upper()}{again}; "
                f"it is kept in {self.cache.root / recipe.id}"
            )
            return self._write(plan)

        return self.cache.provide(recipe, make, self.note)

    def _write(self, plan: ConversionPlan) -> Pair:
        from pyvllama.conversion.output import write_files  # noqa: PLC0415

        for line in plan.notes:
            self.note(line)
        write_files(plan.files, progress=self.progress)
        return Pair(plan.text[0].path, plan.mmproj.path)


def _ollama_recipe(model: str, digest: str) -> Recipe:
    return Recipe("ollama", model, model.removesuffix(":latest"), digest)


def _mmproj(mmproj: str | Path | None) -> Path | None:
    if mmproj is None:
        return None
    if isinstance(mmproj, str) and not _is_path(mmproj) and (hub := parse_hub_name(mmproj)):
        return pull_mmproj(*hub)
    if not (path := as_path(mmproj)).is_file():
        raise ModelNotFound(f"{path}: no such mmproj file")
    return path


def _is_path(name: str | Path) -> bool:
    return as_path(name).exists()


def _named(cache: ModelCache, name: str) -> Entry | None:
    """The entry that a name means."""
    found = [e for e in cache.entries() if name in (e.id, e.recipe.title)]
    if len(found) > 1:
        raise ModelNotFound(f"{name}: several models of that name are in the cache: {', '.join(e.id for e in found)}")
    return found[0] if found else None


def _with(pair: Pair, mmproj: Path | None) -> Pair:
    return Pair(pair.text, mmproj or pair.mmproj)


def _refuse_type(text_type: str | None, what: object) -> None:
    if text_type is not None:
        raise ConfigError(f"text_type = {text_type!r}: {what} is no checkpoint, so nothing is converted")
