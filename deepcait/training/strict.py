"""Read YAML strictly into dataclasses: a wrong key or type is an error with file, line and a suggestion."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

from deepcait.errors import ConfigError, DeepcaitError, together

Settings = TypeVar("Settings")
# Parsing takes a second a megabyte or so; no recipe has a hundredth of that.
_MAX_BYTES = 2**20
# Keys that people look for, and what there is: the nearest name is another thing.
_ELSEWHERE = {
    "vflip": "Images are not turned upside down in training; augment.flip mirrors them left to right.",
}


def read_yaml(text: str, origin: str) -> yaml.MappingNode:
    """Return the root mapping of a YAML text; its nodes have line and column.

    Raises:
        ConfigError: not YAML, or not a mapping.
    """
    try:
        # SafeLoader builds no objects: `!!python/...` tags stay text, and text is refused where a number is due.
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"{origin}: not valid YAML: {' '.join(str(error).split())}.", remedy="Correct the file."
        ) from None
    if root is None:
        return yaml.MappingNode("tag:yaml.org,2002:map", [])
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            f"{origin}: expected `key: value` lines, got a {root.id}.", remedy="See deepcait/recipes for examples."
        )
    return root


def overlay(base: Settings, node: yaml.MappingNode, origin: str, path: str = "", whole: Any = None) -> Settings:
    """Return a copy of a dataclass with values replaced by those of a YAML mapping.

    Args:
        base: a frozen dataclass; its annotations define the keys and their types.
        node: from `read_yaml`.
        origin: name of the file, for messages.
        path: the place of this mapping in the file, for messages.
        whole: what base is a section of, for messages; None: base itself.

    Raises:
        ConfigError: unknown keys (with file, line, column and a suggestion), wrong types, keys twice, and values that
            the dataclass refuses: all of them in one error.
    """
    hints = typing.get_type_hints(type(base))
    whole = base if whole is None else whole
    changes: dict[str, Any] = {}
    errors: list[DeepcaitError] = []
    for key_node, value_node in node.value:
        key = str(key_node.value)
        here = f"{origin}{_place(key_node)}: {path}{key}"
        try:
            if key not in hints:
                raise ConfigError(f"{here}: unknown key.", remedy=_suggest(key, hints, whole))
            if key in changes:
                raise ConfigError(f"{here}: duplicate key.", remedy="Keep one of them.")
            current = getattr(base, key)
            if dataclasses.is_dataclass(current) and isinstance(value_node, yaml.MappingNode):
                changes[key] = overlay(current, value_node, origin, f"{path}{key}.", whole)
            else:
                changes[key] = _value(value_node, hints[key], here, whole)
        except ConfigError as error:
            errors.append(error)
    try:
        changed = dataclasses.replace(cast("Any", base), **changes)
    except ConfigError as error:
        errors.append(error)
    else:
        if not errors:
            return changed
    raise together(errors)


def _value(node: yaml.Node, wanted: Any, here: str, whole: Any) -> Any:
    """What a key that is not a section holds."""
    if isinstance(node, yaml.MappingNode):
        inside = str(node.value[0][0].value) if node.value else ""
        problem = f"{here}: expected one value, got a section{f' with the key {inside!r}' if inside else ''}."
        raise ConfigError(problem, remedy=_elsewhere(inside, whole) or "Write `key: value`.")
    return _convert(node, wanted, here)


def read_assignment(assignment: str) -> tuple[yaml.MappingNode, str]:
    """Return `a.b=value` as a nested mapping, its value read as YAML, and its origin for messages.

    Raises:
        ConfigError: no `=`, or a value that is not YAML.
    """
    path, equals, value = assignment.partition("=")
    if not equals or not path.strip():
        raise ConfigError(f"--set: expected key=value, got {assignment!r}.", remedy="For example --set epochs=10.")
    origin = f"--set {assignment}"
    try:
        # None: nothing, or a comment alone.
        node: Any = yaml.compose(value, Loader=yaml.SafeLoader) or _text_node("null", "null")
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{origin}: not valid YAML: {reason}.", remedy="Put the value in quotes.") from None
    for key in reversed(path.strip().split(".")):
        node = yaml.MappingNode("tag:yaml.org,2002:map", [(_text_node("str", key), node)])
    return node, origin


def to_yaml(settings: Any) -> str:
    """Return a dataclass as YAML that `overlay` reads back to an equal one."""
    return yaml.safe_dump(_plain(settings), sort_keys=False, width=110, allow_unicode=False)


def read_text(path: Path) -> str:
    """Return a settings file's text.

    Raises:
        ConfigError: missing, unreadable, not UTF-8, or larger than any settings are.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path}: larger than a megabyte, so not a settings file.", remedy="Check the path.")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise ConfigError(f"{path}: the file can't be read: {reason}.", remedy="Check the path.") from None


def _text_node(kind: str, value: str) -> yaml.ScalarNode:
    return yaml.ScalarNode(f"tag:yaml.org,2002:{kind}", value)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, str) else value  # a user-defined part is stored by its name


def _place(node: yaml.Node) -> str:
    # What was given on the command line has no line to point at.
    return f":{node.start_mark.line + 1}:{node.start_mark.column + 1}" if node.start_mark else ""


def _suggest(key: str, known: typing.Iterable[str], whole: Any) -> str:
    if key in _ELSEWHERE:
        return _ELSEWHERE[key]
    if there := _elsewhere(key, whole):
        return there
    near = difflib.get_close_matches(key, known, n=1)
    return f"Did you mean '{near[0]}'?" if near else f"Known here: {', '.join(known)}."


def _elsewhere(key: str, whole: Any) -> str:
    """Suggest the same key of another section; empty if no section has it."""
    places = [f"'{place}'" for place in list_keys(whole) if place.rpartition(".")[2] == key]
    return f"Did you mean {' or '.join(places)}?" if places else ""


def list_keys(settings: Any, path: str = "") -> typing.Iterator[str]:
    """Yield every key of a dataclass, sections and those in them too, dotted."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        yield f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from list_keys(value, f"{path}{field.name}.")


def _convert(node: yaml.Node, wanted: Any, here: str) -> Any:
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        return _convert_union(node, typing.get_args(wanted), here)
    if typing.get_origin(wanted) is tuple:
        return _convert_tuple(node, typing.get_args(wanted), here)
    value = _scalar(node)
    if wanted is str and value is None and _is_blank(here):
        return ""
    if wanted is float and isinstance(value, str):
        value = _float(value)
    if wanted is float and type(value) is int:
        value = float(value)
    if type(value) is not wanted or (wanted is float and not math.isfinite(value)):
        names = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
        got = f"a {getattr(node, 'id', 'value')}" if value is node else "nothing" if _is_blank(here) else repr(value)
        remedy = "Put it in quotes." if wanted is str else "Correct the value."
        raise ConfigError(f"{here}: expected {names.get(wanted, 'a section')}, got {got}.", remedy=remedy)
    return value


def _float(text: str) -> float | str:
    # YAML 1.1 reads 1e-3 as text, because it has no point.
    try:
        return float(text)
    except ValueError:
        return text


def _convert_union(node: yaml.Node, options: tuple, here: str) -> Any:
    errors = []
    for option in sorted(options, key=lambda kind: kind is not type(None)):
        try:
            return _convert(node, option, here)
        except ConfigError as error:
            errors.append(error)
    raise errors[-1]


def _convert_tuple(node: yaml.Node, items: tuple, here: str) -> tuple:
    if items[-1] is Ellipsis and _scalar(node) is None and _is_blank(here):
        return ()
    if not isinstance(node, yaml.SequenceNode):
        got = "nothing" if _is_blank(here) else repr(_scalar(node))
        raise ConfigError(f"{here}: expected a list, got {got}.", remedy="Write it as [a, b].")
    kinds = [items[0]] * len(node.value) if items[-1] is Ellipsis else list(items)
    if len(kinds) != len(node.value):
        raise ConfigError(f"{here}: expected {len(kinds)} values, got {len(node.value)}.", remedy="Correct the list.")
    return tuple(_convert(item, kind, here) for item, kind in zip(node.value, kinds, strict=True))


def _is_blank(here: str) -> bool:
    """Whether the place is an assignment without a value, `--set key=`: an empty text or list."""
    return here.startswith("--set ") and here.partition(":")[0].endswith("=")


def _scalar(node: yaml.Node) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        return node
    try:
        return yaml.SafeLoader("").construct_object(node)
    except (yaml.YAMLError, ValueError, AttributeError):  # an unknown tag; an invalid date or number
        return node
