"""The one place that asks the Hugging Face hub for files; cache, mirrors and resuming are its client's."""

from __future__ import annotations

import re
from pathlib import Path

from deepcait.errors import ConfigError, WeightsError
from deepcait.weights.published import hub_id

CONFIG_FILE = "config.json"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


def fetch_released(name: str) -> Path:
    """Return the local folder with the released weights of a model, fetched if the cache has none.

    Raises:
        ConfigError: the model has no released weights.
        WeightsError: not cached and not to be had; see `fetch_repository`.
    """
    return fetch_repository(hub_id(name))


def fetch_repository(repository: str) -> Path:
    """Return a local folder with config.json and the weights of a hub repository in timm's layout.

    HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and the proxy variables are honoured by the hub's client.

    Args:
        repository: "owner/name", or "owner/name@revision".

    Raises:
        ConfigError: no owner/name.
        WeightsError: no such repository or file, no access, no connection and not in the cache. The message
            names the files, and where to put them by hand.
    """
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repository, revision = _split(repository)
    config_path = _download(repository, CONFIG_FILE, revision)
    # The commit of the first file: both files belong to one state of the repository.
    commit = config_path.parent.name
    for filename in WEIGHTS_FILES:
        try:
            return _download(repository, filename, commit, missing_ok=filename != WEIGHTS_FILES[-1]).parent
        except LocalEntryNotFoundError as error:
            if filename == WEIGHTS_FILES[-1]:
                raise _failure(repository, WEIGHTS_FILES[0], revision, error) from error
        except EntryNotFoundError:
            continue
    raise AssertionError("the last weights file either came or raised")


def find_cached_config(repository: str) -> Path | None:
    """Return the config.json of a hub repository if the cache holds it; never asks the network."""
    from huggingface_hub import try_to_load_from_cache

    name, revision = _split(repository)
    found = try_to_load_from_cache(name, CONFIG_FILE, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _split(repository: str) -> tuple[str, str | None]:
    """Owner/name and revision, None where none is given."""
    name, _, revision = repository.partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII):
        raise ConfigError(f"expected a repository as owner/name, got {name!r}.", remedy="Write hf-hub:owner/name.")
    return name, revision or None


def _download(repository: str, filename: str, revision: str | None, *, missing_ok: bool = False) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        _require_answer(repository, filename, revision)
        return Path(hf_hub_download(repository, filename, revision=revision))
    except EntryNotFoundError as error:  # also what the client says when it is offline and the cache is empty
        if missing_ok:
            raise
        raise _failure(repository, filename, revision, error) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise _failure(repository, filename, revision, error) from error
    except Exception as error:
        # The client's HTTP library has errors of its own; it may be another library tomorrow.
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "huggingface_hub"):
            raise _failure(repository, filename, revision, error) from error
        raise


def _require_answer(repository: str, filename: str, revision: str | None) -> None:
    """Ask once for a file that is not cached; the client itself asks six times, for half a minute."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, filename, revision=revision)
    if not constants.HF_HUB_OFFLINE and not isinstance(cached, str):
        url = hf_hub_url(repository, filename, revision=revision)
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _failure(repository: str, filename: str, revision: str | None, error: Exception) -> WeightsError:
    from huggingface_hub import constants

    place = f"{constants.ENDPOINT}/{repository}/resolve/{revision or 'main'}"
    return WeightsError(
        f"hf-hub:{repository}: expected {filename} from {constants.ENDPOINT}, got {_reason(error)}.",
        remedy=f"Fetch {place}/{WEIGHTS_FILES[0]} and {place}/{CONFIG_FILE} where there is a connection, put both into "
        "one folder, and give that folder (or the weights file alone) instead of the name.",
    )


def _reason(error: Exception) -> str:
    """One clause that says why a file did not come."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "no access (the repository asks for consent; log in with `hf auth login`)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository (or a private one, and no token: `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision"
    if constants.HF_HUB_OFFLINE:
        return "nothing: HF_HUB_OFFLINE is set and the file is not in the cache"
    if isinstance(error, errors.LocalEntryNotFoundError) or "Connect" in type(error).__name__:
        return "no answer (offline, or a wrong HF_ENDPOINT or proxy), and the file is not in the cache"
    if isinstance(error, errors.EntryNotFoundError):
        return "no such file in the repository"
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}".rstrip(". ")
