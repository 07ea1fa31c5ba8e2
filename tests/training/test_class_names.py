"""Property: renaming the classes changes no number, in every form of data, whatever measures."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deepcait
from deepcait.cli.main import main
from deepcait.data import open_split
from deepcait.errors import DataError
from deepcait.evaluation import confusion
from deepcait.report.record import read_run
from deepcait.report.results import measure_run
from deepcait.training.recipe import load_recipe
from deepcait.training.run import train
from tests.data.forms import add_to_tar, write_parquet

LETTERS = ("a", "b", "c")
NAMES = [LETTERS, ("0", "1", "2"), ("1", "2", "3"), ("10", "20", "30"), ("2019", "2020", "2021"), ("01", "02", "03")]
FORMS = ("folder", "zip", "csv", "tar", "parquet")
TINY = """
start=random seed=3 epochs=3 global_batch_size=6 replicas=1 compute.device=cpu data.num_workers=0 keep.log_every_steps=1
shape.embed_dim=12 shape.num_heads=2 shape.depth=1 shape.cls_depth=1 shape.patch_size=8 img_size=16
ema.decay=0 optimizer.lr=1e-2
""".split()


def images() -> list[tuple[str, int, str, bytes]]:
    """(split, class, file name, PNG): val lacks the last class."""
    made = []
    for split, counts in (("train", (6, 6, 6)), ("val", (5, 5, 0))):
        for label, count in enumerate(counts):
            for number in range(count):
                rng = np.random.default_rng([label, number, split == "val"])
                pixels = rng.integers(0, 150, (16, 16, 3), dtype=np.uint8)
                pixels[4:12, 4:12, label] = 200
                held = io.BytesIO()
                Image.fromarray(pixels).save(held, "PNG")
                made.append((split, label, f"{label}_{number}.png", held.getvalue()))
    return made


def write(root: Path, form: str, names: tuple[str, ...]) -> str:
    """The same images under these class names; returns the DATA argument."""
    root.mkdir(parents=True)
    made = images()
    if form == "folder":
        for split, label, file, data in made:
            (root / split / names[label]).mkdir(parents=True, exist_ok=True)
            (root / split / names[label] / file).write_bytes(data)
    elif form == "zip":
        with zipfile.ZipFile(root / "images.zip", "w") as packed:
            for split, label, file, data in made:
                packed.writestr(f"{split}/{names[label]}/{file}", data)
        return str(root / "images.zip")
    elif form == "csv":
        for split, _, file, data in made:
            (root / split).mkdir(exist_ok=True)
            (root / split / file).write_bytes(data)
        rows = [f"{split}/{file},{names[label]},{split}\n" for split, label, file, _ in made]
        (root / "list.csv").write_text("path,label,split\n" + "".join(rows))
        return str(root / "list.csv")
    elif form == "tar":
        for split in ("train", "val"):
            with tarfile.open(root / f"{split}-000.tar", "w") as shard:
                for own, label, file, data in made:
                    if own == split:
                        add_to_tar(shard, file, data)
                        add_to_tar(shard, f"{Path(file).stem}.cls", names[label].encode())
    else:
        numbers = all(name.isdecimal() and name == str(int(name)) for name in names)
        for split in ("train", "val"):
            own = [(label, file, data) for s, label, file, data in made if s == split]
            labels = [int(names[label]) if numbers else names[label] for label, _, _ in own]
            write_parquet(root / f"{split}-00000-of-00001.parquet", [(f, d) for _, f, d in own], labels, None)
    return str(root)


def numbers(root: Path, form: str, names: tuple[str, ...], *settings: str) -> dict:
    """Train on these images, measure the result in every way, and return all numbers."""
    data, out = write(root / "data", form, names), root / "run"
    outcome = train(load_recipe("scratch_32", [*TINY, f"data.source={data}", *settings]), out)
    assert outcome.classes == list(names)
    classifier = deepcait.load(str(out), device="cpu")
    image = Image.fromarray(np.full((16, 16, 3), 90, dtype=np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_name = deepcait.evaluate(classifier, data, split="val").to_dict()
        by_module = deepcait.evaluate(
            classifier.network, data, split="val", preprocessing=classifier.preprocessing
        ).to_dict()
    results = measure_run(read_run(out))
    assert by_name["num_images"] == 10
    return {
        "rows": [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()],
        "best_epoch": outcome.best_epoch,
        "classifier": by_name,
        "module": by_module,
        "command": eval_command(out, data),
        "report": (confusion(results.records, range(len(names))).tolist(), results.train_counts),
        "answers": [(found.index, found.probability) for found in classifier.predict(image)[0]],
        "explained": classifier.explain(image, target=names[1]).maps["class-attention"].values.tolist(),
    }


def eval_command(run: Path, data: str) -> dict:
    """What `deepcait eval RUN --data D --json` prints, without paths and names."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["eval", str(run), "--data", data, "--split", "val", "--json"]) == 0
    found = json.loads(printed.getvalue())
    return {key: value for key, value in found.items() if isinstance(value, int | float) and key != "images_per_s"}


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The numbers of classes called a, b and c, by form."""
    return {form: numbers(tmp_path_factory.mktemp(form), form, LETTERS) for form in FORMS}


@pytest.mark.parametrize("names", NAMES[1:], ids="-".join)
def test_renaming_the_folders_changes_no_number(tmp_path, wanted, names):
    assert numbers(tmp_path, "folder", names) == wanted["folder"]


@pytest.mark.parametrize("names", [NAMES[3], NAMES[5]], ids="-".join)
@pytest.mark.parametrize("form", FORMS[1:])
def test_renaming_the_classes_of_other_forms_changes_no_number(tmp_path, wanted, form, names):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    assert numbers(tmp_path, form, names) == wanted[form]


def test_validation_and_later_evaluation_agree(wanted):
    for found in wanted.values():
        best = [row for row in found["rows"] if row["kind"] == "eval"][found["best_epoch"] - 1]
        assert best["top1"] == found["classifier"]["top1"] == found["module"]["top1"]
        assert best["top1"] == found["command"]["top1"]
        assert best["loss"] == pytest.approx(found["classifier"]["loss"], abs=1e-9)


@pytest.mark.parametrize("names", [NAMES[2]], ids="-".join)
def test_renaming_changes_no_number_under_distillation(tmp_path, names):
    found = []
    for own in (LETTERS, names):
        root = tmp_path / own[0]
        numbers(root / "teacher", "folder", own)
        teacher = f"teacher.spec={root / 'teacher/run'}"
        found.append(numbers(root / "student", "folder", own, "seed=4", teacher))
    assert found[0] == found[1]


def test_indices_keep_their_order_where_they_are_asked_for(tmp_path):
    path = write(tmp_path / "data", "csv", ("0", "2", "5"))
    assert open_split(path, "train").classes == ["0", "2", "5"]
    indices = open_split(path, "train", labels="indices")
    assert indices.classes == [str(index) for index in range(6)]
    assert set(indices.labels) == {0, 2, 5}
    with pytest.raises(DataError, match="data.labels=indices"):
        open_split(write(tmp_path / "letters", "csv", LETTERS), "train", labels="indices")
    folder = write(tmp_path / "folders", "folder", ("0", "2", "5"))
    assert set(open_split(folder, "train", labels="indices").labels) == {0, 2, 5}


def test_an_unknown_integer_in_val_is_an_error_and_no_index(tmp_path):
    root = tmp_path / "data"
    write(root, "folder", ("1", "2", "3"))
    (root / "val" / "1").rename(root / "val" / "0")
    with pytest.raises(DataError, match="unknown class '0'"):
        train(load_recipe("scratch_32", [*TINY, f"data.source={root}"]), tmp_path / "run")
