"""Parts of one's own: those of docs/guides/own_parts.md train, resume exactly, and are recorded."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import deepcait
from deepcait.cli.main import main
from deepcait.data import Preprocessing
from deepcait.errors import ConfigError, DataError, RunError, WeightsError
from deepcait.training.checkpoint import newest_checkpoint, read_checkpoint, state_tensors
from deepcait.weights import describe
from deepcait.weights.own import count_network
from tests.documents.shown import ROOT, blocks

PAGE = ROOT / "docs" / "guides" / "own_parts.md"
CONTENT = ("metrics.jsonl", "best/model.safetensors", "last/model.safetensors")
SIX = {
    "model": "python:my_parts:{}",
    "data": {"source": "python:my_parts:Stripes(size=60)", "num_workers": 0},
    "loss": "python:my_parts:FocalLoss(gamma=1.5)",
    "augment": {"transform": "python:my_parts:crop_and_jitter"},
    "optimizer": {"name": "timm:lamb"},
}
NETWORKS = ("GatedCaiT(depth=2, embed_dim=32, num_heads=2)", "SmallNet(width=8)")


def page_blocks(name: str) -> dict[str, str]:
    """The files of the page: what their first line calls them, or the module for all other Python."""
    files: dict[str, list[str]] = {"my_parts.py": []}
    for block in blocks(PAGE.read_text(encoding="utf-8")):
        named = re.match(r"# (\S+\.(?:py|yaml))\n", block.text)
        if named and named[1] != "my_parts.py":
            files[named[1]] = [block.text]
        elif block.language == "python":
            files["my_parts.py"].append(block.text)
        elif block.language == "bash":
            files["commands"] = [block.text]
    return {name: "\n\n\n".join(texts) + "\n" for name, texts in files.items()}


FILES = page_blocks("own_parts.md")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with the page's files, as the current one; its module is forgotten afterwards."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_parts", None)


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in CONTENT}


def recipe_file(place: Path, network: str) -> Path:
    recipe = {"extends": "finetune", "epochs": 2, "global_batch_size": 18, "replicas": 1} | SIX
    path = place / f"{network.partition('(')[0]}.yaml"
    path.write_text(yaml.safe_dump(recipe | {"model": f"python:my_parts:{network}"}))
    return path


@pytest.mark.parametrize("network", NETWORKS)
def test_six_parts_train_by_recipe_and_from_python_and_resume_exactly(place, network):
    path = recipe_file(place, network)
    assert main(["train", "--recipe", str(path), "--out", "whole"]) == 0
    import my_parts

    called = re.match(r"(\w+)\((.*)\)", network)
    arguments = eval(f"dict({called[2]})")
    how = {
        "model": (getattr(my_parts, called[1]), arguments),
        "recipe": path,
        "settings": {
            "loss": (my_parts.FocalLoss, {"gamma": 1.5}),
            "augment": {"transform": (my_parts.crop_and_jitter, {})},
        },
    }
    data = (my_parts.Stripes, {"size": 60})
    stop = [lambda event: event.stop() if event.step == 1 else None]
    stopped = deepcait.train(data, place / "parts", callbacks=stop, **how)
    assert stopped.state == "stopped"
    assert main(["train", "--out", "parts", "--resume"]) == 0
    assert content(place / "parts") == content(place / "whole")
    config = yaml.safe_load((place / "whole" / "config.yaml").read_text())
    assert config["model"] == f"python:my_parts:{network}"
    assert config["loss"] == "python:my_parts:FocalLoss(gamma=1.5)"
    assert config["augment"]["transform"] == "python:my_parts:crop_and_jitter"
    assert config["data"]["source"] == "python:my_parts:Stripes(size=60)"
    assert config["optimizer"]["name"] == "timm:lamb"
    digests = config["digests"]
    assert {name: len(digest) for name, digest in digests.items() if digest} == dict.fromkeys(
        ("data", "model", "loss", "transform"), 64
    )
    assert (place / "whole" / "config.yaml").read_text() == (place / "parts" / "config.yaml").read_text()


def test_the_pages_script_and_recipe_run_as_they_are(place, capsys):
    exec(compile(FILES["train.py"], "train.py", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1].split()[-1] in ("horizontal", "vertical")
    (train, evaluate) = FILES["commands"].strip().splitlines()
    assert main(shlex.split(train)[1:]) == 0
    assert main(evaluate.split()[1:]) == 0


KILLER = """
import os, signal

class Killer(FocalLoss):
    calls = 0

    def forward(self, *given):
        self.calls += 1
        if self.calls == int(os.environ.get("KILL_AT", 0)):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(*given)
"""


@pytest.mark.process
@pytest.mark.parametrize("network", NETWORKS)
def test_resumes_exactly_after_a_kill(place, network):
    with open(place / "my_parts.py", "a") as file:
        file.write(KILLER)
    more = ["loss=python:my_parts:Killer", "keep.checkpoint_every_steps=2"]
    train = ["train", "--recipe", str(recipe_file(place, network)), "--set", *more, "--out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "KILL_AT": "6"}
    command = [sys.executable, "-m", "deepcait", *train, "killed"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=240, check=False)
    assert done.returncode == -signal.SIGKILL
    assert json.loads((place / "killed" / "status.json").read_text())["state"] == "running"
    assert main(["train", "--out", "killed", "--resume"]) == 0
    assert main([*train, "whole"]) == 0
    assert content(place / "killed") == content(place / "whole")


SCHEDULED = """
import torch

class Scheduled(FocalLoss):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, *given):
        self.count += 1
        return super().forward(*given) / self.count

class Learned(FocalLoss):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

class Frozen(Learned):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)

class Counted(FocalLoss):
    def get_extra_state(self):
        return {"count": 1}
"""


@pytest.fixture
def losses(place):
    with open(place / "my_parts.py", "a") as file:
        file.write(SCHEDULED)
    import my_parts

    return my_parts


@pytest.mark.parametrize("form", ["factory", "object"])
def test_the_state_of_a_loss_is_resumed(place, losses, form):
    """A stopped run has the weights of an uninterrupted one, also if it resumes with the object that it began with."""
    loss = losses.Scheduled() if form == "object" else losses.Scheduled
    settings = {"loss": loss, "epochs": 2}
    whole = own_run(place / "whole", settings=settings)
    stop = [lambda event: event.stop() if event.step == 2 else None]
    assert own_run(place / "parts", settings=settings, callbacks=stop).state == "stopped"
    assert own_run(place / "parts", settings=settings, resume=True).state == "finished"
    assert content(place / "parts" / "run") == content(whole.folder)
    _, tensors = read_checkpoint(newest_checkpoint(whole.folder / "checkpoints")[0])
    assert tensors["loss/count"] == json.loads((whole.folder / "status.json").read_text())["step"]


def test_a_checkpoint_without_the_state_of_a_loss_is_resumed(place, losses, monkeypatch, caplog):
    settings = {"loss": losses.Scheduled}
    stop = [lambda event: event.stop()]
    with monkeypatch.context() as patch:
        without = lambda model, optimizer, average, loss: state_tensors(model, optimizer, average)  # noqa: E731
        patch.setattr("deepcait.training.trainer.state_tensors", without)
        own_run(place, settings=settings, callbacks=stop)
    assert own_run(place, settings=settings, resume=True).state == "finished"
    assert "has no state of the loss" in caplog.text


@pytest.mark.parametrize(
    ("loss", "said"),
    [("Learned", "its parameter weight would not be trained"), ("Counted", "expected a state of tensors")],
)
def test_a_loss_that_a_run_would_not_restore_is_refused(place, losses, capsys, loss, said):
    path = recipe_file(place, NETWORKS[1])
    train = ["train", "--recipe", str(path), "--out", "run", "--set", f"loss=python:my_parts:{loss}"]
    for command in (train, [*train, "--dry-run"]):
        assert main(command) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert said in error
        assert "register_buffer" in error
    assert not (place / "run").exists()


def test_a_run_that_failed_before_its_first_checkpoint_is_replaced(place, losses, capsys):
    """With other settings, other source and other data than the failed run began with."""
    source = place / "my_parts.py"
    code = source.read_text()
    broken = code.replace("super().forward(*given) / self.count", "None / self.count")
    train = ["train", "--recipe", str(recipe_file(place, NETWORKS[1])), "--set", "loss=python:my_parts:Scheduled"]
    source.write_text(broken)
    sys.modules.pop("my_parts")
    assert main([*train, "--out", "run"]) == 2
    assert json.loads((place / "run" / "status.json").read_text())["state"] == "failed"
    source.write_text(code)
    sys.modules.pop("my_parts")
    train += ["seed=3", "data.val_fraction=0.4"]
    line = "run: the run there has no checkpoint and no model; a new run replaces it"
    before = {path: path.read_bytes() for path in (place / "run").iterdir()}
    capsys.readouterr()
    assert main([*train, "--out", "run", "--dry-run"]) == 0
    assert line in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (place / "run").iterdir()} == before
    assert main([*train, "--out", "run"]) == 0
    assert line in capsys.readouterr().out
    assert main([*train, "--out", "whole"]) == 0
    assert content(place / "run") == content(place / "whole")
    split = [json.loads((place / name / "split.json").read_text()) for name in ("run", "whole")]
    assert split[0] == split[1]


def test_a_loss_with_frozen_parameters_trains(place, losses):
    assert own_run(place, settings={"loss": losses.Frozen}).state == "finished"


def own_run(place: Path, **how) -> deepcait.Run:
    from my_parts import SmallNet, Stripes

    settings = {"epochs": 1, "global_batch_size": 18, "replicas": 1, "data.num_workers": 0}
    how = {"model": (SmallNet, {"width": 4})} | how
    settings |= how.pop("settings", {})
    return deepcait.train(how.pop("data", Stripes(60)), place / "run", settings=settings, **how)


def test_objects_resume_only_from_python(place, caplog):
    from my_parts import FocalLoss

    stop = [lambda event: event.stop()]
    caplog.set_level("WARNING", logger="deepcait")
    own_run(place, settings={"loss": FocalLoss(3.0)}, callbacks=stop)
    assert "loss: object:my_parts:FocalLoss(gamma=3.0) can't be imported by its name" in caplog.text
    with pytest.raises(ConfigError, match="only Python can give again"):
        deepcait.train(None, place / "run", resume=True)
    with pytest.raises(ConfigError, match="loss"):
        own_run(place, settings={"loss": FocalLoss(2.0)}, resume=True)
    assert own_run(place, settings={"loss": FocalLoss(3.0)}, resume=True).state == "finished"


def test_other_source_is_refused(place):
    own_run(place, callbacks=[lambda event: event.stop()], data="python:my_parts:Stripes(size=60)")
    path = place / "my_parts.py"
    path.write_text(path.read_text().replace("class FocalLoss", "# another comment\nclass FocalLoss"))
    sys.modules.pop("my_parts")
    assert own_run(place, data="python:my_parts:Stripes(size=60)", resume=True).state == "finished"
    path.write_text(path.read_text().replace("nn.ReLU()", "nn.GELU()"))
    sys.modules.pop("my_parts")
    (place / "run" / "status.json").write_text(json.dumps({"state": "stopped", "step": 3}))
    with pytest.raises(RunError, match="the source of model python:my_parts:SmallNet.* has changed"):
        deepcait.train(None, place / "run", resume=True)


def test_load_names_the_class_and_imports_nothing(place):
    run = own_run(place)
    images = torch.rand(2, 3, 32, 32)
    logits = run.classifier.logits(images)
    folder = run.classifier.save(place / "saved")
    code = (place / "my_parts.py").read_text()
    sys.modules.pop("my_parts")
    (place / "my_parts.py").write_text("raise SystemExit('imported')")
    for path in (folder, place / "run", place / "run" / "best"):
        with pytest.raises(WeightsError, match=r"my_parts:SmallNet.*python:my_parts:SmallNet\(width=4\),weights="):
            deepcait.load(path)
        assert "my_parts" not in sys.modules
    assert "timm does not have this network" in (folder / "config.json").read_text()
    (place / "my_parts.py").write_text(code)
    again = deepcait.load(f"python:my_parts:SmallNet(width=4),weights={folder}")
    assert again.classes == ["horizontal", "vertical"]
    assert torch.equal(again.logits(images), logits)
    with pytest.raises(WeightsError, match="width=5.*size mismatch"):
        deepcait.load(f"python:my_parts:SmallNet(width=5),weights={folder}")


def small_run(place: Path) -> deepcait.Run:
    """A run of SmallNet(width=4) on a flat folder of 40 images: 24 train, 8 val, 8 test; in `place`/runs/own."""
    from my_parts import SmallNet, Stripes

    for index, (image, label) in enumerate(map(Stripes(40).__getitem__, range(40))):
        folder = place / "photos" / Stripes.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{index}.png")
    settings = {"epochs": 1, "global_batch_size": 8, "replicas": 1, "data.num_workers": 0}
    settings |= {"data.test_fraction": 0.2, "data.val_fraction": 0.25}
    return deepcait.train(place / "photos", place / "runs/own", model=(SmallNet, {"width": 4}), settings=settings)


def test_a_run_of_an_own_network_is_evaluated_on_what_it_held_out(place, capsys):
    from my_parts import SmallNet

    run = small_run(place)
    split = json.loads((run.folder / "split.json").read_text())
    num_test = len(split["test"])
    assert 0 < num_test < 40
    factory = "python:my_parts:SmallNet(width=4)"
    for model in (
        run,
        run.classifier,
        run.last,
        deepcait.Run(run.folder, model=factory),
        deepcait.Run(run.folder, model=f"{factory},weights=elsewhere"),  # what the run itself started from
        deepcait.load((SmallNet, {"width": 4}), weights=run.folder),
        deepcait.load(f"{factory},weights=runs/own/last"),
    ):
        metrics = deepcait.evaluate(model, place / "photos")
        assert (metrics.num_images, metrics.roles.name, metrics.roles.part) == (num_test, "held out", "test")
    for folder, chosen in (("runs/own", True), ("runs/own/best", True), ("runs/own/last", False)):
        capsys.readouterr()
        assert main(["eval", f"{factory},weights={folder}", "--data", "photos"]) == 0
        said = capsys.readouterr().out
        assert f"test part of the run: {num_test} images" in said
        assert ("best epoch     chosen by" in said) is chosen


def test_the_printed_next_step_and_the_remedy_of_resuming_work(place, capsys):
    small = small_run(place)
    model = "python:my_parts:SmallNet(width=4)"
    few = ["--set", "epochs=1", "global_batch_size=8", "replicas=1", "data.num_workers=0"]
    train = ["train", "--data", "photos", *few]
    assert main([*train, "--model", model, "--out", "runs/two"]) == 0
    (command,) = re.findall(r"next: +deepcait (.*) IMAGE", capsys.readouterr().out)
    (image, *_) = (place / "photos").rglob("*.png")
    assert main([*shlex.split(command), str(image)]) == 0
    assert main([*shlex.split(command), str(image), "--embeddings", "features.npz"]) == 2  # it has no tokens
    with pytest.raises(ConfigError, match="only a CaiT has"):
        small.classifier.embed(image)
    assert main([*train, "loss=bce", "mix.label_smoothing=0", "--model", model, "--out", "runs/two", "--resume"]) == 2
    (again,) = re.findall(r"--model\s+('.*?')", capsys.readouterr().err)
    assert main([*train, "--model", *shlex.split(again), "--out", "runs/three"]) == 0


def test_a_classifier_of_a_subclass_names_it(place):
    from my_parts import GatedCaiT

    sizes = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    model = GatedCaiT(num_classes=3, **sizes)
    classifier = deepcait.Classifier(
        model, classes=list("abc"), preprocessing=deepcait.load("builtin:nano").preprocessing
    )
    classifier.save(place / "saved")
    with pytest.raises(WeightsError, match="my_parts:GatedCaiT"):
        deepcait.load(place / "saved")
    again = deepcait.load((GatedCaiT, sizes), weights=place / "saved")
    wrong = "python:my_parts:GatedCaiT(depth=3, embed_dim=32, num_heads=2)"
    with pytest.raises(WeightsError) as caught:
        deepcait.load(wrong, weights=place / "saved")
    assert re.search(r'Missing key\(s\) in state_dict: ("[^"]+", ){2}"[^"]+" and \d+ more\.', str(caught.value))
    assert len(str(caught.value)) < 600
    with pytest.raises(WeightsError, match=r"trained with: python:my_parts:SmallNet\(width=4\),weights=.*best\."):
        deepcait.load("python:my_parts:SmallNet(width=5)", weights=small_run(place).folder)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.logits(images), classifier.logits(images))
    assert again.cait.class_attention(images).shape[0] == 2


def test_the_parameters_of_a_subclass_are_counted(place):
    """Its config is that of a plain CaiT, whose count is another."""
    from my_parts import GatedCaiT

    sizes = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    model, plain = GatedCaiT(num_classes=3, **sizes), deepcait.create_model("cait_nano_32", num_classes=3, **sizes)
    assert count_network(plain) == (plain.config.num_params(), plain.config.macs())
    facts = describe("python:my_parts:GatedCaiT(num_classes=3, depth=1, embed_dim=32, num_heads=2)")
    assert facts["params"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["params"] != model.config.num_params()
    assert facts["gmacs"] == round(count_network(model)[1] / 1e9, 4)


class Iterable:
    classes = ("a", "b")

    def __iter__(self):
        return iter([])


@pytest.mark.parametrize(
    ("how", "error", "said"),
    [
        ({"data": Iterable()}, DataError, "an iterable has no fixed order"),
        ({"data": [1, 2, 3]}, DataError, "the dataset has no `classes`"),
        ({"model": "python:my_parts:Gone"}, ConfigError, "has no attribute 'Gone'"),
        ({"model": "python:nowhere:Gone"}, ConfigError, "No module named 'nowhere'"),
        ({"model": "python:my_parts:SmallNet(8)"}, ConfigError, "an argument without a name"),
        ({"model": "python:my_parts:SmallNet(depth=8)"}, ConfigError, "unexpected keyword argument 'depth'"),
        ({"model": "python:my_parts:FocalLoss"}, ConfigError, "num_classes"),
        ({"model": torch.nn.Identity()}, ConfigError, "img_size"),
        (
            {"settings": {"loss": lambda logits, targets, teacher: 1 / 0}},
            ConfigError,
            "ZeroDivisionError.*test_own_parts",
        ),
        ({"settings": {"loss": lambda logits, targets, teacher: logits}}, ConfigError, "expected a scalar"),
        ({"settings": {"loss": "huber"}}, ConfigError, "expected ce, bce, focal"),
        ({"settings": {"loss": "bce"}}, ConfigError, "label_smoothing"),
        ({"settings": {"augment.transform": lambda image: image.resize((8, 8))}}, ConfigError, "32 x 32 px"),
        ({"settings": {"freeze": ["tail.*"]}}, ConfigError, "freeze: no parameter name matches"),
        ({"settings": {"optimizer.name": "timm:lam"}}, ConfigError, "lamb"),
        ({"settings": {"optimizer.name": "timm:adahessian"}}, ConfigError, "second derivatives"),
        ({"settings": {"optimizer.name": "timm:lion(gamma=1)"}}, ConfigError, "timm could not build"),
        ({"settings": {"optimizer.class_weights": [1.0]}}, ConfigError, "expected 2 weights"),
    ],
)
def test_mistakes_name_the_part(place, how, error, said):
    with pytest.raises(error, match=f"(?s){said}"):
        own_run(place, **how)


def test_datasets_by_split_and_labels_by_name(place):
    from my_parts import Stripes

    train, val = Stripes(36), Stripes(8)
    train.targets = [train.classes[label] for label in train.targets]
    train.__class__ = type("Named", (Stripes,), {"__getitem__": lambda self, i: (Stripes()[i][0], self.targets[i])})
    run = own_run(place, data={"train": train, "val": val})
    facts = json.loads((run.folder / "data.json").read_text())
    assert (facts["num_train"], facts["num_validation"]) == (36, 8)
    split = json.loads((run.folder / "split.json").read_text())
    assert (len(split["train"]), len(split["val"]), split["probes"]["train"]) == (36, 8, {})


@pytest.mark.parametrize("form", ["array", "uint8", "float"])
def test_images_of_every_form_are_the_same(place, form):
    import numpy as np
    from my_parts import Stripes

    from deepcait.data import open_source
    from deepcait.parts import part_of

    class Other(Stripes):
        def __getitem__(self, index):
            array = np.asarray(super().__getitem__(index)[0])
            tensor = torch.from_numpy(array.copy()).movedim(-1, 0)
            return {"array": array, "uint8": tensor, "float": tensor / 255}[form], self.targets[index]

    plain, other = (open_source(part_of(kind(4))) for kind in (Stripes, Other))
    assert [other.read(row).data for row in range(4)] == [plain.read(row).data for row in range(4)]
    assert list(other.labels) == [0, 1, 0, 1]


def test_float_tensors_of_a_transform_are_passed_on(place):
    from torchvision.transforms import v2

    def constant(image):
        return torch.full((3, 32, 32), 0.25)

    from my_parts import Stripes

    from deepcait.data.augment import Augment, build_augmentation
    from deepcait.parts import part_of

    image = Stripes()[0][0]
    kept = build_augmentation(Augment(transform=part_of(constant)), Preprocessing((32, 32)))(image)
    assert torch.equal(kept, torch.full((3, 32, 32), 0.25))
    pixels = build_augmentation(Augment(transform=part_of(v2.PILToTensor())), Preprocessing((32, 32)))(image)
    assert torch.equal(pixels, Preprocessing((32, 32))(image))
