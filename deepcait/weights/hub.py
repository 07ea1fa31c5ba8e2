"""Files of the Hugging Face hub. Its client handles downloads, resuming, cache, mirrors and proxies.

The client (2.4) does not verify the sha256 that the hub announces; this module does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from deepcait.errors import ConfigError, WeightsError
from deepcait.weights.keras import SAVED_MODEL_FILES
from deepcait.weights.published import hub_id

HUB_PREFIX = "hf-hub:"
CONFIG_FILE = "config.json"
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


_SHA256 = re.compile("[0-9a-f]{64}")


def fetch_released(name: str) -> Path:
    """Return the local folder with the released weights of a model, downloaded if not cached.

    Raises:
        ConfigError: the model has no released weights.
        WeightsError: not cached and not available; see `fetch_repository`.
    """
    return fetch_repository(hub_id(name))


def fetch_repository(repository: str, *, look: Callable[[Path], object] | None = None) -> Path:
    """Return a local folder with a hub repository in timm's layout, or with the Keras SavedModel in it.

    HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN and the proxy variables are honoured by the hub's client.

    Args:
        repository: "owner/name", or "owner/name@revision".
        look: called with the path of config.json before the weights are downloaded; may raise.

    Raises:
        ConfigError: the name is not owner/name.
        WeightsError: the repository or file does not exist, access is denied, or there is no connection and it is not
            cached. The message names the files, and where to put them by hand.
    """
    from huggingface_hub.errors import EntryNotFoundError

    repository, revision = split_repository(repository)
    missing: Exception | None = None
    layouts = [*((CONFIG_FILE, name) for name in WEIGHTS_FILES), SAVED_MODEL_FILES]
    # Without a connection, the layout that is cached must be tried first.
    for layout in sorted(layouts, key=lambda files: _find_in_cache(repository, files[0], revision) is None):
        at, folder = revision, None
        try:
            for filename in layout:
                path = _download(repository, filename, at, missing_ok=True)
                if look is not None and filename == CONFIG_FILE:
                    look(path)
                if folder is None:
                    # The commit of the first file, so that all files belong to one commit.
                    folder, at = path.parent, path.parent.name
            if folder is not None:
                return folder
        except EntryNotFoundError as error:  # also raised offline if not cached
            missing = missing or error
    raise _failure(repository, WEIGHTS_FILES[0], revision, missing or FileNotFoundError())


def find_cached(repository: str) -> Path | None:
    """Return the folder of a hub repository if its description is cached; never uses the network."""
    name, revision = split_repository(repository)
    found = [_find_in_cache(name, filename, revision) for filename in (CONFIG_FILE, SAVED_MODEL_FILES[0])]
    return next((path.parent for path in found if path is not None), None)


def _find_in_cache(repository: str, filename: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, filename, revision=revision)
    return Path(found) if isinstance(found, str) else None


def split_repository(repository: str, *, form: str = f"{HUB_PREFIX}owner/name") -> tuple[str, str | None]:
    """Return owner/name and revision (None if not given).

    Args:
        repository: as the user wrote it, without the prefix.
        form: how the argument is written, for the message.

    Raises:
        ConfigError: the name is not owner/name, or not allowed by the hub.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    name, _, revision = repository.partition("@")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name, re.ASCII):
        raise ConfigError(f"{name!r} is not a repository name (owner/name).", remedy=f"Write it as {form}.")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ConfigError(
            f"{name!r} is not a valid repository name ({str(error).rstrip('.')}).",
            remedy="Check the spelling of owner/name.",
        ) from error
    return name, revision or None


def _download(repository: str, filename: str, revision: str | None, *, missing_ok: bool = False) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        _require_available(repository, filename, revision)
        path = Path(hf_hub_download(repository, filename, revision=revision))
    except EntryNotFoundError as error:  # also raised offline if the cache is empty
        if missing_ok:
            raise
        raise _failure(repository, filename, revision, error) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise _failure(repository, filename, revision, error) from error
    except Exception as error:
        if is_of_client(error):
            raise _failure(repository, filename, revision, error) from error
        raise
    _require_announced(repository, path)
    return path


def _require_available(repository: str, filename: str, revision: str | None) -> None:
    """Request a file once that is not cached; the client itself retries six times, for half a minute."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    if not constants.HF_HUB_OFFLINE and _find_in_cache(repository, filename, revision) is None:
        url = hf_hub_url(repository, filename, revision=revision)
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)


def _require_announced(repository: str, path: Path) -> None:
    """Compare a cached file with the sha256 that the hub announced: large files are cached under it."""
    blob = path.resolve()
    if not _SHA256.fullmatch(blob.name):
        return
    with open(blob, "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != blob.name:
        for place in (path, blob):
            with contextlib.suppress(OSError):
                place.unlink()
        raise WeightsError(
            f"hf-hub:{repository}: the sha256 of {path.name} is {got}, but the hub announced {blob.name}.",
            remedy="The file was removed from the cache; try again, or report it to the operator of HF_ENDPOINT.",
        )


def _failure(repository: str, filename: str, revision: str | None, error: Exception) -> WeightsError:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC):
        return WeightsError(
            f"hf-hub:{repository}: can't write {filename} into the cache {constants.HF_HUB_CACHE}: {error.strerror}.",
            remedy="Set HF_HOME to a folder that can be written to and has free space.",
        )
    endpoint = bare_url(constants.ENDPOINT)
    place = f"{endpoint}/{repository}/resolve/{revision or 'main'}"
    return WeightsError(
        f"hf-hub:{repository}: can't download {filename} from {endpoint}: {reason_of(error)}.",
        remedy=f"With a connection, download {place}/{WEIGHTS_FILES[0]} and {place}/{CONFIG_FILE}, put both into "
        "one folder, and give that folder (or the weights file alone) instead of the name; or copy "
        f"{Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type='model')} from a machine that "
        "has it. More: `deepcait help unavailable-weights`.",
    )


def bare_url(url: str) -> str:
    """Return a URL without user, password, query and fragment; for a file: URL, only the file name.

    >>> bare_url("https://me:secret@host/x.tar?sig=abc#part")
    'https://host/x.tar'
    """
    scheme, _, rest = url.partition("://")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    # An unescaped character in a password may end the host; the text after the colon is then not a port.
    if "@" in authority or not re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", authority):
        rest = rest.rpartition("@")[2] if "@" in rest else ""
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    return os.path.basename(rest.rstrip("/")) if scheme.lower() == "file" else f"{scheme}://{rest}"


def is_of_client(error: Exception) -> bool:
    """Whether an error comes from the hub's client or its HTTP library."""
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "huggingface_hub")


def reason_of(error: Exception) -> str:
    """Return why the hub refused or failed, as a clause."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "no access (the repository is gated; log in with `hf auth login`)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository (or a private one, and no token: `hf auth login`)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "no such revision"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set and the file is not in the cache"
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return "no access (log in with `hf auth login`, or set HF_TOKEN to a token that may read it)"
    if "Timeout" in type(error).__name__:
        return "the connection stalled; try again"
    if "ProtocolError" in type(error).__name__:
        return "the connection broke repeatedly; try again"
    if isinstance(error, errors.LocalEntryNotFoundError) or "Connect" in type(error).__name__:
        return "no connection (offline, or a wrong HF_ENDPOINT or proxy), and the file is not in the cache"
    if isinstance(error, errors.EntryNotFoundError):
        return "no such file in the repository"
    first_line = re.sub(r"\w+://[^\s'\"]+", lambda url: bare_url(url[0]), str(error).strip().partition("\n")[0])
    return f"{type(error).__name__}: {first_line}".rstrip(". ")
