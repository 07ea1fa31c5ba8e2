"""Renamed settings: old names still work in recipes, `config.yaml`, `--set` and checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alias:
    """The new name of an old key.

    key: dotted name of the setting now. values: old value -> new value, if they changed too.
    """

    key: str
    values: Mapping[str, str] = field(default_factory=dict)


# Old dotted key -> its alias. A renamed setting is one line here.
ALIASES: dict[str, Alias] = {
    "compute.attention": Alias("compute.backend", {"lean": "lean", "plain": "reference"}),
}


def rename_nodes(root: yaml.MappingNode) -> yaml.MappingNode:
    """Return YAML settings with every old key under its new name; each one is logged as a warning.

    Nodes keep their line and column, so that errors point at what the user wrote.
    """
    kept, moved = _take_old(root, "")
    for old, key_node, value_node in moved:
        alias = ALIASES[old]
        _logger.warning("%s is called %s now; the old name still works.", old, alias.key)
        if isinstance(value_node, yaml.ScalarNode):
            value = alias.values.get(value_node.value, value_node.value)
            value_node = yaml.ScalarNode(value_node.tag, value, value_node.start_mark, value_node.end_mark)
        _insert(kept, alias.key.split("."), key_node, value_node)
    return kept


def rename_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name, as a checkpoint remembers them, with every old name replaced by the new one."""
    renamed = {}
    for name, value in settings.items():
        alias = ALIASES.get(name)
        if alias is not None:
            name, value = alias.key, alias.values.get(value, value) if isinstance(value, str) else value
        renamed[name] = value
    return renamed


def _take_old(node: yaml.MappingNode, path: str) -> tuple[yaml.MappingNode, list[tuple[str, yaml.Node, yaml.Node]]]:
    """A copy of a mapping without old keys, and these as (dotted key, key node, value node)."""
    pairs: list[tuple[yaml.Node, yaml.Node]] = []
    moved: list[tuple[str, yaml.Node, yaml.Node]] = []
    for key_node, value_node in node.value:
        name = f"{path}{key_node.value}"
        if name in ALIASES:
            moved.append((name, key_node, value_node))
            continue
        # Only where an old key may be: a mapping of hostile YAML can hold itself.
        if isinstance(value_node, yaml.MappingNode) and any(old.startswith(f"{name}.") for old in ALIASES):
            value_node, inner = _take_old(value_node, f"{name}.")
            moved += inner
            if inner and not value_node.value:
                continue
        pairs.append((key_node, value_node))
    return yaml.MappingNode(node.tag, pairs, node.start_mark, node.end_mark), moved


def _insert(root: yaml.MappingNode, path: list[str], key_node: yaml.Node, value_node: yaml.Node) -> None:
    """Insert a value at a dotted key, in existing or new sections."""
    for name in path[:-1]:
        section = next((value for key, value in root.value if key.value == name), None)
        if not isinstance(section, yaml.MappingNode):
            section = yaml.MappingNode(root.tag, [], key_node.start_mark, key_node.end_mark)
            root.value.append((_key(name, key_node), section))
        root = section
    root.value.append((_key(path[-1], key_node), value_node))


def _key(name: str, like: yaml.Node) -> yaml.ScalarNode:
    return yaml.ScalarNode("tag:yaml.org,2002:str", name, like.start_mark, like.end_mark)
