"""Mutated recipes through the loader: a recipe or our error, in bounded time; nothing in them runs."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import pytest

import deepcait.training.recipe as recipe_module
from deepcait.errors import DeepcaitError
from deepcait.training.recipe import Recipe, load_recipe, recipe_names

FOLDER = Path(recipe_module.__file__).parent.parent / "recipes"
MAX_SECONDS = 10.0  # of the processor: a loop without an end, not a slow machine
_PIECES = [
    *("!!python/object/apply:os.system ['touch was_run']", "!!python/name:os.system", "!!binary aGk=", "!!set {a, b}"),
    *("&a [*a]", "*nobody", "<<: *a", "{", "}", "[", "]", ":", "- ", "? ", "|", ">", "'", '"', "#", "%YAML 9.9", "---"),
    *(".inf", ".nan", "-1", "1e999", "0x7fffffffffffffff", "999999999999999999999", "1:2:3", "2001-01-01", "~", "yes"),
    *("extends: self", "extends: ../../etc/passwd", "\x00", "\ufeff", "\u2028", "\t", "é" * 9, "a" * 3000),
]


def mutate(text: str, draw: random.Random) -> str:
    """A recipe with a few pieces put in, taken out, or exchanged."""
    for _ in range(draw.randint(1, 5)):
        position = draw.randrange(len(text) + 1)
        end = position + draw.choice([0, 0, 1, 3, 20])
        text = text[:position] + draw.choice([*_PIECES, chr(draw.randrange(32, 300)), ""]) + text[end:]
    return text


@pytest.mark.parametrize("number", [200, pytest.param(20_000, marks=pytest.mark.soak)])
def test_mutated_recipes_are_recipes_or_our_error(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    sound = [(FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in recipe_names()]
    draw, outcomes = random.Random(0), Counter()
    path = tmp_path / "self.yaml"
    for index in range(number):
        path.write_text(mutate(sound[index % len(sound)], draw), encoding="utf-8")
        began = time.process_time()
        try:
            assert isinstance(load_recipe(str(path)), Recipe)
            outcomes["read"] += 1
        except DeepcaitError:
            outcomes["refused"] += 1
        assert time.process_time() - began < MAX_SECONDS
    assert set(outcomes) == {"read", "refused"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["self.yaml"]


@pytest.mark.parametrize(
    "text",
    [
        "augment: {scale: " + "[" * 1000 + "]" * 1000 + "}",
        "seed: &b0 [0]\n" + "".join(f"k{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 40)),
        "augment: &a {scale: *a}",
        "augment: &a\n  scale: [0, 1]\n  ratio: *a\n",
        "models: " + "x" * 10_000_000,
    ],
    ids=["nest", "laughs", "circle", "circle-in-a-section", "ten-megabytes"],
)
def test_nests_and_aliases_cost_nothing(tmp_path, text):
    path = tmp_path / "hostile.yaml"
    path.write_text(text, encoding="utf-8")
    began = time.process_time()
    with pytest.raises(DeepcaitError):
        load_recipe(str(path))
    assert time.process_time() - began < MAX_SECONDS
