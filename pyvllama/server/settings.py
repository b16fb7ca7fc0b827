"""What a server is told when it starts; checked once, then it stays as it is."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import urlsplit

from pyvllama.context import KV_TYPES, MAX_N_THREADS
from pyvllama.errors import ConfigError
from pyvllama.image.limits import ImageLimits
from pyvllama.loading import DEFAULT_IMAGE_CACHE_BYTES, DEFAULT_IMAGE_CACHE_DISK_BYTES
from pyvllama.model import CROSS_KV_TYPES
from pyvllama.types import Pair

__all__ = ["DEFAULT_PORT", "OLLAMA_PORT", "Settings", "is_loopback", "read_api_keys"]

DEFAULT_PORT = 8080  # llama-server's
OLLAMA_PORT = 11434
_MiB = 1 << 20
_MAX_KEY_FILE_BYTES = _MiB
_LOG_FORMATS = ("text", "json")
_KEY = re.compile(r"[\x21-\x7e]{1,512}")  # what an HTTP header carries unharmed
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_ALIAS = re.compile(r"[^\x00-\x20\x7f]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A server's settings.

    Attributes:
        model: the default model, as `pyvllama.resolve` takes it; None: the bundled pocket model.
        mmproj: its mmproj file, where it is not beside the text file.
        aliases: further names that clients may call it by.
        text_type: type that a checkpoint is converted to; None: q4_k_m.
        n_ctx: positions of a model's context, for all requests that run at a time together.
        n_batch, n_ubatch, n_threads, n_gpu_layers, mmproj_offload, repack: as in `pyvllama.load`.
        kv_type, cross_kv_type, flash_attn: as in `pyvllama.load`.
        image_cache_bytes, image_cache_dir, image_cache_disk_bytes: as in `pyvllama.load`.
        parallel: answers of a model that are generated at a time.
        max_queue: requests of a model that may wait for their turn; more are answered 429.
        deadline_s: seconds that a request may take, waiting included; None: as long as it takes.
        keep_alive_s: seconds after its last use when a model is unloaded; None: never.
        max_models: models in memory at a time; the one used longest ago makes room.
        grace_s: seconds that running answers are given when the server stops.
        host: address to listen at.
        port: TCP port; 0: any free one.
        manage_models: whether clients may fetch and delete models.
        api_keys: each opens everything; none: no key is asked for.
        cors_origins: origins of web pages that may use the server, as browsers write them; "*": all.
        allowed_hosts: further names that clients may reach the server by, see `host_check`.
        media_path: directory of the pictures that a client may name by path; None: none.
        allow_private_urls: whether pictures may come from addresses of private networks and this machine.
        max_image_bytes, max_image_pixels: of one picture.
        max_images, max_total_pixels: of one request; a pixel takes three bytes of memory until it is encoded.
        image_timeout_s: seconds for one picture's download, redirects included.
        max_body_bytes: of a request.
        grammars: whether requests may bring grammars, JSON schemas and tools: see SECURITY.md.
        log_format: "text" or "json", of the line that each request leaves.
        log_prompts: whether what clients say is logged.
    """

    model: str | None = None
    mmproj: str | None = None
    aliases: tuple[str, ...] = ()

    text_type: str | None = None
    n_ctx: int = 8192
    n_batch: int = 512
    n_ubatch: int = 512
    n_threads: int | None = None
    n_gpu_layers: int = 0
    mmproj_offload: bool = True
    repack: bool = True
    kv_type: str = "f16"
    cross_kv_type: str = "f16"
    flash_attn: bool | None = None
    image_cache_bytes: int = DEFAULT_IMAGE_CACHE_BYTES
    image_cache_dir: Path | None = None
    image_cache_disk_bytes: int = DEFAULT_IMAGE_CACHE_DISK_BYTES

    parallel: int = 4
    max_queue: int = 64
    deadline_s: float | None = None
    keep_alive_s: float | None = None
    max_models: int = 1
    grace_s: float = 10.0

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    manage_models: bool = False
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    media_path: Path | None = None
    allow_private_urls: bool = False
    max_image_bytes: int = ImageLimits.max_bytes
    max_image_pixels: int = ImageLimits.max_pixels
    max_images: int = 64
    max_total_pixels: int = 1 << 29
    image_timeout_s: float = ImageLimits.timeout_s
    max_body_bytes: int = 128 * _MiB
    grammars: bool = True
    log_format: str = "text"
    log_prompts: bool = False

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ConfigError: names the setting, its value and what it may be.
        """
        for name, (low, high) in _RANGES.items():
            _check_number(name, getattr(self, name), low, high, may_be_none=name in _MAY_BE_NONE)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, not {getattr(self, name)!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {', '.join(map(str, choices))}, not {getattr(self, name)!r}")
        for name in _TUPLES:
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(v, str) for v in value):
                raise ConfigError(f"{name} must be a tuple of strings, not a {type(value).__name__}")
        _check_host("host", self.host)
        for host in self.allowed_hosts:
            _check_host("allowed_hosts", host)
        for origin in self.cors_origins:
            _check_origin(origin)
        for i, key in enumerate(self.api_keys, 1):
            if not _KEY.fullmatch(key):  # the key itself is not shown
                raise ConfigError(
                    f"API key {i} must be 1 to 512 ASCII characters without blanks, as headers carry them"
                )
        for alias in self.aliases:
            if not _ALIAS.fullmatch(alias):
                raise ConfigError(f"alias {alias!r:.100} must be 1 to 200 characters without blanks")
        if self.media_path is not None and not self.media_path.is_dir():
            raise ConfigError(f"media_path: there is no directory {self.media_path}")

    def __repr__(self) -> str:  # without the keys
        shown = (f for f in fields(self) if f.name != "api_keys" and getattr(self, f.name) != f.default)
        keys = [f"api_keys=<{len(self.api_keys)}>"] if self.api_keys else []
        return f"Settings({', '.join([*(f'{f.name}={getattr(self, f.name)!r}' for f in shown), *keys])})"

    def with_pair(self, pair: Pair, aliases: Sequence[str] = ()) -> "Settings":
        """The same with the files that `model` stood for, and further aliases."""
        text, mmproj = str(pair.text), str(pair.mmproj)
        return replace(self, model=text, mmproj=mmproj, text_type=None, aliases=(*self.aliases, *aliases))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine's programs reach the server."""
        return is_loopback(self.host)


_RANGES: dict[str, tuple[float, float]] = {  # int bounds: whole numbers only
    "n_ctx": (1, 2**31 - 1),
    "n_batch": (1, 2**31 - 1),
    "n_ubatch": (1, 2**31 - 1),
    "n_threads": (1, MAX_N_THREADS),
    "n_gpu_layers": (-1, 2**31 - 1),
    "image_cache_bytes": (0, 2**62),
    "image_cache_disk_bytes": (0, 2**62),
    "parallel": (1, 256),  # llama.cpp's limit
    "max_queue": (0, 1 << 20),
    "deadline_s": (0.001, 1e9),
    "keep_alive_s": (0.0, 1e9),
    "max_models": (1, 1024),
    "grace_s": (0.0, 1e6),
    "port": (0, 65535),
    "max_image_bytes": (1, 2**40),
    "max_image_pixels": (1, 2**40),
    "max_images": (1, 1 << 20),
    "max_total_pixels": (1, 2**40),
    "image_timeout_s": (0.001, 3600.0),
    "max_body_bytes": (1, 2**40),
}
_MAY_BE_NONE = ("n_threads", "deadline_s", "keep_alive_s")
_FLAGS = ("mmproj_offload", "repack", "manage_models", "allow_private_urls", "grammars", "log_prompts")
_TUPLES = ("aliases", "api_keys", "cors_origins", "allowed_hosts")
_CHOICES: dict[str, Sequence[object]] = {
    "kv_type": tuple(KV_TYPES),
    "cross_kv_type": CROSS_KV_TYPES,
    "flash_attn": (None, False, True),
    "log_format": _LOG_FORMATS,
}


def read_api_keys(path: Path) -> tuple[str, ...]:
    """The keys in a file, one a line; empty lines and those that begin with # do not count.

    Raises:
        ConfigError: the file cannot be read, or holds no key.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_KEY_FILE_BYTES + 1)
        lines = data.decode().splitlines()
    except (OSError, ValueError) as e:  # UnicodeDecodeError included
        raise ConfigError(f"{path} cannot be read as a file of API keys: {getattr(e, 'strerror', None) or e}") from e
    if len(data) > _MAX_KEY_FILE_BYTES:
        raise ConfigError(f"{path} has more than {_MAX_KEY_FILE_BYTES} bytes: this is no file of API keys")
    keys = tuple(key for line in lines if (key := line.strip()) and not key.startswith("#"))
    if not keys:
        raise ConfigError(f"{path} holds no API key: write one a line")
    return keys


def is_loopback(host: str) -> bool:
    """Whether an address to listen at is reached from this machine only."""
    bare = host.strip("[]").lower()
    return bare in ("localhost", "::1") or re.fullmatch(r"127(\.\d{1,3}){3}", bare) is not None


def _check_number(name: str, value: object, low: float, high: float, *, may_be_none: bool) -> None:
    if value is None and may_be_none:
        return
    is_whole = isinstance(low, int)
    if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
        raise ConfigError(f"{name} must be a {'whole ' if is_whole else ''}number, not {value!r}")
    if not low <= value <= high:
        raise ConfigError(f"{name} must be between {low} and {high}, not {value!r}")


def _check_host(name: str, host: str) -> None:
    if not isinstance(host, str) or not (_NAME.fullmatch(host) or _is_ipv6(host)):
        raise ConfigError(f"{name} must be a host name or an IP address, without port, not {host!r:.100}")


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        return False
    return True


def _check_origin(origin: str) -> None:
    """As the Origin header has it: scheme://host[:port]; of other programs scheme://anything."""
    if origin == "*":
        return
    try:
        parts = urlsplit(origin)
        _ = parts.port
        is_whole = bool(parts.scheme) and f"{parts.scheme}://{parts.netloc}" == origin == origin.lower()
    except ValueError:  # a port that is no number
        is_whole = False
    if not is_whole or not (parts.netloc or parts.scheme == "file"):
        raise ConfigError(
            f"cors_origins: {origin!r:.100} is no origin; write scheme://host[:port] in small letters and without a "
            "path, such as https://chat.example.com, or * for all"
        )
