"""The options of a command: parsed by tyro, with errors as one paragraph."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import typing
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from deepcait.cli.usage import help_text
from deepcait.errors import ConfigError, DeepcaitWarning


def parse_options(kind: type, argv: Sequence[str], *, command: str, description: str) -> Any:
    """Build the options of a command from the command line.

    Args:
        kind: the command's Args, a dataclass; the docstrings of its fields are the help.
        argv: arguments after the command.
        description: text above the options in the help.

    Returns:
        An instance of `kind`; None after showing the help.

    Raises:
        ConfigError: an option is unknown or missing, or a value is not valid.
    """
    import tyro

    if {"-h", "--help"} & set(argv):
        print(help_text(kind, command, description))
        return None
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            args = tyro.cli(
                kind,
                args=list(argv),
                prog=f"deepcait {command}",
                description=description.strip(),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if not end.code:
            return None
        raise _mistake(kind, argv, command, printed.getvalue()) from None
    _warn_of_old_names(kind, argv)
    return args


def image_size(text: str, option: str) -> int | tuple[int, int]:
    """Return an image size: a side in pixels, or (height, width) of a text such as `224x320`.

    Raises:
        ConfigError: the text is not an image size.
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
        ConfigError: the text is not a list of positive integers with commas.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(
            f"{option}: expected positive integers such as 1,8, got {text!r}.", remedy=f"Use {option} 1,8."
        )
    return [int(part) for part in parts]


def settings(given: Iterable[Sequence[str]]) -> list[str]:
    """Return the values of all `--set` options, in order.

    Raises:
        ConfigError: one of them has no value.
    """
    given = list(given)
    if not all(given):
        raise ConfigError("--set needs key=value after it.", remedy="For example --set epochs=10.")
    return [text for texts in given for text in texts]


def _mistake(kind: type, argv: Sequence[str], command: str, printed: str) -> ConfigError:
    known = [*_options(kind), "--help"]
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if word.startswith("--") and word != "--" and name not in known:
            near = _as_settings(name, argv) if "--set" in known else []
            near = near or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            return ConfigError(
                f"deepcait {command}: unknown option {word!r}.",
                remedy=f"Did you mean {' or '.join(near)}?"
                if near
                else f"`deepcait {command} --help` lists the options.",
            )
    text = _sentence(printed)
    if named := re.search("(?:argument '|parsing )(--[a-z-]+)", text):
        return _bad_value(kind, argv, command, named[1])
    if missing := re.search(r"Missing from [^:]*: (\S+)", text):  # an option, or the placeholder of a position
        text = f"{missing[1]} is missing."
    elif unknown := re.search("Unrecognized options: (.*)", text):
        text = f"unexpected argument {unknown[1]!r}."
    return ConfigError(f"deepcait {command}: {text}", remedy=f"`deepcait {command} --help` shows examples and options.")


def _as_settings(option: str, argv: Sequence[str]) -> list[str]:
    """Corrections for a recipe key that was given as an option, by its full name or its last words."""
    from deepcait.training.recipe import Recipe
    from deepcait.training.strict import list_keys

    # Sections are not keys, and keys of `about` have no effect.
    every = list(list_keys(Recipe()))
    keys = [key for key in every if not any(other.startswith(f"{key}.") for other in every)]
    keys = [key for key in keys if not key.startswith("about.")]
    asked = option.removeprefix("--").replace("-", "_")
    if any(other.startswith(f"{asked}.") for other in every):  # a section, which does not determine the key
        return []
    same = [key for key in keys if asked in (key, key.rpartition(".")[2])]
    found = same or [key for key in keys if key.endswith(f"_{asked}")]
    return [f"--set {key}={_value_of(option, argv) or 'VALUE'}" for key in found]


def _warn_of_old_names(kind: type, argv: Sequence[str]) -> None:
    written = [word.partition("=")[0] for word in argv]
    for option, field in _options(kind).items():
        name = _option(field)
        if option != name and option in written:
            warnings.warn(f"{option} is called {name} now; the old name still works.", DeepcaitWarning, stacklevel=2)


def _option(field: str) -> str:
    """The option of a field: batch_size is --batch-size, class_ is --class."""
    return f"--{field.rstrip('_').replace('_', '-')}"


def _options(kind: type) -> dict[str, str]:
    """Option -> field, aliases too."""
    found = {_option(field.name): field.name for field in dataclasses.fields(kind)}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        for extra in getattr(hint, "__metadata__", ()):
            found |= dict.fromkeys(getattr(extra, "aliases", None) or (), name)
    return found


def _bad_value(kind: type, argv: Sequence[str], command: str, option: str) -> ConfigError:
    """The error for an option with a missing or invalid value; the expected values are taken from its field."""
    options = _options(kind)
    field = options[option]
    written = [word.partition("=")[0].replace("_", "-") for word in argv]
    option = next((word for word in written if options.get(word) == field), option)  # the alias that was written
    hint = typing.get_type_hints(kind)[field]
    parts = typing.get_args(hint)
    if type(None) in parts:  # an optional option
        (hint,) = [part for part in parts if part is not type(None)]
    choices = [str(one) for one in typing.get_args(hint)] if typing.get_origin(hint) is Literal else []
    if choices:
        expected = " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)
    else:
        expected = {int: "an integer", float: "a number"}.get(hint, "a value after it")
    got = _value_of(option, argv)
    near = difflib.get_close_matches(got or "", choices, n=1)
    return ConfigError(
        f"{option}: expected {expected}, got {'nothing' if got is None else repr(got)}.",
        remedy=f"Did you mean {near[0]}?" if near else f"`deepcait {command} --help` shows examples and options.",
    )


def _value_of(option: str, argv: Sequence[str]) -> str | None:
    """The value after the last occurrence of an option; None if there is none."""
    found = None
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        name, equals, value = word.partition("=")
        if name.replace("_", "-") == option:
            found = value if equals else following
    return None if found is None or re.match("--[a-z]", found) else found


def _sentence(printed: str) -> str:
    """tyro's message as one line, without its frame, rules and final hint.

    The frame consists of box-drawing characters if stdout supports them, else of minus signs.
    """
    words = " ".join(re.sub("[\u2500-\u257f]|-{8,}", " ", printed).split())
    return words.partition(" For full helptext")[0] or "an option is not valid."
