"""Where a checkpoint is: in a directory, of either form, or in a repository on the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyvllama.conversion.adapter import CONFIG, find_adapter, is_adapter
from pyvllama.conversion.base_files import find_base
from pyvllama.conversion.checkpoint import Checkpoint
from pyvllama.conversion.hub import download, download_descriptions, is_on_hub
from pyvllama.conversion.lora import merged
from pyvllama.conversion.meta import MetaCheckpoint, is_meta_checkpoint
from pyvllama.errors import ConfigError, ModelNotFound

__all__ = ["Source", "find_source", "is_adapter_source"]

_CONFIGS = ("config.json", "params.json")


@dataclass(frozen=True)
class Source:
    """A checkpoint's directory."""

    path: Path
    name: str
    """What its model is called unless somebody says otherwise."""
    repo_id: str | None = None
    """Of the Hub, if it came from there."""

    def open(self, *, base: str | Path | None = None, lora: Sequence[str | Path] = ()) -> Checkpoint:
        """Read everything but the tensors' values.

        Args:
            base: directory or Hub id of a checkpoint whose description files stand in for those missing here.
            lora: directories or Hub ids of adapters, merged in this order.

        Raises:
            ModelNotFound: there is no such directory, or it holds GGUF files.
            ModelNotFound, CheckpointError: see `Checkpoint`, `MetaCheckpoint`, `find_base`, `find_adapter`.
            ConfigError: see `MetaCheckpoint`; or a base for a checkpoint of Meta's.
        """
        if self.repo_id is None:
            _require_checkpoint(self.path, has_base=base is not None)
        if is_meta_checkpoint(self.path):
            if base is not None:
                raise ConfigError(f"base = {base}: {self.path} is Meta's checkpoint, whose files say all there is")
            checkpoint: Checkpoint = MetaCheckpoint(self.path)
        else:
            checkpoint = Checkpoint(self.path, None if base is None else find_base(base))
        if adapters := [find_adapter(one) for one in lora]:
            checkpoint.tensors = merged(checkpoint.tensors, adapters, checkpoint.path)
            for adapter in adapters:
                checkpoint.notes.append(
                    f"the adapter {adapter.name} is merged into {(n := len(adapter.deltas))} weight{'s' * (n != 1)}"
                )
        return checkpoint


def find_source(src: str | Path, *, revision: str | None = None, has_base: bool = False) -> Source:
    """The directory that `src` means; a repository on the Hub is downloaded.

    Args:
        src: a directory; or, as a str and where no such path exists, a Hub id `org/name`.
        revision: branch, tag or commit on the Hub.
        has_base: a config.json that is missing there will be taken from a base.

    Raises:
        ModelNotFound: no name; or the Hub has no such repository, or does not give it.
        ConfigError: a revision of a directory was asked for.
    """
    if not str(src):
        raise ModelNotFound("the checkpoint's name is empty")
    if is_on_hub(src):
        return Source(download(str(src), revision, has_base=has_base), str(src).split("/")[1], str(src))
    if revision is not None:
        raise ConfigError(
            f"revision = {revision!r}: {src} is no repository on the Hub (org/name); a directory has none"
        )
    return Source(Path(src), Path(src).resolve().name)


def _require_checkpoint(path: Path, *, has_base: bool) -> None:
    """Say what else could be meant where there is no checkpoint."""
    if not path.is_dir():
        if path.suffix.lower() == ".gguf" and path.is_file():
            raise ModelNotFound(f"{path} is a GGUF file already: `pyvllama quantize` makes another type of it")
        what = "is no directory" if path.exists() else "does not exist"
        raise ModelNotFound(
            f"{path} {what}; expected a directory with a checkpoint of Hugging Face's form or Meta's, the id of a "
            "repository on the Hub (org/name), or ollama:NAME"
        )
    if not has_base and not any((path / name).is_file() for name in _CONFIGS) and any(path.glob("*.gguf")):
        raise ModelNotFound(
            f"{path} holds GGUF files and no checkpoint: `pyvllama quantize` makes other types of them, and `pyvllama "
            "run` needs no conversion"
        )


def is_adapter_source(src: str | Path, *, revision: str | None = None) -> bool:
    """Whether `src` (see `find_source`) means a LoRA adapter and no model. Of the Hub, small files are fetched.

    Raises:
        ModelNotFound: the Hub has no such repository, or does not give it.
    """
    if not is_on_hub(src):
        return is_adapter(Path(src))
    folder = download_descriptions(str(src), revision)
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()
