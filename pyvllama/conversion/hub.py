"""Checkpoints from the Hugging Face Hub, by its own client and into its own cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pyvllama.config import MllamaConfig
from pyvllama.conversion.checkpoint import json_object, read_text
from pyvllama.errors import ModelNotFound

__all__ = ["download"]

_HUB = "https://huggingface.co"

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
)
"""Small files, fetched first."""

_WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
_META_WEIGHTS = ("consolidated*.pth",)


def download(repo_id: str, revision: str | None = None) -> Path:
    """Fetch what a conversion needs of a repository; what the cache holds already is not fetched again.

    The token is the Hub client's: `HF_TOKEN`, or what `hf auth login` stored. `HF_HUB_OFFLINE=1`: the cache alone.

    Args:
        repo_id: `org/name`.
        revision: branch, tag or commit; None: the main branch.

    Returns:
        The directory of the snapshot in the cache.

    Raises:
        ModelNotFound: there is no such repository or revision, it is gated, the Hub cannot be reached, or the cache
            lacks it; the message says what to do.
        ConfigError, CheckpointError: it is a checkpoint of another architecture, or its config.json is damaged.
    """
    folder = _fetch(repo_id, revision, _DESCRIPTIONS)
    if (folder / "config.json").is_file():
        # Gigabytes of another architecture need not be fetched to be refused.
        MllamaConfig.from_hf_json(json_object(folder / "config.json", read_text(folder / "config.json")))
        return _fetch(repo_id, revision, (*_DESCRIPTIONS, *_WEIGHTS))
    if (folder / "params.json").is_file():
        return _fetch(repo_id, revision, (*_DESCRIPTIONS, *_META_WEIGHTS))
    raise ModelNotFound(
        f"{repo_id} holds neither config.json nor params.json: it is no checkpoint (GGUF files need no conversion); "
        f"see {_HUB}/{repo_id}/tree/main"
    )


def _fetch(repo_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    import huggingface_hub  # noqa: PLC0415  (slow to import, and needed for Hub ids alone)
    from huggingface_hub import errors  # noqa: PLC0415

    page = f"{_HUB}/{repo_id}"
    at = f" at revision {revision}" if revision else ""
    try:
        folder = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=list(patterns), library_name="pyvllama"
        )
    except errors.GatedRepoError as e:  # before RepositoryNotFoundError, of which it is one
        raise ModelNotFound(
            f"{repo_id} is gated: accept its licence at {page}, then log in with `hf auth login` or set HF_TOKEN to a "
            "token of the same account"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise ModelNotFound(
            f"{repo_id} is neither a local directory nor a repository that the Hub shows you; see {page}, and where it "
            "is private, log in with `hf auth login` or set HF_TOKEN"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise ModelNotFound(
            f"{repo_id} has no revision {revision}; its branches and tags are at {page}/tree/main"
        ) from e
    except errors.LocalEntryNotFoundError as e:
        raise ModelNotFound(
            f"{repo_id}{at} is no local directory, and not (wholly) in the Hub's cache, and the Hub is not to be used "
            "(HF_HUB_OFFLINE) or cannot be reached: download it while online, or name a directory"
        ) from e
    except (errors.HFValidationError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError, OSError) as e:
        raise ModelNotFound(f"{repo_id}{at} could not be downloaded; the same command goes on later: {e}") from e
    return Path(str(folder))
