"""The text of `--help`: examples first, then arguments and options, each with its default if it has one."""

from __future__ import annotations

import re
import shutil
import textwrap
import warnings
from argparse import Action

_INDENT = 6


def help_text(kind: type, command: str, description: str) -> str:
    """Return the help of a command.

    Args:
        kind: the command's Args, a dataclass; docstrings of its fields are the help of its options.
        command: its name.
        description: summary, examples and notes.
    """
    import tyro

    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        parser = tyro.extras.get_parser(kind, config=(tyro.conf.FlagCreatePairsOff,))
    own = {f"--{name.rstrip('_').replace('_', '-')}" for name in vars(kind)["__annotations__"]}
    actions = [action for action in parser._actions if action.dest != "help"]
    positions = [action for action in actions if not action.option_strings]
    options = [action for action in actions if action.option_strings]
    options.sort(key=lambda action: not own & set(action.option_strings))  # inherited ones last
    usage = " ".join(["deepcait", command, *(str(action.metavar) for action in positions), "[OPTIONS]"])
    parts = [f"usage: {usage}", description.strip()]
    if positions:
        parts.append("\n".join(["arguments:", *map(_entry, positions)]))
    return "\n\n".join(
        [*parts, "\n".join(["options:", *map(_entry, options), *_lines("-h, --help", "Show this help.")])]
    )


def _entry(action: Action) -> str:
    """One argument or option: its name and value, and its help below."""
    value = re.sub(r"\bSTR\b", "TEXT", re.sub(r"\{None\}\||None,", "", str(action.metavar or "")))
    option = f"--{action.dest.rstrip('_')}" if action.option_strings else ""  # without aliases
    name = f"{option} {value}".strip()
    text = re.sub(r"\s*\((?:default: (?:None|False|''|\"\"|)|optional)\)$", "", " ".join((action.help or "").split()))
    return "\n".join(_lines(name, text))


def _lines(name: str, text: str) -> list[str]:
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 110))
    indent = " " * _INDENT
    wrapped = textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    return [f"  {name}", *wrapped]
