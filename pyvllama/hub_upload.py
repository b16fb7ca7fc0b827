"""Files to a repository on the Hub, in one commit, by the Hub's own client."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from pyvllama.errors import ConfigError
from pyvllama.hub_client import HUB, LIBRARY, is_hub_id, unreachable

__all__ = ["CARD", "upload"]

CARD = "README.md"


def upload(
    repo_id: str, files: Sequence[Path], card: str, *, private: bool = False, overwrite_card: bool = False
) -> tuple[str, bool]:
    """Make the repository if there is none, and add files and card to it in one commit.

    Files of the same names are replaced; other files of the repository stay. The token is the Hub client's: `HF_TOKEN`,
    or what `hf auth login` stored.

    Args:
        repo_id: `user/repo`.
        files: local files; they lie at the top of the repository under their own names.
        card: text of its README.md.
        private: whether a repository that is made now is seen by its owner only.
        overwrite_card: replace a README.md that the repository has.

    Returns:
        Address of the commit, and whether the card is part of it.

    Raises:
        ConfigError: no name of a repository; the Hub refuses, or cannot be reached (the message says why).
    """
    import huggingface_hub  # noqa: PLC0415  (slow to import)

    if not is_hub_id(repo_id):
        raise ConfigError(f"{repo_id!r} is no name of a repository on the Hub: user/name")
    api = huggingface_hub.HfApi(library_name=LIBRARY)
    add = huggingface_hub.CommitOperationAdd
    with _errors(repo_id):
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        with_card = overwrite_card or not api.file_exists(repo_id, CARD)
        operations = [add(path_in_repo=path.name, path_or_fileobj=str(path)) for path in files]
        if with_card:
            operations.append(add(path_in_repo=CARD, path_or_fileobj=card.encode()))
        names = ", ".join(path.name for path in files[:3]) + (", ..." if len(files) > 3 else "")
        commit = api.create_commit(repo_id, operations, commit_message=f"Upload {names} with pyvllama")
    return str(commit.commit_url), with_card


@contextlib.contextmanager
def _errors(repo_id: str) -> Iterator[None]:
    from huggingface_hub import errors  # noqa: PLC0415

    login = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
    silent: tuple[type[BaseException], ...] = unreachable()
    try:
        yield
    except errors.LocalTokenNotFoundError as e:
        raise ConfigError(f"{repo_id}: nobody is logged in; {login}") from e
    except errors.HfHubHTTPError as e:
        status = getattr(getattr(e, "response", None), "status_code", None)
        if status in (401, 403):
            raise ConfigError(f"{repo_id}: the Hub does not let you write to it; {login} to {HUB}/{repo_id}") from e
        raise ConfigError(f"{repo_id}: the Hub refused the upload: {e}") from e
    except errors.OfflineModeIsEnabled as e:
        raise ConfigError(f"{repo_id}: nothing can be uploaded while HF_HUB_OFFLINE is set") from e
    except silent as e:
        raise ConfigError(f"{repo_id}: the Hub cannot be reached; the same command goes on later: {e}") from e
    except (errors.HFValidationError, OSError, ValueError) as e:  # ValueError: the Hub's check of the card's head
        raise ConfigError(f"{repo_id}: the upload failed: {e}") from e
