"""From a folder to a repository of the hub; the token is used, and never shown."""

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

# What stands for a path that has no last part.
LOCAL = "a local path"
# SPECs whose slashes are no path's.
NOT_PATHS = ("hf-hub:", "timm:", "builtin:", "python:")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9-]+:")  # two letters at least: "C:" is a drive
_ROOTED = re.compile(r"~|\.{1,2}[/\\]|[A-Za-z]:[/\\]|\\\\")
# Two parts at least, from the root, from home or from here: "and/or" is no path.
_INNER = re.compile(
    r"(?<![\w/\\.~])(?:~[\w-]*|\.{1,2}|[A-Za-z]:)?[/\\][^\s/\\\"'<>|,;:()]+(?:[/\\]+[^\s/\\\"'<>|,;:()]+)+"
)
_MAX_PATH = 4096


def require_repository(repository: str) -> str:
    """Return owner/name, checked.

    Raises:
        ConfigError: anything else, a revision too.
    """
    name, revision = split_repository(repository, form="owner/name")
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
    story = {key: without_paths(found.section.get(key)) for key in ("recipe", "metrics")}
    return write_timm(
        dataclasses.replace(
            found,
            section=found.section | story,
            provenance=without_paths(found.provenance),
            pretrained_cfg=without_paths(found.pretrained_cfg),
        ),
        folder,
    )


def without_paths(value: Any) -> Any:
    """Return JSON with each path of this machine cut down to its last part, and each URL without its secrets.

    The path of a SPEC keeps its kind; paths within a sentence are cut as well as those that are the whole text.

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
        # A SPEC may name what is on no machine today: without a blank its slashes still are those of a path.
        if not re.search(r"\s", path):
            return f"{head}{comma}{_last_part(path)}" if path else text
    return f"{head}{comma}{_last_part(path)}" if _is_path(path) else _cut_inner(text)


def _is_path(text: str) -> bool:
    if not text or len(text) > _MAX_PATH or "\0" in text:
        return False
    return os.path.isabs(text) or _ROOTED.match(text) is not None or os.path.lexists(text)


def _last_part(path: str) -> str:
    """The name at the end of a path, whatever system wrote it."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1].lstrip("~") or LOCAL


def _cut_inner(text: str) -> str:
    return _INNER.sub(lambda found: _last_part(found[0]), text)


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
            f"{repository}: expected {bare_url(constants.ENDPOINT)} to take the model, got {reason}.",
            remedy="Check the name and that the token may write there (`hf auth whoami`); nothing was changed "
            "unless the hub shows a commit.",
        ) from None  # the client's own text may hold what was sent
    return bare_url(str(commit.commit_url))
