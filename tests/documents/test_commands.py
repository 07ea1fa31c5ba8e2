"""Every command that README and the pages show is run, as it stands, where the things are that the pages speak of.

What is changed, and nothing else:

- a training starts from a tiny model and takes one epoch of 24 pictures; on `imagenet:ROOT`, on other benchmarks, or of
  a model of the paper it is planned (`--dry-run`);
- the name of a model of the paper means a tiny one with its 1,000 classes, where weights are needed;
- `study` is planned; `bench`, `demo`, `push` without `--dry-run`, and `eval` on a benchmark are parsed: their own tests
  run them;
- `torchrun` is parsed, and what it starts is run in one process;
- `serve` goes as far as listening, on a free port; `curl` asks a real service;
- `make`, `pip`, `pytest`, `python FILE` are checked for targets, extras and files.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml

import deepcait
from deepcait.cli.main import COMMANDS, main
from deepcait.cli.options import parse_options
from deepcait.data import Preprocessing
from deepcait.weights.imagenet import wnids
from tests.documents.shown import NOT_RUN, PAGES, ROOT, Block, blocks, section_text, words

DEMO = ROOT / "deepcait" / "assets" / "demo"
CLASSES = ("cat", "dog", "frog")
TINY = ["epochs=1", "global_batch_size=12", "replicas=1", "data.num_workers=0", "augment.repeats=1"]
RUNS = ("first", "kd", "pets", "a", "b", "teacher", "small", "old")
BENCHMARK = re.compile(r"^(imagenet|imagenet-v2|cifar10|cifar100|flowers102|cars|inat18|inat19|parquet|tar|zip):")


@pytest.fixture(scope="session")
def things(tmp_path_factory) -> Path:
    """A folder with the data, images, models and runs that the pages name."""
    root = tmp_path_factory.mktemp("things")
    for split, number in (("train", 8), ("test", 4)):
        for name in CLASSES:
            (root / "photos" / split / name).mkdir(parents=True)
            for path in sorted((DEMO / split / name).iterdir())[:number]:
                shutil.copy2(path, root / "photos" / split / name)
    (root / "images").mkdir()
    for name in ("image", "cat", "dog"):
        source = sorted((DEMO / "test" / "cat").iterdir())[0]
        shutil.copy2(source, root / f"{name}.jpg")
        shutil.copy2(source, root / "images" / f"{name}.jpg")
    shutil.copytree(root / "photos" / "train", root / "scans")  # without splits
    rows = [f"{path.relative_to(root)},{path.parent.name},p{path.stem[-1]}\n" for path in (root / "scans").rglob("*.*")]
    (root / "visits.csv").write_text("path,label,patient\n" + "".join(sorted(rows)))
    shutil.copytree(root / "photos", root / "cifar10")
    shutil.make_archive(str(root / "photos"), "zip", root / "photos")
    (root / "leave_out.txt").write_text("")
    for table, split in (("labels.csv", "train"), ("test.csv", "test")):
        rows = ["path,id,breed"]
        for name in CLASSES:
            for number, path in enumerate(sorted((root / "photos" / split / name).iterdir())):
                shutil.copy2(path, root / "images" / f"{split}_{name}_{number}.jpg")
                rows.append(f"images/{split}_{name}_{number}.jpg,{split}_{name}_{number},{name}")
        (root / table).write_text("\n".join(rows), encoding="utf-8")
    (root / "deepcait-demo").mkdir()
    (root / "deepcait-demo" / "animal-or-vehicle.csv").write_text("path,label,split\n" + "".join(rows_of_the_demo()))
    torch.manual_seed(0)
    sizes = {"depth": 1, "embed_dim": 48, "num_heads": 1, "cls_depth": 1}
    for folder, classes in (("tiny", list(CLASSES)), ("tiny1000", wnids())):
        model = deepcait.create_model("cait_nano_32", num_classes=len(classes), **sizes)
        deepcait.Classifier(model, classes=classes, preprocessing=Preprocessing((32, 32))).save(root / folder)
    given = ["--data", root / "photos", "--model", root / "tiny", "--out", root / "run", "--set", *TINY]
    assert main(["train", *map(str, given)]) == 0
    return root


def rows_of_the_demo() -> Iterator[str]:
    """Rows of the table that `deepcait demo` writes: a few images of each class."""
    for split, number in (("train", 8), ("val", 2), ("test", 4)):
        folder = DEMO / ("test" if split == "test" else "train")
        for name, label in (("cat", "animal"), ("ship", "vehicle")):
            paths = sorted((folder / name).iterdir())
            for path in paths[-number:] if split == "val" else paths[:number]:
                yield f"{path},{label},{split}\n"


@pytest.fixture
def place(things, tmp_path, monkeypatch) -> Path:
    """A copy of all that, to be worked in."""
    shutil.copytree(things, tmp_path, dirs_exist_ok=True)
    for name in RUNS:
        shutil.copytree(things / "run", tmp_path / "runs" / name)
    (tmp_path / "deepcait").symlink_to(ROOT / "deepcait")  # README is read in a clone
    monkeypatch.chdir(tmp_path)
    return tmp_path


def adapted(verb: str, rest: list[str]) -> list[str] | None:
    """The arguments of a verb as they are run here; None where they are only parsed."""
    rest = [
        re.sub(r"^cait_\w+$", "tiny1000", word) if verb not in ("info", "models", "train") else word for word in rest
    ]
    data = rest[rest.index("--data") + 1] if "--data" in rest else ""
    if verb in ("bench", "demo") or (verb == "push" and "--dry-run" not in rest):
        return None
    if verb == "study":
        budget = rest.index("--budget") if "--budget" in rest else None
        return [*(rest if budget is None else rest[:budget] + ["--epochs", "1"] + rest[budget + 2 :]), "--dry-run"]
    if BENCHMARK.match(data) or data.startswith(("imagenet", "/", "http")):
        return None
    if verb == "eval" and "tiny1000" in rest and data == "photos":
        return None  # its classes are not those of photos, and saying so is right
    if verb == "serve":
        at = rest.index("--port") if "--port" in rest else len(rest)
        return [*rest[:at], *rest[at + 2 :], "--port", "0"]
    if verb != "train":
        return rest
    recipe = rest[rest.index("--recipe") + 1] if "--recipe" in rest else "finetune"
    given = [word for word in rest if word != "--model"]
    if "--model" in rest:
        given.remove(rest[rest.index("--model") + 1])
    if recipe == "lora" and importlib.util.find_spec("peft") is None:
        return None
    decays = any("warmup_stable_decay" in word for word in rest) and "--resume" not in rest
    short = ["schedule.warmup_epochs=0", "schedule.decay_epochs=1"]
    tiny = TINY + (short if decays or recipe == "nano_32" else [])
    ours = tiny if "--set" in rest else ["--set", *tiny]
    if "--set" in rest:  # the last settings win, and belong to the option
        end = max(index for index, word in enumerate(given) if "=" in word) + 1
        given[end:end] = ours
        return given if recipe.endswith("_32") else [*given, "--model", "tiny"]
    if recipe == "teacher_32":
        return [*given, "--dry-run"]
    return [*given, "--model", "tiny", *ours]


def run_verb(argv: list[str], place: Path) -> None:
    """Run one command of deepcait, or parse it where it is not to be run."""
    if not argv or argv[0].startswith("-"):
        assert main(argv) == 0
        return
    verb, *rest = argv
    assert verb in COMMANDS, verb
    module = __import__(f"deepcait.cli.{verb}", fromlist=["Args"])
    assert parse_options(module.Args, rest, command=verb, description="") is not None
    ours = adapted(verb, rest)
    if ours is None:
        return
    if verb == "train" and "--resume" not in ours:
        at = ours.index("--out") + 1
        if "--dry-run" in ours:  # a plan refuses a folder with a run, which later commands of a page need
            ours[at] = "runs/planned"
        shutil.rmtree(place / ours[at], ignore_errors=True)
    with listening_only():
        code = main([verb, *ours])
    assert code == (3 if "--strict" in ours and code else 0), f"{' '.join(argv)}: exit code {code}"


@contextlib.contextmanager
def listening_only() -> Iterator[None]:
    """Have `serve` end once it listens."""
    import uvicorn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
        yield


def run_curl(argv: list[str], place: Path) -> None:
    """Ask a real service what the page asks."""
    from tests.serve.harness import live

    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    with live(deepcait.load(place / "tiny")) as running:
        ours = [re.sub(r"http://127\.0\.0\.1:\d+", running.url.rstrip("/"), word) for word in argv]
        done = subprocess.run(
            ["curl", "-sS", "--max-time", "60", "--fail-with-body", *ours], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr + done.stdout
    assert '"predictions"' in done.stdout or not re.search("/(predict|explain)", " ".join(argv))


def check_other(program: str, argv: list[str]) -> None:
    """Targets, extras, files that a command of another program names."""
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        assert {word for word in argv if "=" not in word} <= targets
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        named = re.findall(r"\[([\w,]+)\]", " ".join(argv))
        assert {extra for names in named for extra in names.split(",")} <= set(extras)
        assert argv[0] == "install"
    else:  # python FILE, python -m MODULE, pytest FILE
        if argv[:1] == ["-m"]:
            known = argv[1] in ("venv", "pip")
            assert known or (ROOT / Path(*argv[1].split("."))).with_suffix(".py").exists(), argv
        elif argv:
            assert (ROOT / argv[0]).exists(), argv


def run_python(block: Block) -> str:
    """Run the Python of a block and return what it prints. A comment after a `print` states what that prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(block.text, block.section, "exec"), {"torch": torch, "model": deepcait.load("tiny").model})
    said = re.findall(r"^ *print\(.*\)  # (.*)$", block.text, re.MULTILINE)
    assert set(said) <= set(out.getvalue().splitlines())
    return out.getvalue()


def run_block(block: Block, place: Path) -> None:
    """Run every command of a block; write the YAML that names its file."""
    if block.language == "yaml":
        name = re.match(r"# (\S+\.yaml)\n", block.text)
        assert yaml.safe_load(block.text)
        if name:
            (place / name[1]).write_text(block.text, encoding="utf-8")
    for command in block.commands:
        program, *argv = words(command)
        program = program.rpartition("/")[2]
        if program == "torchrun":
            from torch.distributed.run import parse_args

            given = parse_args(argv)
            assert given.training_script == "deepcait", command
            program, argv = "deepcait", given.training_script_args
        if program == "deepcait" or argv[:2] == ["-m", "deepcait"]:
            run_verb(argv[2:] if argv[:2] == ["-m", "deepcait"] else argv, place)
        elif program == "curl":
            run_curl(argv, place)
        else:
            check_other(program, argv)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_the_page(page, place, capsys):
    text, printed = page.read_text(encoding="utf-8"), None
    for block in blocks(text):
        if NOT_RUN in section_text(text, block.section):
            continue
        if block.language == "text" and printed is not None:
            assert block.text.strip() == printed.strip()
        printed = None
        if block.language == "python":
            printed = run_python(block)
        else:
            run_block(block, place)


def test_what_a_run_leaves_is_what_the_page_says(things):
    text = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    table = re.search(r"^A run folder contains:\n\n.*\n.*\n((?:\|.*\n)+)", text, re.MULTILINE)[1]
    printed = [name for row in table.splitlines() for name in re.findall(r"`([\w./]+)`", row.split("|")[1])]
    left = {path.name + "/" * path.is_dir() for path in (things / "run").iterdir()}
    assert set(printed) == left
    assert len(printed) == len(set(printed))


def test_what_is_not_run_is_cluster_launch_files_and_docker():
    not_run = {
        (page.name, block.section)
        for page in PAGES
        for block in blocks(page.read_text(encoding="utf-8"))
        if NOT_RUN in section_text(page.read_text(encoding="utf-8"), block.section)
    }
    assert not_run == {("distributed.md", "SLURM"), ("distributed.md", "Kubernetes"), ("serve.md", "Docker")}


def test_examples_of_help_can_be_typed():
    for verb in COMMANDS:
        module = __import__(f"deepcait.cli.{verb}", fromlist=["Args"])
        shown = Block("", re.sub(r"^    ", "", module.__doc__, flags=re.MULTILINE), verb).commands
        assert shown, f"{verb}: no example"
        for command in shown:
            program, *argv = words(command)
            if program == "deepcait":
                parse_options(module.Args, argv[1:], command=verb, description="")


def test_commands_are_found_and_wrong_ones_fail(place):
    text = (
        "# A\n\n```\ndeepcait models      all of them\ntorchrun --nnodes 2 \\\n    -m deepcait train --out r\n```\n\n"
        "    deepcait gone\n\n## B\n\nNot run here.\n\n```\nmake gone\n```\n"
    )
    found = blocks(text)
    assert [block.commands for block in found] == [
        ["deepcait models", "torchrun --nnodes 2 -m deepcait train --out r"],
        ["deepcait gone"],
        ["make gone"],
    ]
    assert NOT_RUN in section_text(text, found[2].section)
    for wrong in (["gone"], ["eval", "gone", "--data", "photos"], ["eval", "runs/first", "--data", "gone"]):
        with pytest.raises(AssertionError):
            run_verb(wrong, place)
    with pytest.raises(AssertionError):
        check_other("make", ["gone"])
    with pytest.raises(AssertionError):
        check_other("pip", ["install", ".[gone]"])
    with pytest.raises(Exception, match="gone"):
        run_verb(["models", "--gone"], place)
