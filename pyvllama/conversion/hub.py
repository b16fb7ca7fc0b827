"""Checkpoints from the Hugging Face Hub, by its own client and into its own cache."""

from __future__ import annotations

from pathlib import Path

from pyvllama.config import MllamaConfig
from pyvllama.conversion.text_files import json_object, read_text
from pyvllama.errors import ModelNotFound
from pyvllama.hub_client import HUB, fetch, is_hub_id

__all__ = ["download", "download_adapter", "download_descriptions", "is_on_hub"]

_DESCRIPTIONS = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "chat_template.jinja",
    "params.json",
    "tokenizer.model",
    "README.md",
    "adapter_config.json",
)
"""Small files, fetched first."""

_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
_META_WEIGHTS = ("consolidated*.pth",)
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "non_lora_state_dict.bin")


def is_on_hub(src: str | Path) -> bool:
    """Whether `src` means a repository: `org/name`, as a str, where no such path exists."""
    return isinstance(src, str) and is_hub_id(src) and not Path(src).exists()


def download(repo_id: str, revision: str | None = None, *, has_base: bool = False) -> Path:
    """Fetch what a conversion needs of a repository; what the cache holds already is not fetched again.

    The token is the Hub client's: `HF_TOKEN`, or what `hf auth login` stored. `HF_HUB_OFFLINE=1`: the cache alone.

    Args:
        repo_id: `org/name`.
        revision: branch, tag or commit; None: the main branch.
        has_base: a config.json that is missing will be taken from elsewhere.

    Returns:
        The directory of the snapshot in the cache.

    Raises:
        ModelNotFound: there is no such repository or revision, it is gated, the Hub cannot be reached, or the cache
            lacks it; the message says what to do.
        ConfigError, CheckpointError: it is a checkpoint of another architecture, or its config.json is damaged.
    """
    folder = fetch(repo_id, revision, _DESCRIPTIONS)
    if (folder / "config.json").is_file():
        # Gigabytes of another architecture need not be fetched to be refused.
        MllamaConfig.from_hf_json(json_object(folder / "config.json", read_text(folder / "config.json")))
        return fetch(repo_id, revision, (*_DESCRIPTIONS, *_WEIGHTS))
    if (folder / "params.json").is_file():
        return fetch(repo_id, revision, (*_DESCRIPTIONS, *_META_WEIGHTS))
    if (folder / "adapter_config.json").is_file():
        return fetch(repo_id, revision, _ADAPTER)
    if has_base:
        return fetch(repo_id, revision, (*_DESCRIPTIONS, *_WEIGHTS))
    raise ModelNotFound(
        f"{repo_id} holds neither config.json nor params.json: it is no checkpoint (GGUF files need no conversion); "
        f"see {HUB}/{repo_id}/tree/main"
    )


def download_descriptions(repo_id: str, revision: str | None = None) -> Path:
    """Fetch the small files alone: what describes a model, without its weights.

    Returns:
        The directory of the snapshot in the cache.

    Raises:
        ModelNotFound: as `download`.
    """
    return fetch(repo_id, revision, _DESCRIPTIONS)


def download_adapter(repo_id: str, revision: str | None = None) -> Path:
    """Fetch a LoRA adapter: its configuration and its weights.

    Returns:
        The directory of the snapshot in the cache.

    Raises:
        ModelNotFound: as `download`.
    """
    return fetch(repo_id, revision, _ADAPTER)
