"""Push a folder to a repository of the hub; the token is never shown."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from deepcait.errors import ConfigError, WeightsError
from deepcait.weights.hub import bare_url, is_of_client, reason_of, split_repository
from deepcait.weights.outgoing import write_timm
from deepcait.weights.spec import Resolved

# Replacement for a path without a last part.
LOCAL = "a local path"
# Prefixes of MODEL and DATA whose slashes are not those of a path.
NOT_PATHS = ("hf-hub:", "timm:", "builtin:", "python:")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9-]+:")  # two letters at least: "C:" is a drive
_ROOTED = re.compile(r"~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\")
# At least two parts, from the root, home or the current folder: "and/or" is not a path.
_INNER = re.compile(
    r"(?<![\w/\\.~])(?:~[\w-]*|\.{1,2}|[A-Za-z]:)?[/\\][^\s/\\\"'<>|,;:()]+(?:[/\\]+[^\s/\\\"'<>|,;:()]+)+"
)
_MAX_PATH = 4096


def require_repository(repository: str) -> str:
    """Return owner/name, checked.

    Raises:
        ConfigError: the name is not owner/name, or has a revision.
    """
    name, revision = split_repository(repository, form="owner/name")
    if revision is not None:
        raise ConfigError(f"a revision can't be pushed to: {repository!r}.", remedy=f"Use {name}.")
    return name


def require_token() -> str:
    """Return the hub's token: HF_TOKEN, or the one stored by `hf auth login`.

    Raises:
        ConfigError: there is none.
    """
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise ConfigError(
            "push: there is no token of the hub in HF_TOKEN or from `hf auth login`.",
            remedy="Create a token with write access (https://huggingface.co/settings/tokens) and run `hf auth login`; "
            "--dry-run writes the folder that would be pushed, without a token.",
        )
    return token


def save_for_hub(folder: Path, found: Resolved) -> Path:
    """Write a model folder without local paths.

    Raises:
        ConfigError: the folder holds something else.
        WeightsError: it can't be written.
    """
    metadata = {key: without_paths(found.section.get(key)) for key in ("recipe", "metrics")}
    return write_timm(
        dataclasses.replace(
            found,
            section=found.section | metadata,
            provenance=without_paths(found.provenance),
            pretrained_cfg=without_paths(found.pretrained_cfg),
        ),
        folder,
    )


def without_paths(value: Any) -> Any:
    """Return JSON with each local path reduced to its last part, and each URL without secrets.

    A MODEL keeps its prefix; paths inside a sentence are reduced too.

    >>> without_paths({"started_from": "/home/me/pets/best", "source": "tar:https://h/x.tar?sig=abc"})
    {'started_from': 'best', 'source': 'tar:https://h/x.tar'}
    """
    if isinstance(value, dict):
        return {without_paths(key): without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(inner) for inner in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return _without_paths(value) if isinstance(value, str) else value


def _without_paths(text: str) -> str:
    if _URL.search(text):
        parts = re.split(f"({_URL.pattern})", text)
        return "".join(bare_url(part) if at % 2 else _cut_inner(part) for at, part in enumerate(parts))
    lines = text.split("\n")
    if len(lines) > 1:
        return "\n".join(map(_without_paths, lines))
    head, comma, path = text.rpartition("weights=")  # timm:NAME,weights=PATH
    kind = _KIND.match(path)
    if kind and not path.startswith(NOT_PATHS):
        head, comma, path = head + comma, kind[0], path[kind.end() :]
        # A MODEL or DATA may not exist any more: without a space, its slashes are still those of a path.
        if not re.search(r"\s", path):
            return f"{head}{comma}{_last_part(path)}" if path else text
    return f"{head}{comma}{_last_part(path)}" if _is_path(path) else _cut_inner(text)


def _is_path(text: str) -> bool:
    if not text or len(text) > _MAX_PATH or "\0" in text:
        return False
    return os.path.isabs(text) or _ROOTED.match(text) is not None or os.path.lexists(text)


def _last_part(path: str) -> str:
    """The last part of a path of any operating system."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1].lstrip("~") or LOCAL


def _cut_inner(text: str) -> str:
    return _INNER.sub(lambda found: _last_part(found[0]), text)


def push_folder(folder: Path, repository: str, *, private: bool = False, message: str = "Model of deepcait") -> str:
    """Commit the files of a folder to a repository, which is created if necessary.

    Other files in the repository are kept. Endpoint and token are those of the hub's client
    (HF_ENDPOINT, HF_TOKEN).

    Args:
        folder: its files, subfolders too.
        repository: owner/name.
        private: make a new repository private.
        message: of the commit.

    Returns:
        The URL of the commit.

    Raises:
        ConfigError: there is no token, or the name is not owner/name.
        WeightsError: the hub refused or is not reachable; the message never contains the token.
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
            f"{repository}: {bare_url(constants.ENDPOINT)} did not accept the model: {reason}.",
            remedy="Check the name and that the token has write access (`hf auth whoami`); nothing was changed "
            "unless the hub shows a commit.",
        ) from None  # the client's own text may contain secrets
    return bare_url(str(commit.commit_url))
