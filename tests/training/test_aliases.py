"""Old names of settings: read everywhere, compared under their new name, said once a file."""

from __future__ import annotations

import logging

import pytest

from deepcait.errors import ConfigError, RunError
from deepcait.training import aliases
from deepcait.training.aliases import Alias, rename_settings
from deepcait.training.recipe import Recipe, load_recipe
from deepcait.training.resume import deciding_settings, require_same_settings, resumed_recipe

OLD = {
    "compute.speed": Alias("compute.memory", {"slow": "small", "fast": "normal"}),
    "rounds": Alias("epochs"),
    "mix.chance": Alias("mix.mixup"),
    "moving.decay": Alias("ema.decay"),
}


@pytest.fixture(autouse=True)
def _renamed(monkeypatch):
    monkeypatch.setattr(aliases, "ALIASES", OLD)


def read(tmp_path, text: str, assignments=()) -> Recipe:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return load_recipe(str(path), assignments)


@pytest.mark.parametrize("text", ["compute: {speed: slow}", "compute:\n  speed: slow\n  device: cpu\n"])
def test_an_old_key_and_value_in_a_file(tmp_path, caplog, text):
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path, text).compute.memory == "small"
    assert [record.getMessage() for record in caplog.records] == [
        "compute.speed is called compute.memory now; the old name still works."
    ]


def test_an_old_key_moves_between_sections(tmp_path):
    recipe = read(tmp_path, "moving: {decay: 0.5}\nrounds: 7\nema: {warmup: false}\n")
    assert (recipe.ema.decay, recipe.ema.warmup, recipe.epochs) == (0.5, False, 7)


def test_an_old_key_on_the_command_line_wins_over_the_file(tmp_path):
    assert read(tmp_path, "epochs: 3", ["rounds=4"]).epochs == 4
    assert read(tmp_path, "rounds: 3", ["epochs=4", "compute.speed=slow"]).compute.memory == "small"


def test_an_error_in_an_old_key_points_at_its_line(tmp_path):
    with pytest.raises(ConfigError, match=r"mine.yaml:2:7: mix.mixup: expected a number"):
        read(tmp_path, "seed: 1\nmix: {chance: much}\n")
    with pytest.raises(ConfigError, match="epochs: duplicate key"):
        read(tmp_path, "rounds: 1\nepochs: 1\n")


def test_new_names_are_not_warned_about(tmp_path, caplog):
    read(tmp_path, "epochs: 3\nmix: {mixup: 0.1}")
    assert not caplog.records


def test_a_checkpoint_of_old_names_is_compared_under_the_new_ones(tmp_path):
    recipe = read(tmp_path, "epochs: 3\nmix: {mixup: 0.25}\n")
    now = deciding_settings(recipe)
    before = {name: value for name, value in now.items() if name not in ("epochs", "mix.mixup")}
    require_same_settings(tmp_path, before | {"rounds": 3, "mix.chance": 0.25}, recipe)
    with pytest.raises(RunError, match="epochs: 5"):
        require_same_settings(tmp_path, before | {"rounds": 5}, recipe)
    assert rename_settings({"compute.speed": "slow", "rounds": [1, 2]}) == {"compute.memory": "small", "epochs": [1, 2]}


def test_every_alias_leads_to_a_setting(monkeypatch):
    monkeypatch.undo()
    from deepcait.training.strict import list_keys

    keys = set(list_keys(Recipe()))
    assert {alias.key for alias in aliases.ALIASES.values()} <= keys
    assert not set(aliases.ALIASES) & keys


def test_the_attention_of_0_1_is_the_backend_now(monkeypatch, tmp_path, caplog):
    monkeypatch.undo()
    for old, new in (("lean", "lean"), ("plain", "reference")):
        recipe = read(tmp_path, f"compute: {{attention: {old}}}")
        assert recipe.compute.backend == new
        header = {"compute.attention": old}
        require_same_settings(tmp_path, header, recipe)
        with pytest.raises(RunError, match=f"compute.backend: {new}"):
            require_same_settings(tmp_path, header, read(tmp_path, "compute: {backend: auto}"))
    assert [record.getMessage() for record in caplog.records] == [
        "compute.attention is called compute.backend now; the old name still works."
    ] * 2
    with pytest.raises(ConfigError, match="compute.backend: expected auto or reference or lean, got 'quick'"):
        read(tmp_path, "compute: {attention: quick}")


def test_auto_leaves_the_backend_to_the_run_that_is_resumed(monkeypatch, tmp_path):
    monkeypatch.undo()
    (tmp_path / "config.yaml").write_text("data: {source: builtin:demo}\ncompute: {attention: lean}\n")
    given = load_recipe(str(tmp_path / "config.yaml"), ["compute.backend=auto", "keep.checkpoints=3"])
    resumed = resumed_recipe(tmp_path, given)
    assert (resumed.compute.backend, resumed.keep.checkpoints) == ("lean", 3)
    with pytest.raises(ConfigError, match="differ from the original run .compute.backend: "):
        resumed_recipe(tmp_path, load_recipe(str(tmp_path / "config.yaml"), ["compute.backend=reference"]))
