"""A local Ollama store: the names, manifests and blobs of its models. Nothing is fetched, and nothing is written.

`manifests/HOST/NAMESPACE/MODEL/TAG` is a JSON that lists layers; each layer is a file `blobs/sha256-DIGEST`. The rules
for names are Ollama's own (types/model/name.go).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from pyvllama.errors import CheckpointError, ConfigError, ModelNotFound

__all__ = ["PREFIX", "Blob", "Layer", "Manifest", "ModelName", "find_model", "is_ollama", "store_paths"]

PREFIX = "ollama:"
"""What a source begins with that is the name of a model in an Ollama store."""

_HOST, _NAMESPACE, _TAG = "registry.ollama.ai", "library", "latest"
"""What a name leaves out."""

_HOST_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_LAYER_TYPE = re.compile(r"application/vnd\.ollama\.image\.(\w+)")

_SERVICE_STORES = (
    "/usr/share/ollama/.ollama/models",  # Ollama's own installer on Linux
    "/var/lib/ollama/.ollama/models",  # packages of distributions, in three variants
    "/var/lib/ollama/models",
    "/var/lib/ollama",
)
_MAX_MANIFEST_BYTES = 1 << 22
_MAX_TEXT_BYTES = 1 << 20
_MAX_LISTED = 20


@dataclass(frozen=True)
class ModelName:
    """host/namespace/model:tag, complete. Ollama compares names without regard to case."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> ModelName:
        """Read `model`, `model:tag`, `namespace/model:tag` or `host/namespace/model:tag`.

        Raises:
            ConfigError: it is no name of a model.
        """
        path, colon, tag = text.removeprefix("https://").removeprefix("http://").rpartition(":")
        if not colon or "/" in tag:  # no tag; a colon before a slash belongs to the host's port
            path, tag = f"{path}{colon}{tag}", _TAG
        parts = path.split("/")
        if len(parts) > 3:
            raise ConfigError(f"{text!r} is no name of an Ollama model: [HOST/][NAMESPACE/]MODEL[:TAG]")
        host, namespace, model = [*(_HOST, _NAMESPACE)[: 3 - len(parts)], *parts]
        if not _HOST_PART.fullmatch(host) or not all(_PART.fullmatch(x) for x in (namespace, model, tag)):
            raise ConfigError(f"{text!r} is no name of an Ollama model: [HOST/][NAMESPACE/]MODEL[:TAG]")
        return cls(host, namespace, model, tag)

    @property
    def key(self) -> tuple[str, ...]:
        """What names are compared by."""
        return tuple(part.lower() for part in (self.host, self.namespace, self.model, self.tag))

    def __str__(self) -> str:
        """As short as Ollama would print it."""
        parts = [self.host, self.namespace, self.model]
        if self.host == _HOST:
            parts = parts[1:] if self.namespace != _NAMESPACE else parts[2:]
        return "/".join(parts) + f":{self.tag}"


@dataclass(frozen=True)
class Blob:
    """A file of the store: it exists and has the size that its manifest states."""

    path: Path
    digest: str
    """SHA-256 in hex."""
    size: int
    """Bytes."""

    def parts(self, n_bytes: int) -> Iterator[bytes]:
        """The contents, `n_bytes` at a time.

        Raises:
            CheckpointError: the file cannot be read.
        """
        try:
            with self.path.open("rb") as f:
                while part := f.read(n_bytes):
                    yield part
        except OSError as e:
            raise _unreadable(self.path, e) from e

    def compare(self, digest: str) -> None:
        """Refuse contents of another digest.

        Raises:
            CheckpointError: `digest` is not the blob's.
        """
        if digest != self.digest:
            raise CheckpointError(f"{self.path} is damaged: its SHA-256 is {digest}; `ollama pull` it again")

    def text(self) -> str:
        """A small text: a template, parameters, a licence.

        Raises:
            CheckpointError: it is damaged, or too long for one.
        """
        if self.size > _MAX_TEXT_BYTES:
            raise CheckpointError(f"{self.path}: {self.size} bytes are no text of a model's settings")
        raw = b"".join(self.parts(_MAX_TEXT_BYTES))
        self.compare(hashlib.sha256(raw).hexdigest())
        return raw.decode(errors="replace")


@dataclass(frozen=True)
class Layer:
    """An entry of a manifest."""

    kind: str
    """model, projector, template, system, params, license, adapter, messages."""
    blob: Blob


@dataclass(frozen=True)
class Manifest:
    """A model of the store."""

    name: ModelName
    path: Path
    layers: tuple[Layer, ...]

    def blobs(self, kind: str) -> list[Blob]:
        """The blobs of all layers of one kind, in the manifest's order, which means nothing."""
        return [layer.blob for layer in self.layers if layer.kind == kind]


def is_ollama(src: str | Path) -> TypeGuard[str]:
    """Whether a source is the name of a model in an Ollama store: ollama:NAME[:TAG]."""
    return isinstance(src, str) and src.startswith(PREFIX)


def store_paths() -> list[Path]:
    """Where stores usually are: $OLLAMA_MODELS, the user's own (Linux, macOS, Windows), a Linux service's."""
    chosen = os.environ.get("OLLAMA_MODELS")
    paths = [Path(chosen).expanduser()] if chosen else []
    return [*paths, Path.home() / ".ollama" / "models", *map(Path, _SERVICE_STORES)]


def find_model(name: str) -> Manifest:
    """The manifest of a model, with all of its blobs found.

    Args:
        name: with or without `ollama:` before it.

    Raises:
        ConfigError: it is no name.
        ModelNotFound: there is no store, or no such model; the message says where was looked and what there is.
        CheckpointError: manifest or blobs are damaged or missing.
    """
    wanted = ModelName.parse(name.removeprefix(PREFIX))
    stores: list[Path] = []
    known: list[ModelName] = []
    unreadable: list[str] = []
    for store in store_paths():
        try:
            names = list(_names(store / "manifests"))
        except FileNotFoundError:
            continue
        except OSError as e:
            unreadable.append(f"{store} cannot be read: {e.strerror or e}")
            continue
        for found in names:
            if found.key == wanted.key:
                return _read_manifest(store, found)
        stores.append(store)
        known += names
    hint = "".join(f"; {line}" for line in unreadable)
    if not stores:
        looked = ", ".join(map(str, store_paths()))
        raise ModelNotFound(f"there is no Ollama store in {looked}{hint}; OLLAMA_MODELS names another place")
    listed = sorted({str(found) for found in known})
    has = ", ".join(listed[:_MAX_LISTED]) + (", ..." if len(listed) > _MAX_LISTED else "") if listed else "no model"
    raise ModelNotFound(f"no model {wanted} in {', '.join(map(str, stores))}: there is {has}{hint}")


def _names(manifests: Path) -> Iterator[ModelName]:
    next(manifests.iterdir(), None)  # raises where `glob` would be silent
    for path in sorted(manifests.glob("*/*/*/*")):
        if path.is_file() and not path.name.startswith("."):
            yield ModelName(*path.relative_to(manifests).parts)


def _read_manifest(store: Path, name: ModelName) -> Manifest:
    path = store / "manifests" / name.host / name.namespace / name.model / name.tag
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise CheckpointError(f"{path} is no manifest: it has {path.stat().st_size} bytes")
        manifest: Any = json.loads(path.read_bytes())
        layers = [(_layer_type(entry), entry["digest"], entry["size"]) for entry in manifest["layers"]]
    except OSError as e:
        raise _unreadable(path, e) from e
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise CheckpointError(f"{path} is no manifest as Ollama writes it; `ollama pull {name}` again") from e
    return Manifest(
        name, path, tuple(Layer(kind, _find_blob(store, path, digest, size)) for kind, digest, size in layers if kind)
    )


def _layer_type(entry: dict[str, Any]) -> str:
    """model, projector, ...; empty for a layer of another vendor."""
    found = _LAYER_TYPE.fullmatch(entry["mediaType"])
    return found[1] if found else ""


def _find_blob(store: Path, manifest: Path, digest: Any, size: Any) -> Blob:
    valid = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if valid is None or type(size) is not int or size < 0:
        raise CheckpointError(f"{manifest}: a layer has the digest {digest!r:.100} and the size {size!r:.100}")
    for separator in "-:":  # early versions of Ollama wrote a colon
        path = store / "blobs" / f"sha256{separator}{valid[1]}"
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            continue
        except OSError as e:
            raise _unreadable(path, e) from e
        if not path.is_file() or found != size:
            raise CheckpointError(f"{path} has {found} bytes, but {manifest} states {size}: `ollama pull` it again")
        return Blob(path, valid[1], size)
    raise CheckpointError(f"{store / 'blobs' / f'sha256-{valid[1]}'} is missing ({manifest}): `ollama pull` it again")


def _unreadable(path: Path, e: OSError) -> CheckpointError:
    hint = "; read it as a user of the group `ollama`, or as root" if isinstance(e, PermissionError) else ""
    return CheckpointError(f"{path} cannot be read: {e.strerror or e}{hint}")
