"""On-disk cache of shard indices: next to the data, or in the cache folder if that is read-only."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from deepcait.data.shards import is_url
from deepcait.errors import WriteError
from deepcait.runtime.files import write_bytes


def places_of_index(place: str) -> list[Path]:
    """Possible places of a file's index: next to it, and in the cache folder; for a URL only the latter."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "deepcait" / "index"
    absolute = place if is_url(place) else os.path.abspath(place)
    cached = cache / f"{hashlib.sha256(absolute.encode('utf-8', 'surrogateescape')).hexdigest()}.json"
    return [cached] if is_url(place) else [Path(f"{place}.index.json"), cached]


def read_index(place: str, stamp: str, form: str) -> Any:
    """The stored index of a file; None if there is none or the file has changed."""
    for path in places_of_index(place):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] == form and content["stamp"] == stamp:
                return content["index"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return None


def write_index(place: str, stamp: str, form: str, index: Any) -> Path | None:
    """Store the index of a file and return its path; None if nothing can be written (it is then built each time)."""
    text = json.dumps({"format": form, "stamp": stamp, "index": index}) + "\n"
    for path in places_of_index(place):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, text.encode(), flush=False)
        except (OSError, WriteError):
            continue
        return path
    return None
