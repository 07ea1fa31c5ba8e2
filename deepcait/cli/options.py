"""The options of a verb: read by tyro, mistakes told in one paragraph."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal

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


def image_size(text: str, option: str) -> int | tuple[int, int]:
    """Return an image size: a side in pixels, or (height, width) of a text such as `224x320`.

    Raises:
        ConfigError: something else.
    """
    sides = text.strip().lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() and int(side) > 0 for side in sides):
        raise ConfigError(
            f"{option}: {text!r} is not an image size.", remedy="Give a side or HEIGHTxWIDTH in pixels: 224 or 224x320."
        )
    return int(sides[0]) if len(sides) == 1 else (int(sides[0]), int(sides[1]))


def whole_numbers(text: str, option: str) -> list[int]:
    """Return the numbers of an option such as `--batch 1,8`.

    Raises:
        ConfigError: something else than positive numbers with commas.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option}: expected numbers of 1 or more such as 1,8, got {text!r}.", remedy=f"{option} 1,8")
    return [int(part) for part in parts]


def settings(given: Iterable[Sequence[str]]) -> list[str]:
    """Return what stands behind every `--set`, in order.

    Raises:
        ConfigError: nothing behind one of them.
    """
    given = list(given)
    if not all(given):
        raise ConfigError("--set: expected key=value behind it, got nothing.", remedy="For example --set epochs=10.")
    return [text for texts in given for text in texts]


def _mistake(kind: type, argv: Sequence[str], verb: str, told: str) -> ConfigError:
    known = [_option(field.name) for field in dataclasses.fields(kind)] + ["--help"]
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if word.startswith("--") and word != "--" and name not in known:
            near = _as_settings(name, argv) if "--set" in known else []
            near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            return ConfigError(
                f"deepcait {verb}: expected one of its options, got {word!r}.",
                remedy=f"Did you mean {' or '.join(near)}?" if near else f"`deepcait {verb} --help` lists them.",
            )
    text = _sentence(told)
    if named := re.search("(?:argument '|parsing )(--[a-z-]+)", text):
        return _unfitting(kind, argv, verb, named[1])
    if missing := re.search(r"Missing from [^:]*: (\S+)", text):  # an option, or the placeholder of a position
        text = f"expected {missing[1]}, got none."
    elif unknown := re.search("Unrecognized options: (.*)", text):
        text = f"expected nothing but its options, got {unknown[1]!r}."
    return ConfigError(f"deepcait {verb}: {text}", remedy=f"`deepcait {verb} --help` shows options and examples.")


def _as_settings(option: str, argv: Sequence[str]) -> list[str]:
    """A key of the recipe that was given as an option, as it is to be given; the key alone, or its last words, do."""
    from deepcait.training.recipe import Recipe
    from deepcait.training.strict import list_keys

    # Sections are no keys; what is told in `about` decides nothing.
    every = list(list_keys(Recipe()))
    keys = [key for key in every if not any(other.startswith(f"{key}.") for other in every)]
    keys = [key for key in keys if not key.startswith("about.")]
    asked = option.removeprefix("--").replace("-", "_")
    same = [key for key in keys if asked in (key, key.rpartition(".")[2])]
    found = same or [key for key in keys if key.endswith(f"_{asked}")]
    return [f"--set {key}={_value_of(option, argv) or 'VALUE'}" for key in found]


def _option(name: str) -> str:
    """The option of a field: batch_size is --batch-size, class_ is --class."""
    return f"--{name.rstrip('_').replace('_', '-')}"


def _unfitting(kind: type, argv: Sequence[str], verb: str, option: str) -> ConfigError:
    """An option whose value is missing or of another kind: what it takes is read off its field."""
    hints = {_option(name): hint for name, hint in typing.get_type_hints(kind).items()}
    hint = hints[option]
    parts = typing.get_args(hint)
    if type(None) in parts:  # an option that may be left out
        (hint,) = [part for part in parts if part is not type(None)]
    choices = [str(one) for one in typing.get_args(hint)] if typing.get_origin(hint) is Literal else []
    if choices:
        expected = " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)
    else:
        expected = {int: "a whole number", float: "a number"}.get(hint, "a value behind it")
    got = _value_of(option, argv)
    near = difflib.get_close_matches(got or "", choices, n=1)
    return ConfigError(
        f"{option}: expected {expected}, got {'nothing' if got is None else repr(got)}.",
        remedy=f"Did you mean {near[0]}?" if near else f"`deepcait {verb} --help` shows options and examples.",
    )


def _value_of(option: str, argv: Sequence[str]) -> str | None:
    """What stands behind the last mention of an option; None where nothing does."""
    found = None
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == option:
            found = value if equals else following
    return None if found is None or re.match("--[a-z]", found) else found


def _sentence(told: str) -> str:
    """What tyro says in one line, without its frame, its rules and its last words.

    The frame is of box-drawing characters where stdout has them, else of minus signs.
    """
    words = " ".join(re.sub("[\u2500-\u257f]|-{8,}", " ", told).split())
    return words.partition(" For full helptext")[0] or "an option does not fit."
