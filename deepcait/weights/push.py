"""From a folder to a repository of the hub; the token is used, and never shown."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from deepcait.errors import ConfigError, WeightsError
from deepcait.weights.hub import is_of_client, reason_of, split_repository
from deepcait.weights.outgoing import write_timm
from deepcait.weights.spec import Resolved


def require_repository(repository: str) -> str:
    """Return owner/name, checked.

    Raises:
        ConfigError: anything else, a revision too.
    """
    name, revision = split_repository(repository)
    if revision is not None:
        raise ConfigError(f"expected owner/name, got a revision too: {repository!r}.", remedy=f"Give {name}.")
    return name


def require_token() -> str:
    """Return the hub's token: HF_TOKEN, or what `hf auth login` stored.

    Raises:
        ConfigError: there is none.
    """
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise ConfigError(
            "push: expected a token of the hub, got none in HF_TOKEN or from `hf auth login`.",
            remedy="Make one that may write (https://huggingface.co/settings/tokens) and log in with `hf auth login`; "
            "--dry-run writes the folder that would be pushed without one.",
        )
    return token


def save_for_hub(folder: Path, found: Resolved) -> Path:
    """Write a model folder that tells no path of this machine.

    Raises:
        ConfigError: the folder holds something else.
        WeightsError: it can't be written.
    """
    section = found.section | {"recipe": without_paths(found.section.get("recipe"))}
    return write_timm(dataclasses.replace(found, section=section, provenance=without_paths(found.provenance)), folder)


def without_paths(value: Any) -> Any:
    """Return JSON with each path of this machine cut down to its last part.

    >>> without_paths({"started_from": "/home/me/pets/best", "teacher": "timm:regnety_160"})
    {'started_from': 'best', 'teacher': 'timm:regnety_160'}
    """
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value]
    if not isinstance(value, str) or "\n" in value or len(value) > 4096:
        return value
    head, comma, path = value.rpartition("weights=")  # timm:NAME,weights=PATH
    is_path = os.path.isabs(path) or path.startswith(("~", "." + os.sep, ".." + os.sep)) or os.path.lexists(path)
    return f"{head}{comma}{os.path.basename(os.path.normpath(path))}" if path and is_path else value


def push_folder(folder: Path, repository: str, *, private: bool = False, message: str = "Model of deepcait") -> str:
    """Commit the files of a folder to a repository, which is made if it is not there.

    Files in the repository that the folder does not have stay. Endpoint and token are those of the hub's client
    (HF_ENDPOINT, HF_TOKEN).

    Args:
        folder: its files, subfolders too.
        repository: owner/name.
        private: make a new repository private.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: no token, or no owner/name.
        WeightsError: the hub refused, or did not answer; the message never holds the token.
    """
    from huggingface_hub import HfApi, constants

    repository, token = require_repository(repository), require_token()
    api = HfApi(token=token)
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:
        if not is_of_client(error) and not isinstance(error, OSError | ValueError | RuntimeError):
            raise
        reason = reason_of(error).replace(token, "***")
        raise WeightsError(
            f"{repository}: expected {constants.ENDPOINT} to take the model, got {reason}.",
            remedy="Check the name and that the token may write there (`hf auth whoami`); nothing was changed "
            "unless the hub shows a commit.",
        ) from None  # the client's own text may hold what was sent
    return str(commit.commit_url)
