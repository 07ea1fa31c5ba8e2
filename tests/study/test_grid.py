"""The studies of the package as data: each one reads, each cell is a recipe, each recipe a network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from deepcait.errors import ConfigError
from deepcait.model.networks import build_model
from deepcait.study.grid import cells_of, grid_names, load_grid, parse_grid
from deepcait.study.plan import StudyPlan, cell_config, cell_recipe, scale_of
from deepcait.study.table import markdown, results
from deepcait.training.recipe import load_recipe

ISSUE = (
    "layerscale deep-layerscale class-token heads talking-heads drop-path resolution distillation augmentation".split()
)
PLAN = StudyPlan(
    study="x", data="builtin:demo", data_name="demo", seeds=2, epochs=8, images=100, val_images=50, teacher="T"
)


def test_the_studies_that_were_asked_for():
    assert set(grid_names()) == set(ISSUE)


@pytest.mark.parametrize("name", ISSUE)
def test_every_cell_is_a_network_of_its_own(name):
    grid = load_grid(name)
    cells = cells_of(grid, 2)
    assert len({cell.name for cell in cells}) == len(cells) == 2 * len(grid.rows) * len(grid.columns)
    texts = set()
    for cell in cells:
        recipe = cell_recipe(grid, PLAN, cell, Path("cells"))
        config = cell_config(grid, PLAN, cell, Path("cells"), 10)
        assert build_model(config).num_classes == 10
        assert recipe.seed == cell.seed
        assert (recipe.data.source, recipe.data.limit, recipe.data.val_limit) == ("builtin:demo", 100, 50)
        assert recipe.keep.evaluate_every_epochs == recipe.epochs
        assert config.num_patches in (16, 36, 64)
        assert (recipe.teacher.spec == "T") == cell.teacher
        texts.add(recipe.to_yaml())
    assert len(texts) == len(cells), "two cells are the same training"


@pytest.mark.parametrize("name", ISSUE)
def test_reported_values_have_a_source(name):
    grid = load_grid(name)
    columns = {column.id for column in grid.columns}
    values = []
    for row in grid.rows:
        reported = row.paper if isinstance(row.paper, dict) else {"top1": row.paper} if row.paper else {}
        assert set(reported) <= columns
        values += reported.values()
    assert all(60 < value < 90 for value in values)
    assert not values or any(word in grid.paper for word in ("Reported", "reported", "Read in"))
    assert "memory" not in grid.paper


def test_depths_of_the_layerscale_study():
    grid = load_grid("layerscale")
    columns = [column.id for column in grid.columns]
    assert {"baseline", "rezero", "layerscale"} <= set(columns)
    cells = {(cell.row.id, cell.column.id): cell for cell in cells_of(grid, 1)}
    configs = {key: cell_config(grid, PLAN, cell, Path(), 10) for key, cell in cells.items()}
    assert [configs[depth, "layerscale"].depth for depth in ("6", "12", "24")] == [6, 12, 24]
    # The paper's rule for the initial value follows the depth.
    assert [configs[depth, "layerscale"].layer_scale_init for depth in ("6", "12", "24")] == [0.1, 0.1, 1e-5]
    assert configs["24", "rezero"].residual == "rezero"
    assert configs["24", "rezero"].class_token == "inserted"
    assert configs["24", "layerscale"].residual == "layerscale"


def test_a_row_that_follows_another_starts_from_its_run():
    grid = load_grid("resolution")
    cells = {cell.row.id: cell for cell in cells_of(grid, 1)}
    recipe = cell_recipe(grid, PLAN, cells["up64"], Path("cells"))
    assert recipe.model == str(Path("cells") / "base--top1--seed0")
    assert (recipe.epochs, recipe.img_size, recipe.shape.patch_size) == (2, 64, None)
    assert cell_config(grid, PLAN, cells["up64"], Path(), 10).num_patches == 64
    assert cell_recipe(grid, PLAN, cells["base"], Path()).epochs == 8


def test_a_part_of_a_study_keeps_its_reference():
    grid = load_grid("layerscale").only(["layerscale", "6"])
    assert [column.id for column in grid.columns] == ["baseline", "layerscale"]
    assert [row.id for row in grid.rows] == ["6"]
    grid = load_grid("resolution").only(["up48"])
    assert [row.id for row in grid.rows] == ["base", "same", "up48"]
    assert load_grid("heads").only([]) == load_grid("heads")
    with pytest.raises(ConfigError, match="rezro") as caught:
        load_grid("layerscale").only(["rezro"])
    assert "rezero" in caught.value.remedy


def test_a_page_has_reported_values_only_where_there_are_some(tmp_path):
    def page(name, only):
        grid, plan = load_grid(name).only(only), dataclasses.replace(PLAN, study=name, seeds=1, teacher="")
        return markdown(results(tmp_path / name, grid, plan, {}), grid)

    lines = [line for line in page("distillation", ["off", "hard"]).splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[-1] for line in lines] == ["reported, top-1 % |", "---: |", "*82.7* |", "*83.5* |"]
    assert "reported" not in page("heads", ["h1", "h3"])


def test_the_scale_names_data_images_tokens_epochs_and_seeds():
    text = scale_of(load_grid("resolution"), PLAN, Path(), 100, 50)
    for part in ("demo", "100 training images", "16 to 64 tokens", "width 96", "8 epochs", "2 seeds", "50 images"):
        assert part in text


GOOD = """
title: t
question: q
recipe: study_32
across: a
reference: x
paper: p
rows:
  - {id: x}
  - {id: y, follows: x}
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("reference: x", "reference: z"),
        ("follows: x", "follows: z"),
        ("{id: x}", "{id: y}"),
        ("title: t", "titel: t"),
        ("follows: x", "folows: x"),
        ("across: a\n", ""),
    ],
)
def test_a_study_that_is_none(old, new):
    assert len(parse_grid("good", GOOD).rows) == 2
    with pytest.raises(ConfigError):
        parse_grid("bad", GOOD.replace(old, new, 1))


def test_mistakes():
    with pytest.raises(ConfigError) as caught:
        load_grid("layerscal")
    assert "layerscale" in caught.value.remedy
    assert load_recipe("study_32").keep.patience_epochs == 0
