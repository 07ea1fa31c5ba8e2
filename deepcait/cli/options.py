"""The options of a verb: read by tyro, mistakes told in one paragraph."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
from collections.abc import Sequence
from typing import Any

from deepcait.errors import ConfigError


def parse_options(kind: type, argv: Sequence[str], *, verb: str, description: str) -> Any:
    """Build the options of a verb from the command line.

    Args:
        kind: the verb's Args, a dataclass; the docstrings of its fields are the help.
        argv: what follows the verb.
        description: text above the options in the help.

    Returns:
        An instance of `kind`; None after showing the help.

    Raises:
        ConfigError: an unknown option, a missing one, or a value that does not fit.
    """
    import tyro

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                kind,
                args=list(argv),
                prog=f"deepcait {verb}",
                description=description.strip(),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if not end.code:
            return None
        raise _mistake(kind, argv, verb, told.getvalue()) from None


def whole_numbers(text: str, option: str) -> list[int]:
    """Return the numbers of an option such as `--batch 1,8`.

    Raises:
        ConfigError: something else than positive numbers with commas.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option}: expected numbers of 1 or more such as 1,8, got {text!r}.", remedy=f"{option} 1,8")
    return [int(part) for part in parts]


def _mistake(kind: type, argv: Sequence[str], verb: str, told: str) -> ConfigError:
    known = [f"--{field.name.rstrip('_').replace('_', '-')}" for field in dataclasses.fields(kind)] + ["--help"]
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if word.startswith("--") and word != "--" and name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            return ConfigError(
                f"deepcait {verb}: expected one of its options, got {word!r}.",
                remedy=f"Did you mean {near[0]}?" if near else f"`deepcait {verb} --help` lists them.",
            )
    text = _sentence(told)
    if text.startswith("Missing from"):
        text = f"expected {_first_missing(text)}, got none."
    return ConfigError(f"deepcait {verb}: {text}", remedy=f"`deepcait {verb} --help` shows options and examples.")


def _first_missing(text: str) -> str:
    """The first name in tyro's list of what is missing: an option, or the placeholder of a position."""
    return text.partition(": ")[2].split(maxsplit=1)[0]


def _sentence(told: str) -> str:
    """What tyro says, without its frame, its heading and what follows the first rule."""
    body = told.partition("\u2500 ")[2].partition("\n")[2] or told
    first = re.split(r"\u2500{8,}", body)[0]
    # The frame: characters of the box-drawing block.
    text = " ".join(re.sub("[\u2500-\u257f]", " ", first).split())
    return (text or "an option does not fit").rstrip(". ") + "."
