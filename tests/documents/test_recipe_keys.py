"""The list of a recipe's keys in docs/reference/recipes.md is that of the code.

`python -m tests.documents.test_recipe_keys` writes it again.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import deepcait
from deepcait.cli import main, train
from deepcait.errors import ConfigError
from deepcait.training.keys import RecipeKey, list_recipes, recipe_values
from deepcait.training.recipe import RECIPES, load_recipe

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "recipes.md"
HEAD = "| key | default | meaning |\n| --- | --- | --- |\n"


def row(key: RecipeKey) -> str:
    meaning = key.meaning.replace("|", "\\|")
    return f"| `{key.key}` | `{key.default}` | {meaning} |\n"


def table() -> str:
    return HEAD + "".join(map(row, deepcait.recipe_keys()))


def test_every_key_has_a_meaning():
    assert [key.key for key in deepcait.recipe_keys() if not key.meaning] == []


def test_the_page_of_recipes_lists_every_key():
    assert table() in PAGE.read_text(encoding="utf-8"), "python -m tests.documents.test_recipe_keys writes it again"


def test_the_help_of_train_names_the_command():
    assert "deepcait recipes" in train.__doc__


def test_recipes_are_listed_with_a_summary():
    recipes = list_recipes()
    assert {recipe["name"] for recipe in recipes} == {path.stem for path in RECIPES.glob("*.yaml")}
    assert all(recipe["summary"] for recipe in recipes)


def test_values_of_a_recipe_are_those_that_it_sets():
    values = recipe_values("finetune")
    assert values["optimizer.lr"] == "0.0003"
    assert values["epochs"] == "20"
    assert "seed" not in values
    # They make the same recipe when they are given one by one.
    settings = [f"{key}={value}" for key, value in values.items()]
    again = load_recipe("pretrain", settings)
    assert again.optimizer == load_recipe("finetune").optimizer
    with pytest.raises(ConfigError, match="finetun"):
        recipe_values("finetun")


def test_the_command_shows_them(capsys):
    assert main.main(["recipes"]) == 0
    assert "finetune" in capsys.readouterr().out
    assert main.main(["recipes", "finetune", "--filter", "optimizer.l"]) == 0
    out = capsys.readouterr().out
    assert "optimizer.lr " in out
    assert "0.0003 *" in out
    assert "epochs" not in out
    assert main.main(["recipes", "finetune", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    (lr,) = (key for key in facts["keys"] if key["key"] == "optimizer.lr")
    assert (lr["default"], lr["value"], lr["type"]) == ("0.0005", "0.0003", "float")
    assert main.main(["recipes", "nothing"]) == 2


if __name__ == "__main__":
    before, head, after = PAGE.read_text(encoding="utf-8").partition(HEAD)
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        del rest[0]
    PAGE.write_text(before + table() + "".join(rest), encoding="utf-8")
