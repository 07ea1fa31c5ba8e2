"""Teachers: their own normalisation and size, never trained, the right columns; all the ways to name one."""

from __future__ import annotations

import sys
import types

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import deepcait
from deepcait.cli.main import main
from deepcait.data import Preprocessing
from deepcait.data.mixing import Mix
from deepcait.errors import ConfigError, WeightsError
from deepcait.training.settings import Distillation
from deepcait.training.teacher import Teacher, load_teacher
from deepcait.weights.imagenet import wnids
from tests.training.tiny import make_stepper, some_batches, tiny_model, tiny_recipe

SEEN = Preprocessing((16, 16), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
CLASSES = ["cat", "dog", "owl"]
OWN = {"mean": (0.5, 0.45, 0.1), "std": (0.5, 0.1, 0.3)}


class Remembers(nn.Module):
    """A classifier that keeps what it was shown."""

    def __init__(self, num_classes: int = 3, cfg: dict | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(3, num_classes)
        self.dropout = nn.Dropout(0.5)
        self.shown: list[torch.Tensor] = []
        if cfg is not None:
            self.pretrained_cfg = cfg

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shown.append(images)
        return self.layer(self.dropout(images.mean((2, 3))))


@pytest.fixture
def factory(monkeypatch):
    """Put modules where `python:` finds them: in a module of the name given."""

    def put(build, name: str = "their_teacher") -> str:
        module = types.ModuleType(name)
        module.build = build
        monkeypatch.setitem(sys.modules, name, module)
        return f"python:{name}:build"

    return put


def pixels(size: int = 16) -> torch.Tensor:
    return torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))


def normalised(images: torch.Tensor, mean, std) -> torch.Tensor:
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def test_sees_the_images_as_if_normalised_for_itself(factory):
    module = Remembers(cfg=OWN)
    view = load_teacher(Distillation(spec=factory(lambda: module)), SEEN, CLASSES)
    view(normalised(pixels(), SEEN.mean, SEEN.std))
    assert (module.shown[-1] - normalised(pixels(), OWN["mean"], OWN["std"])).abs().max() < 1e-5
    assert "its own" in view.origin


@pytest.mark.parametrize(
    ("cfg", "settings", "mean", "source"),
    [
        (None, {}, (0.485, 0.456, 0.406), "ImageNet's"),
        (OWN, {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}, (0.1, 0.2, 0.3), "the recipe"),
        (types.SimpleNamespace(**OWN), {}, OWN["mean"], "its own"),
    ],
)
def test_where_the_normalisation_comes_from(factory, cfg, settings, mean, source):
    module = Remembers(cfg=cfg)
    view = load_teacher(Distillation(spec=factory(lambda: module), **settings), SEEN, CLASSES)
    grey = normalised(torch.full((1, 3, 16, 16), 0.5), SEEN.mean, SEEN.std)
    view(grey)
    std = settings.get("std") or (OWN["std"] if cfg else (0.229, 0.224, 0.225))
    wanted = (0.5 - torch.tensor(mean)) / torch.tensor(std)
    assert (module.shown[-1][0, :, 3, 3] - wanted).abs().max() < 1e-5
    assert source in view.origin
    assert str(list(mean)) in view.origin


@pytest.mark.parametrize(
    ("wanted", "own", "size"),
    [
        ("own", (3, 24, 32), (24, 32)),
        ("student", (3, 24, 32), (16, 16)),
        (40, (3, 24, 32), (40, 40)),
        ("own", None, (16, 16)),
    ],
)
def test_sizes(factory, wanted, own, size):
    module = Remembers(cfg=OWN | ({"input_size": own} if own else {}))
    view = load_teacher(Distillation(spec=factory(lambda: module), img_size=wanted), SEEN, CLASSES)
    images = normalised(pixels(), SEEN.mean, SEEN.std)
    view(images)
    assert tuple(module.shown[-1].shape) == (4, 3, *size)
    assert f"{size[0]} x {size[1]} px" in view.origin
    direct = normalised(pixels(), OWN["mean"], OWN["std"])
    if size != (16, 16):
        direct = F.interpolate(direct, size, mode="bicubic", antialias=True)
    assert (module.shown[-1] - direct).abs().max() < 1e-4


@pytest.mark.parametrize("size", ["big", 0, -3])
def test_a_size_that_is_none(factory, size):
    with pytest.raises(ConfigError, match="own, student or a side"):
        load_teacher(Distillation(spec=factory(Remembers), img_size=size), SEEN, CLASSES)


@pytest.mark.parametrize(
    "settings", [{"mean": (0.5, 0.5)}, {"std": (1.0, 1.0)}, {"std": (0.2, 0.0, 0.2)}, {"std": (-1.0,)}]
)
def test_a_normalisation_that_cannot_be(factory, settings):
    with pytest.raises(ConfigError, match=r"one value per channel \(3\) and std above 0"):
        load_teacher(Distillation(spec=factory(Remembers), **settings), SEEN, CLASSES)


@pytest.mark.parametrize(("size", "channels"), [("student", 3), (7, 3), ("own", 1)])
def test_a_teacher_that_refuses_what_it_would_see(factory, size, channels):
    """As timm's vision transformers do with another size than their own."""

    class Strict(Remembers):
        def forward(self, images):
            assert images.shape[1:] == (3, 24, 24), f"Input {tuple(images.shape[1:])} doesn't match model.\nMore."
            return super().forward(images)

    spec = factory(lambda: Strict(cfg={"input_size": (3, 24, 24)}))
    assert load_teacher(Distillation(spec=spec), SEEN, CLASSES).img_size == (24, 24)
    seen = SEEN if channels == 3 else Preprocessing((16, 16), mean=(0.5,), std=(0.5,))
    settings = {} if channels == 3 else {"mean": (0.5,), "std": (0.5,)}
    with pytest.raises(ConfigError, match=r"doesn't match model\.") as caught:
        load_teacher(Distillation(spec=spec, img_size=size, **settings), seen, CLASSES)
    assert "teacher.img_size" in caught.value.remedy


def test_a_teacher_whose_answers_are_no_numbers(factory):
    class Broken(Remembers):
        def forward(self, images):
            return super().forward(images) * float("nan")

    with pytest.raises(ConfigError, match="logits contain NaN or infinity"):
        load_teacher(Distillation(spec=factory(Broken)), SEEN, CLASSES)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_sees_the_mixed_images_and_is_never_trained(factory, kind):
    module = Remembers(7, cfg=OWN)
    seen = Preprocessing((16, 16))
    view = load_teacher(Distillation(spec=factory(lambda: module)), seen, [f"class {i}" for i in range(7)])
    module.shown.clear()
    recipe = tiny_recipe(mix=Mix(), teacher=Distillation(spec="any", kind=kind))
    model = tiny_model(torch.float32)
    shown: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, args: shown.append(args[0].clone()))
    stepper = make_stepper(model, recipe, teacher=view)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    stepper(0, iter(some_batches(recipe)), 1e-3, head_only=False, stop=False)
    assert len(module.shown) == len(shown) == 2
    for theirs, ours in zip(module.shown, shown, strict=True):
        raw = ours * torch.tensor(seen.std)[:, None, None] + torch.tensor(seen.mean)[:, None, None]
        assert (theirs - normalised(raw, OWN["mean"], OWN["std"])).abs().max() < 1e-4
        assert not theirs.requires_grad
    assert not module.training
    assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_the_teacher_changes_what_is_learnt(factory):
    recipe = tiny_recipe(teacher=Distillation(spec="any", alpha=1.0))
    losses = []
    for bias in (0, 1):
        module = Remembers(7)
        nn.init.zeros_(module.layer.weight)
        module.layer.bias.data = F.one_hot(torch.tensor(bias), 7).float()
        view = Teacher(
            module, Preprocessing((16, 16)), mean=(0,) * 3, std=(1,) * 3, img_size=(16, 16), columns=None, origin=""
        )
        stepper = make_stepper(tiny_model(torch.float32), recipe, teacher=view)
        losses.append(stepper(0, iter(some_batches(recipe)), 1e-3, head_only=False, stop=False).loss)
        logits = tiny_model(torch.float32)(torch.cat([images for images, _ in some_batches(recipe)]).float())
        assert losses[-1] == pytest.approx(F.cross_entropy(logits, torch.full((8,), bias)).item(), rel=1e-4)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("num_classes", [2, 4])
def test_other_classes_are_an_error(factory, num_classes):
    with pytest.raises(ConfigError, match=rf"the student's 3 classes, got {num_classes}\."):
        load_teacher(Distillation(spec=factory(lambda: Remembers(num_classes))), SEEN, CLASSES)


def test_answers_that_are_no_logits(factory):
    class Pair(Remembers):
        def forward(self, images):
            return super().forward(images), None

    with pytest.raises(ConfigError, match="for one image, got tuple"):
        load_teacher(Distillation(spec=factory(Pair)), SEEN, CLASSES)


@pytest.fixture
def cait_teacher(tmp_path):
    """A CaiT of four classes in a model folder."""
    torch.manual_seed(3)
    model = deepcait.create_model("cait_nano_32", num_classes=4, depth=1)
    for block in [*model.blocks, *model.blocks_token_only]:
        nn.init.ones_(block.gamma_1), nn.init.ones_(block.gamma_2)
    nn.init.normal_(model.head.bias)
    classes = ["owl", "cat", "newt", "dog"]
    preprocessing = Preprocessing((32, 32), mean=OWN["mean"], std=OWN["std"])
    return deepcait.Classifier(model, classes=classes, preprocessing=preprocessing).save(
        tmp_path / "teacher"
    ), model.eval()


def test_columns_are_permuted_by_class_names(cait_teacher):
    folder, model = cait_teacher
    view = load_teacher(Distillation(spec=str(folder)), SEEN, CLASSES)
    answer = view(normalised(pixels(32), SEEN.mean, SEEN.std))
    with torch.no_grad():
        direct = model(normalised(pixels(32), OWN["mean"], OWN["std"]))
    assert answer.shape == (4, 3)
    assert (answer - direct[:, [1, 3, 0]]).abs().max() < 1e-4
    assert (direct[:, :3] - answer).abs().max() > 1e-2


def test_a_grey_teacher_of_coloured_images_is_named(tmp_path):
    model = deepcait.create_model("cait_nano_32", num_classes=3, depth=1, in_chans=1)
    grey = Preprocessing((32, 32), mean=(0.5,), std=(0.2,))
    spec = deepcait.Classifier(model, classes=CLASSES, preprocessing=grey, device="cpu").save(tmp_path / "grey")
    with pytest.raises(ConfigError, match=r"teacher .*grey: the forward pass failed .* with 3 channels: .*\(B, 1, 32"):
        load_teacher(Distillation(spec=str(spec)), Preprocessing((32, 32)), CLASSES)


def test_a_class_that_the_teacher_does_not_know(cait_teacher):
    with pytest.raises(ConfigError, match="these classes of the student: yak"):
        load_teacher(Distillation(spec=str(cait_teacher[0])), SEEN, [*CLASSES, "yak"])


def test_a_factory_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").touch()
    (tmp_path / "lab" / "teachers_of_ours.py").write_text(
        "import torch\n\ndef build():\n"
        "    torch.manual_seed(5)\n"
        "    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    view = load_teacher(Distillation(spec="python:lab.teachers_of_ours:build"), SEEN, CLASSES)
    assert view(pixels()).shape == (4, 3)
    for name in ("lab", "lab.teachers_of_ours"):
        sys.modules.pop(name)


@pytest.mark.parametrize(
    "spec", ["python:no_such_module:build", "python:json:build", "python:json", "python:", "python::x"]
)
def test_factories_that_are_not_there(spec):
    with pytest.raises(ConfigError, match="package.module:factory") as caught:
        load_teacher(Distillation(spec=spec), SEEN, CLASSES)
    assert "PYTHONPATH" in caught.value.remedy


def test_a_module_that_fails_while_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "broken_teacher.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="failed with RuntimeError: no licence") as caught:
        load_teacher(Distillation(spec="python:broken_teacher:build"), SEEN, CLASSES)
    assert "broken_teacher.py:1" in caught.value.problem


def test_a_factory_that_builds_no_module(factory):
    with pytest.raises(ConfigError, match="to return a torch module, got dict"):
        load_teacher(Distillation(spec=factory(dict)), SEEN, CLASSES)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_timm_model_with_weights_from_a_file(tmp_path, suffix):
    torch.manual_seed(4)
    peer = timm.create_model("resnet10t", num_classes=3).eval()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(peer.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(peer.state_dict(), path)
    view = load_teacher(Distillation(spec=f"timm:resnet10t,weights={path}", img_size=64), SEEN, CLASSES)
    cfg = peer.pretrained_cfg
    with torch.no_grad():
        direct = peer(normalised(pixels(64), cfg["mean"], cfg["std"]))
    assert (view(normalised(pixels(64), SEEN.mean, SEEN.std)) - direct).abs().max() < 1e-3 * direct.abs().max()


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("timm:resnet1O", ConfigError, "timm has no model"),
        ("timm:resnet10t,wieghts=x", ConfigError, "timm:NAME,weights=PATH"),
        ("timm:resnet10t,weights=/nowhere/x.pth", ConfigError, "weights file"),
        ("no_such_model", ConfigError, "no_such_model"),
        ("/nowhere/model.pth", ConfigError, "nowhere"),
    ],
)
def test_names_that_lead_nowhere(spec, kind, words):
    with pytest.raises(kind, match=words) as caught:
        load_teacher(Distillation(spec=spec), SEEN, CLASSES)
    assert caught.value.remedy


def test_weights_of_another_model_or_out_of_reach(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="the weights can't be loaded"):
        load_teacher(Distillation(spec=f"timm:resnet10t,weights={path}"), SEEN, CLASSES)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(WeightsError, match="the weights can't be loaded") as caught:
        load_teacher(Distillation(spec="timm:resnet10t.c3_in1k"), SEEN, CLASSES)
    assert "weights=PATH" in caught.value.remedy
    with pytest.raises(WeightsError, match="the weights can't be loaded: .*gone"):
        load_teacher(Distillation(spec="timm:resnet10t.gone"), SEEN, CLASSES)


WNIDS = ["n02123045", "n01440764", "n02099601"]


@pytest.fixture
def imagenet_file(tmp_path):
    """Weights of a timm network with the 1,000 classes of ImageNet, and the network."""
    torch.manual_seed(6)
    peer = timm.create_model("test_vit", num_classes=1000).eval()
    nn.init.normal_(peer.head.bias)
    torch.save(peer.state_dict(), tmp_path / "peer.pth")
    return tmp_path / "peer.pth", peer


def test_a_timm_teacher_of_a_part_of_imagenet_is_matched_by_wnids(imagenet_file):
    path, peer = imagenet_file
    view = load_teacher(Distillation(spec=f"timm:test_vit,weights={path}"), SEEN, WNIDS)
    size = peer.pretrained_cfg["input_size"][-1]
    with torch.no_grad():
        cfg = peer.pretrained_cfg
        direct = peer(normalised(pixels(size), cfg["mean"], cfg["std"]))
    indices = [wnids().index(name) for name in WNIDS]
    answer = view(normalised(pixels(size), SEEN.mean, SEEN.std))
    assert (answer - direct[:, indices]).abs().max() < 1e-3
    with pytest.raises(ConfigError, match=r"student's 3 classes, got 1000.*wnids") as caught:
        load_teacher(Distillation(spec=f"timm:test_vit,weights={path}"), SEEN, CLASSES)
    assert "found by their names" in caught.value.remedy


def test_ones_own_network_of_imagenet_and_one_with_names_are_matched_too(factory):
    whole = Remembers(1000)
    view = load_teacher(Distillation(spec=factory(lambda: whole)), SEEN, WNIDS)
    assert view.columns.tolist() == [wnids().index(name) for name in WNIDS]
    named = Remembers(4, cfg=OWN | {"label_names": ["owl", "cat", "yak", "dog"]})
    view = load_teacher(Distillation(spec=factory(lambda: named, "named")), SEEN, CLASSES)
    assert view.columns.tolist() == [1, 3, 0]
    with pytest.raises(ConfigError, match="these classes of the student: n00000000"):
        load_teacher(Distillation(spec=factory(lambda: named, "named")), SEEN, ["n00000000", "cat"])


def test_weights_that_do_not_fit_say_why(imagenet_file):
    path, _ = imagenet_file
    with pytest.raises(WeightsError, match=r"(Missing|Unexpected) key\(s\) in state_dict") as caught:
        load_teacher(Distillation(spec=f"timm:resnet10t,weights={path}"), SEEN, WNIDS)
    assert len(caught.value.problem) < 450
    assert str(path) in caught.value.remedy
    assert "Fetch" not in caught.value.remedy


def test_train_with_a_teacher_from_end_to_end(tmp_path, monkeypatch, capsys):
    generator = torch.Generator().manual_seed(0)
    for number, name in enumerate(CLASSES):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(8):
            noise = torch.randint(0, 120, (40, 40, 3), dtype=torch.uint8, generator=generator)
            noise[..., number] += 120
            Image.fromarray(noise.numpy()).save(tmp_path / "photos" / name / f"{index}.png")
    (tmp_path / "my_teacher_of_colours.py").write_text(
        "import torch\n\nclass Colours(torch.nn.Module):\n"
        "    calls = 0\n"
        "    def forward(self, images):\n"
        "        Colours.calls += 1\n"
        "        assert not self.training and not torch.is_grad_enabled()\n"
        "        return images.mean((2, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    argv = [
        "train",
        "--data",
        "photos",
        "--out",
        "run",
        "--recipe",
        "scratch_32",
        "--teacher",
        "python:my_teacher_of_colours:Colours",
    ]
    argv += ["--set", "epochs=2", "global_batch_size=8", "data.num_workers=0", "keep.log_every_steps=1"]
    argv += ["schedule.warmup_epochs=0", "mix.probability=1.0"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "teacher python:my_teacher_of_colours:Colours: input 32 x 32 px" in out
    teacher = sys.modules.pop("my_teacher_of_colours").Colours
    assert teacher.calls == 1 + 2 * 2 * 2  # the check, then epochs x steps x replicas
    said = deepcait.load(tmp_path / "run").predict([tmp_path / "photos" / "cat" / "0.png"])
    assert len(said) == 1
