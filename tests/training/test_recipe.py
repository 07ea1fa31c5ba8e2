"""Recipes: read strictly, said back whole, every setting read by some code, every recipe planned."""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

import deepcait
from deepcait.cli import main
from deepcait.data import columns
from deepcait.errors import ConfigError, DeepcaitError
from deepcait.training import plan as planning
from deepcait.training.estimate import Speed
from deepcait.training.plan import plan
from deepcait.training.recipe import Recipe, load_recipe, recipe_names
from deepcait.training.settings import Average, Distillation

PACKAGE = Path(deepcait.__file__).parent
# What the laboratory notebook says to people; no code decides by it.
NANO = ["model=cait_nano_32", "start=random"]
FOR_READERS = {"about.summary", "about.command", "about.cost", "about.reported", "about.measured"}


def written(tmp_path: Path, text: str, name: str = "mine.yaml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def refused(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_recipe(written(tmp_path, text))
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize(
    ("text", "place", "suggestion"),
    [
        ("epoch: 3\n", ":1:1: epoch: unknown key", "'epochs'"),
        ("seed: 1\nmix:\n  mixup: 0.1\n  cutmx: 1.0\n", ":4:3: mix.cutmx: unknown key", "'cutmix'"),
        (
            "optimizer: {lr: 1e-3,\n   weigth_decay: 0.1}\n",
            ":2:4: optimizer.weigth_decay: unknown key",
            "'weight_decay'",
        ),
        ("seed: 1\nzzz: 3\n", ":2:1: zzz: unknown key", "Known here: version, about, model"),
        ("<<: {seed: 3}\n", ":1:1: <<: unknown key", "Known here"),
    ],
)
def test_an_unknown_key_is_named_with_its_place(tmp_path, text, place, suggestion):
    error = refused(tmp_path, text)
    assert f"{tmp_path / 'mine.yaml'}{place}" in error.problem
    assert suggestion in error.remedy


@pytest.mark.parametrize(
    ("given", "problem", "meant"),
    [
        ("model.patch_size=2", "model: expected one value, got a section", "shape.patch_size"),
        ("patch_size=2", "patch_size: unknown key", "shape.patch_size"),
        ("ablation.patch_size=2", "ablation.patch_size: unknown key", "shape.patch_size"),
        ("mix.limit=2", "mix.limit: unknown key", "data.limit"),
        ("optimizer.epochs=2", "optimizer.epochs: unknown key", "epochs"),
    ],
)
def test_a_key_of_another_section_is_led_to_its_own(given, problem, meant):
    with pytest.raises(ConfigError) as caught:
        load_recipe("scratch_32", [given])
    assert problem in caught.value.problem
    assert caught.value.remedy == f"Did you mean '{meant}'?"


@pytest.mark.parametrize("given", ["1e30", "-1e16"])
def test_a_first_value_that_norms_cannot_square(tmp_path, given):
    """The network would be its last bias, whatever the image: a training for nothing."""
    assert "layer_scale_init: expected at most 1e+15 in size" in refused(tmp_path, f"layer_scale_init: {given}").problem


def test_a_flip_upside_down_is_not_taken_for_a_mirror():
    with pytest.raises(ConfigError, match=r"augment.flip mirrors them left to right"):
        load_recipe("finetune", ["augment.vflip=0.5"])


def test_a_section_where_one_value_is_due(tmp_path):
    error = refused(tmp_path, "seed: 1\nmodel: {nosuch: 2}\n")
    assert ":2:1: model: expected one value, got a section with the key 'nosuch'" in error.problem
    assert "got a section." in refused(tmp_path, "seed: {}\n").problem


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs: 9.5", "1:1: epochs: expected a whole number, got 9.5"),
        ("epochs: 1e3", "expected a whole number, got '1e3'"),
        ("epochs: true", "expected a whole number, got True"),
        ("epochs: ten", "expected a whole number, got 'ten'"),
        ("epochs: [3]", "expected a whole number, got a sequence"),
        ("epochs:", "expected a whole number, got None"),
        ("\nmodel: 3", "2:1: model: expected text, got 3"),
        ("model: [cait]", "expected text, got a sequence"),
        ("data: {balanced: 1}", "data.balanced: expected true or false, got 1"),
        ("optimizer: {lr: fast}", "optimizer.lr: expected a number, got 'fast'"),
        ("optimizer: {lr: .nan}", "optimizer.lr: expected a number, got nan"),
        ("optimizer: {lr: 1e999}", "optimizer.lr: expected a number, got inf"),
        ("optimizer: {lr: yes}", "optimizer.lr: expected a number, got True"),
        ("optimizer: 3", "optimizer: expected a section, got 3"),
        ("optimizer:", "optimizer: expected a section, got None"),
        ("augment: {scale: 0.5}", "augment.scale: expected a list, got 0.5"),
        ("augment: {scale: [0.5]}", "augment.scale: expected 2 values, got 1"),
        ("augment: {scale: [[1], 2]}", "augment.scale: expected a number, got a sequence"),
        ("img_size: [32, 32, 3]", "img_size: expected 2 values, got 3"),
        ("img_size: 9.5", "img_size"),
        ("seed: 2024-99-99", "seed: expected a whole number"),
        ("seed: !!int x", "seed: expected a whole number"),
        ("seed: !!timestamp x", "seed: expected a whole number"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(tmp_path, text, expected):
    assert expected in refused(tmp_path, text).problem


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("seed: 1\nepochs: 2\nseed: 3\n", ":3:1: seed: duplicate key"),
        ("mix: {mixup: 0.1, mixup: 0.1}", "1:19: mix.mixup"),
    ],
)
def test_a_key_twice(tmp_path, text, place):
    error = refused(tmp_path, text)
    assert place in error.problem
    assert "duplicate key" in error.problem


@pytest.mark.parametrize(
    "text",
    [
        "epochs: !!python/object/apply:os.system ['touch OWNED']",
        "model: !!python/name:os.system ''",
        "about: !!python/object:pathlib.Path {}",
        "optimizer: {lr: !!python/object/apply:float ['3']}",
        "!!python/object/apply:os.system ['touch OWNED']",
    ],
)
def test_tags_build_no_objects(tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        recipe = load_recipe(written(tmp_path, text))
    except ConfigError:
        recipe = None
    assert recipe in (None, Recipe())
    assert not (tmp_path / "OWNED").exists()


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "a: [1", "a: b: c", "\t- x", "%"])
def test_what_is_no_recipe(tmp_path, text):
    assert str(tmp_path / "mine.yaml") in refused(tmp_path, text).problem


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.yaml", "bytes.yaml"):
        with pytest.raises(ConfigError, match=name):
            load_recipe(str(tmp_path / name))
    with pytest.raises(ConfigError) as caught:
        load_recipe("pretrian")
    assert caught.value.remedy == "Did you mean pretrain?"


def test_numbers_as_people_write_them(tmp_path):
    text = "optimizer: {lr: 1e-3, weight_decay: 0, eps: 1E-08}\nlayer_scale_init: 1e-5\nimg_size: [32, 48]\n"
    recipe = load_recipe(written(tmp_path, text))
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.optimizer.eps) == (1e-3, 0.0, 1e-8)
    assert type(recipe.optimizer.weight_decay) is float
    assert recipe.layer_scale_init == 1e-5
    assert recipe.img_size == (32, 48)
    assert load_recipe(written(tmp_path, "")) == Recipe()


def test_extends(tmp_path):
    written(tmp_path, "extends: demo\nepochs: 3\nmix: {mixup: 0.5}\n", "base.yaml")
    recipe = load_recipe(written(tmp_path, "epochs: 4\nextends: base.yaml\nmix: {cutmix: 0.25}\n"))
    assert (recipe.model, recipe.epochs, recipe.mix.mixup, recipe.mix.cutmix) == ("builtin:nano", 4, 0.5, 0.25)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_extends_in_a_circle(tmp_path, length):
    for number in range(length):
        written(tmp_path, f"extends: r{(number + 1) % length}.yaml\n", f"r{number}.yaml")
    with pytest.raises(ConfigError, match="circle: r0.yaml -> ") as caught:
        load_recipe(str(tmp_path / "r0.yaml"))
    assert caught.value.problem.rstrip(".").endswith("-> r0.yaml")


@pytest.mark.parametrize(
    ("assignment", "read"),
    [
        ("epochs=10", lambda r: r.epochs == 10),
        ("optimizer.lr=1e-4", lambda r: r.optimizer.lr == 1e-4),
        ("augment.scale=[0.5, 1]", lambda r: r.augment.scale == (0.5, 1.0)),
        ("img_size=[32, 64]", lambda r: r.img_size == (32, 64)),
        ("img_size=null", lambda r: r.img_size is None),
        ("img_size=", lambda r: r.img_size is None),
        ("teacher.spec=python:my.module:factory", lambda r: r.teacher.spec == "python:my.module:factory"),
        ("teacher.spec=timm:resnet18,weights=/a=b.pth", lambda r: r.teacher.spec == "timm:resnet18,weights=/a=b.pth"),
        ("teacher.mean=[0.5, .5, 5e-1]", lambda r: r.teacher.mean == (0.5, 0.5, 0.5)),
        ("teacher.img_size=64", lambda r: r.teacher.img_size == 64),
        ("teacher.img_size=student", lambda r: r.teacher.img_size == "student"),
        ("augment.rand_augment=", lambda r: r.augment.rand_augment == ""),
        ("augment.rand_augment=''", lambda r: r.augment.rand_augment == ""),
        ("data={num_workers: 0, balanced: true}", lambda r: r.data.num_workers == 0 and r.data.balanced),
        ("epochs", None),
        ("=3", None),
        ("data.source.deep=3", None),
        ("mix.cutmx=1", None),
        ("epochs=9.5", None),
        ("model=[", None),
        ("model=@x", None),
        ("model=#x", None),
        ("optimizer.lr=nan", None),
    ],
)
def test_settings_of_the_command_line(assignment, read):
    if read:
        assert read(load_recipe("pretrain", [assignment]))
    else:
        with pytest.raises(ConfigError) as caught:
            load_recipe("pretrain", [assignment])
        assert "--set" in caught.value.problem
        assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("lamb", "Did you mean timm:lamb?"),
        ("lion(betas=(0.9, 0.95))", "Did you mean timm:lion(betas=(0.9, 0.95))?"),
        ("AdamW", "Did you mean adamw?"),
        ("timm", "Choose one."),
        ("timm:", "Choose one."),
        ("adamw:fast", "Choose one."),
        ("sgdx", "Choose one."),
    ],
)
def test_a_name_that_is_no_optimizer_is_refused(name, remedy):
    with pytest.raises(ConfigError, match="expected adamw, sgd or timm:NAME") as caught:
        load_recipe("demo", [f"optimizer.name={json.dumps(name)}"])
    assert caught.value.remedy == remedy


def test_later_settings_win():
    assert load_recipe("demo", ["epochs=3", "seed=1", "epochs=4"]).epochs == 4


@pytest.mark.parametrize(
    "assignment",
    ["start=anew", "train=tail", "optimizer.name=adam", "teacher.kind=warm", "compute.precision=fp8", "epochs=0"]
    + ["global_batch_size=0", "replicas=0", "keep.checkpoints=0", "keep.log_every_steps=0", "teacher.alpha=1.5"]
    + ["teacher.tau=0", "ema.decay=1", "optimizer.lr=-1", "optimizer.weight_decay=-1", "optimizer.beta1=1"]
    + ["optimizer.beta2=-0.1", "optimizer.momentum=1.5", "optimizer.eps=-1", "optimizer.clip_norm=-1"]
    + [
        "optimizer.layer_decay=-1",
        "optimizer.layer_decay=7",
        "schedule.warmup_epochs=-1",
        "head_warmup_epochs=-1",
        "data.num_workers=-1",
    ]
    + ["shape.in_chans=2", "shape.in_chans=4", "data.shrink_px=-1"]
    + ["mix.mixup=-1", "mix.probability=2", "mix.label_smoothing=1.5", "augment.erase=2", "augment.crop=x"],
)
def test_values_out_of_range(assignment):
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", [assignment])
    assert "Mend the recipe" not in caught.value.remedy  # it may have come through --set


@pytest.mark.parametrize("assignment", ["epochs=-1", "optimizer.lr=-1", "mix.mixup=-1", "augment.erase=2"])
def test_a_value_out_of_range_is_corrected_where_it_was_given(assignment):
    with pytest.raises(ConfigError) as caught:
        load_recipe("demo", [assignment])
    assert "in the recipe or through --set" in caught.value.remedy


@pytest.mark.parametrize("name", recipe_names())
def test_said_back_whole(name, tmp_path):
    recipe = load_recipe(name)
    assert load_recipe(written(tmp_path, recipe.to_yaml())) == recipe
    assert yaml.safe_load(recipe.to_yaml()).keys() == {f.name for f in dataclasses.fields(Recipe)}
    assert recipe.about.summary
    assert "deepcait" in recipe.about.command
    assert recipe.about.cost
    assert recipe.about.measured


def test_odd_values_said_back_whole(tmp_path):
    recipe = Recipe(
        model="on",
        img_size=(32, 48),
        layer_scale_init=1e-5,
        ema=Average(decay=0.99996),
        teacher=Distillation(spec="python:a:b # c\n'\"\u00e9\U0001f989", mean=(1e-9, 1.0, 1e22), img_size="64"),
    )
    assert load_recipe(written(tmp_path, recipe.to_yaml())) == recipe


def fields_of(settings: object, path: str = "") -> dict[str, str]:
    """Every setting of the recipe: its path and its name."""
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found |= fields_of(value, f"{path}{field.name}.")
        else:
            found[f"{path}{field.name}"] = field.name
    return found


def attributes_read(root: Path) -> set[str]:
    """Every attribute that some function reads; the checks of a recipe's own values do not count."""
    names: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__":
            return
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        for child in ast.iter_child_nodes(node):
            visit(child)

    for path in root.rglob("*.py"):
        visit(ast.parse(path.read_text(encoding="utf-8")))
    return names


def test_every_setting_is_read_by_some_code():
    read = attributes_read(PACKAGE)
    by_name = {f"data.{name}" for name in columns._SETTINGS.values()}
    dead = {path for path, name in fields_of(Recipe()).items() if name not in read} - FOR_READERS - by_name
    assert dead == set()
    assert "no_such_setting" not in read
    assert len(fields_of(Recipe())) > 60


CHEAP = ["demo", "scratch_32", "finetune", "linear_probe", "transfer_cifar10", "distill"]


@pytest.mark.parametrize("name", CHEAP)
def test_a_dry_run(name, caplog):
    caplog.set_level("INFO", "deepcait")
    settings = ["data.source=builtin:demo", "model=cait_nano_32", "img_size=32", "teacher.spec=''"]
    recipe = load_recipe(name, settings)
    facts = plan(recipe)
    lines = caplog.messages
    assert facts["steps"] == recipe.epochs * max(1, facts["train_images"] // recipe.global_batch_size)
    assert facts["global_batch_size"] == recipe.global_batch_size
    assert max(facts["lr"].values()) <= recipe.peak_lr
    assert any("learning rate" in line for line in lines)
    assert any("memory" in line for line in lines)
    assert facts["images"] == facts["steps"] * recipe.global_batch_size
    # Forward, and backward for what comes in and for the weights; what is computed again comes on top.
    assert facts["train_flops"] == 6 * round(1e9 * facts["gmacs"]) * facts["images"]
    assert facts["computed_flops"] == facts["step_flops"] * facts["steps"] >= 0.95 * facts["train_flops"]
    assert facts["activation_bytes"] > min(facts["activation_bytes_of"].values())


def test_a_dry_run_looks_at_the_validation_images_too(tmp_path):
    for place in ("train/cat", "train/dog", "val/cat", "val/owl"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / place / "a.png")
    with pytest.raises(DeepcaitError, match="owl"):
        plan(load_recipe("demo", [f"data.source=folder:{tmp_path}"]))


def test_a_dry_run_without_any_learning(caplog):
    caplog.set_level("INFO", "deepcait")
    still = ["optimizer.lr=0", "schedule.min_lr=0", "schedule.warmup_lr=0"]
    assert set(plan(load_recipe("demo", still))["lr"].values()) == {0}
    assert any(line.strip() == f"[{' ' * 60}]" for line in caplog.messages)


@pytest.mark.parametrize("name", sorted(set(recipe_names()) - set(CHEAP)))
def test_every_recipe_is_planned_with_its_own_model(name, monkeypatch):
    monkeypatch.setattr(planning, "measure_speed", lambda *_: Speed(step_s=1, forward_s=1, teacher_s=0, read_s=1))
    recipe = load_recipe(name, ["data.source=builtin:demo", "teacher.spec=''"])
    if recipe.train == "lora":
        pytest.importorskip("peft")
    facts = plan(recipe)
    assert facts["params"] > 1e6
    assert facts["activation_bytes"] > 0


@pytest.mark.parametrize(
    "assignment",
    ["replicas=7", "augment.repeats=3", "schedule.min_lr=1", "model=cait_nano_33", "data.source=builtin:nothing"]
    + ["augment.rand_augment=rand-mX", "mix.mixup=1 global_batch_size=33", "drop_path_rate=2"],
)
def test_a_dry_run_says_what_would_stop_the_run(assignment, tmp_path):
    with pytest.raises(DeepcaitError):
        plan(load_recipe("demo", assignment.split()))


@pytest.mark.parametrize(
    ("settings", "model", "note"),
    [
        ([], "builtin:nano (own weights)", None),
        (["model=cait_nano_32", "start=random"], "cait_nano_32 (random weights)", None),
        (["model=cait_nano_32", "start=released"], "cait_nano_32 (released weights)", None),
        (["schedule.warmup_epochs=3"], "builtin:nano (own weights)", "never gets to its peak"),
        (["head_warmup_epochs=3"], "builtin:nano (own weights)", "only the head moves"),
        (["head_warmup_epochs=3", "train=head"], "builtin:nano (own weights)", None),
        (["layer_scale_init=0.1"], "builtin:nano (own weights)", "layer_scale_init changes nothing"),
        ([*NANO, "layer_scale_init=-1"], "cait_nano_32 (random weights)", None),
        ([*NANO, "layer_scale_init=2"], "cait_nano_32 (random weights)", "layer_scale_init is 2: branches drown"),
        ([*NANO, "layer_scale_init=2", "ablation.residual=scalar"], "cait_nano_32 (random weights)", "branches drown"),
        (
            [*NANO, "layer_scale_init=0.1", "ablation.residual=rezero"],
            "cait_nano_32 (random weights)",
            "changes nothing: rezero has its own first value",
        ),
    ],
)
def test_a_dry_run_says_where_it_starts_and_what_is_hardly_meant(settings, model, note, caplog):
    caplog.set_level("INFO", "deepcait")
    plan(load_recipe("demo", ["start=random", *settings]))
    line = next(line for line in caplog.messages if line.startswith("model "))
    assert line.split(maxsplit=1)[1].startswith(f"{model}, 32 x 32 px")
    notes = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [note in line for line in notes] == ([True] if note else [])


def test_lora_without_its_package_is_an_error_before_anything_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    words = [
        "train",
        "--recipe",
        "lora",
        "--data",
        "builtin:demo",
        "--model",
        "builtin:nano",
        "--out",
        str(tmp_path / "r"),
    ]
    for more in ([], ["--dry-run"]):
        assert main.main([*words, *more]) == 2
        error = capsys.readouterr().err
        assert "train=lora: the package peft can't be imported" in error
        assert 'pip install "deepcait[lora]"' in error
        assert not (tmp_path / "r").exists()


def test_an_assignment_without_a_value_is_an_empty_text_or_list_and_null_where_that_is_allowed():
    given = ["augment.rand_augment=", "freeze=", "optimizer.lr_factors=", "img_size=", "data.exclude="]
    recipe = load_recipe("finetune", given)
    assert (recipe.augment.rand_augment, recipe.freeze, recipe.optimizer.lr_factors) == ("", (), ())
    assert (recipe.img_size, recipe.data.exclude) == (None, "")
    for key, words in (("epochs", "a whole number, got nothing"), ("augment.scale", "a list, got nothing")):
        with pytest.raises(ConfigError, match=f"{key}: expected {words}"):
            load_recipe("finetune", [f"{key}="])
