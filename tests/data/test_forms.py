"""The same images through every form: the same names, labels and tensors, with any workers, from any step."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import time
from pathlib import Path

import pytest

from deepcait.data import (
    Preprocessing,
    Subset,
    describe,
    evaluation_loader,
    list_splits,
    open_source,
    open_split,
    parquet,
    tar,
)
from deepcait.data.augment import Augment, build_augmentation
from deepcait.data.loader import TrainingSet, training_batches
from deepcait.data.order import Order
from deepcait.data.spec import KINDS
from deepcait.runtime.environment import environment
from tests.data.forms import write_forms

DEMO = Path(__file__).parent.parent.parent / "deepcait" / "assets" / "demo"
FORMS = ["folder", "csv", "parquet", "tar", "zip"]
PREPROCESSING = Preprocessing((32, 32))
SEEN: dict[str, str] = {}


@pytest.fixture(scope="module")
def forms(tmp_path_factory) -> dict[str, str]:
    pytest.importorskip("pyarrow")
    return write_forms(DEMO, tmp_path_factory.mktemp("forms") / "out")


class Chain:
    """Several sources one after the other."""

    kind, split = "chain", "all"

    def __init__(self, sources) -> None:
        self.sources = sources
        self.places = [(source, index) for source in sources for index in range(len(source))]
        self.classes = sources[0].classes
        self.names = [source.names[index] for source, index in self.places]
        self.labels = [source.labels[index] for source, index in self.places]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int):
        source, inner = self.places[index]
        return source.read(inner)

    def locate(self, index: int) -> str:
        source, inner = self.places[index]
        return source.locate(inner)


class CountingSource(Subset):
    """A source that remembers what was read."""

    def __init__(self, source) -> None:
        super().__init__(source, range(len(source)), split=source.split)
        self.reads: list[int] = []

    def read(self, index: int):
        self.reads.append(index)
        return super().read(index)


def tensors(source, num_workers: int, batch_size: int = 200) -> list[tuple[str, int, bytes]]:
    """(name, label, bytes of the tensor) of every image, as the loader delivers them."""
    loader = evaluation_loader(source, PREPROCESSING, batch_size=batch_size, num_workers=num_workers)
    return [
        (source.names[index], label, image.numpy().tobytes())
        for images, labels, indices in loader
        for image, label, index in zip(images, labels.tolist(), indices.tolist(), strict=True)
    ]


@pytest.mark.parametrize("split", ["train", "test", None])
@pytest.mark.parametrize("form", FORMS)
def test_names_and_labels_are_the_same(forms, form, split):
    source, wanted = open_source(forms[form], split), open_source(forms["folder"], split)
    assert sorted(zip(source.names, source.labels, strict=True)) == sorted(
        zip(wanted.names, wanted.labels, strict=True)
    )
    assert len(source) == {"train": 1000, "test": 500, None: 1500}[split]
    assert list_splits(forms[form]) == ["train", "test"]
    assert describe(source).startswith(f"{form}, split {split or 'all'}: {len(source):,} images, 10 classes")
    if form == "tar":
        assert source.classes == [str(index) for index in range(10)]
        indices = open_source(forms[form], split, labels="indices")
        assert (indices.classes, indices.labels) == (source.classes, source.labels)
    else:
        assert source.classes == wanted.classes
    assert pickle.loads(pickle.dumps(source)).read(7) == source.read(7)


@pytest.mark.parametrize("form", FORMS[1:])
def test_tensors_are_the_same_by_name(forms, form):
    wanted = tensors(open_source(forms["folder"], "test"), 0)
    source = open_source(forms[form], "test")
    found = tensors(source, 0)
    assert [name for name, _, _ in found] == source.names
    assert sorted(found) == sorted(wanted)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_no_tensor(forms, num_workers):
    chain = Chain([open_source(forms[form], "test") for form in FORMS])
    assert tensors(chain, num_workers) == tensors(chain, 0)


@pytest.mark.parametrize("form", FORMS)
def test_a_late_start_is_exact_and_reads_nothing_it_skips(forms, form, monkeypatch):
    order = Order(num_samples=1000, global_batch_size=16, replicas=2, seed=3)

    def run(first_step):
        source = CountingSource(open_source(forms[form], "train"))
        samples = TrainingSet(source, build_augmentation(Augment(repeats=1), PREPROCESSING), 3)
        ranges = []
        original = tar.read_range
        monkeypatch.setattr(tar, "read_range", lambda *place: ranges.append(place) or original(*place))
        batches = list(training_batches(samples, order, replicas=[0, 1], first_step=first_step, last_step=9))
        monkeypatch.setattr(tar, "read_range", original)
        return source, batches, ranges

    _, whole, _ = run(0)
    source, late, ranges = run(6)
    assert len(late) == 6
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(late, whole[12:], strict=True))
    slots = [slot.index for step in (6, 7, 8) for replica in (0, 1) for slot in order.slots(step, replica)]
    assert source.reads == slots
    if form == "tar":  # no byte is fetched but those of these images
        assert [size for _, _, size in ranges] == [len(source.read(index).data) for index in slots]


def test_row_groups_are_read_once_and_as_many_kept_as_fit(forms, monkeypatch):
    def read(indices, kept_bytes):
        source = open_source(forms["parquet"], "test")
        groups, original = [], source.reader._read_group
        monkeypatch.setattr(parquet, "KEPT_BYTES", kept_bytes)
        monkeypatch.setattr(
            source.reader, "_read_group", lambda number, row: groups.append(number) or original(number, row)
        )
        for index in indices:
            source.read(index)
        return groups, source.reader

    first = read([0], 0)[0][0]
    assert read([*range(250), 0], 0)[0] == [first, first + 1, first + 2, first]
    assert read([*range(250), 0, 499, 120], 2**28)[0] == [first, first + 1, first + 2, first + 4]
    size = read([0], 0)[1]._kept[first].nbytes
    # Room for two and a half: the one used longest ago goes.
    groups, reader = read([0, 100, 0, 200, 100, 0], int(2.5 * size))
    assert groups == [first, first + 1, first + 2, first + 1, first]
    assert len(reader._kept) == 2
    monkeypatch.undo()
    vars(reader).pop("_read_group", None)
    assert pickle.loads(pickle.dumps(reader))._kept == {}


def test_training_on_one_form_and_validating_on_another(forms):
    classes = open_split(forms["folder"], "train").classes
    by_index = open_split(forms["tar"], "eval", classes=classes)
    by_name = open_split(forms["csv"], "eval", classes=classes)
    assert by_index.classes == by_name.classes == classes
    assert dict(zip(by_index.names, by_index.labels, strict=True)) == dict(
        zip(by_name.names, by_name.labels, strict=True)
    )
    assert "indices of the 10 classes of the model" in describe(by_index)
    turned = open_source(forms["csv"], "test", classes=classes[::-1])
    assert all(
        turned.classes[label] == name.split("/")[0] for name, label in zip(turned.names, turned.labels, strict=True)
    )


@pytest.mark.parametrize("form", FORMS)
def test_the_kind_in_front_says_the_same(forms, form):
    assert form in KINDS
    assert open_source(f"{form}:{forms[form]}", "test").names == open_source(forms[form], "test").names


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> Chain:
    """All 60,000 images in each form, one form after the other, the files of the hub last."""
    root = os.environ.get("DEEPCAIT_CIFAR")
    if not root:
        pytest.skip("DEEPCAIT_CIFAR does not name a folder with CIFAR-10 as folder/ and parquet/")
    specs = write_forms(Path(root) / "folder", tmp_path_factory.mktemp("cifar") / "out", per_shard=2500)
    sources = [open_source(spec) for spec in [*specs.values(), f"parquet:{Path(root) / 'parquet'}"]]
    assert [len(source) for source in sources] == [60_000] * (len(FORMS) + 1)
    return Chain(sources)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_all_of_cifar10_through_every_form(cifar, num_workers):
    wanted: dict[str, tuple[int, bytes]] = {}
    began, num_done = time.monotonic(), 0
    for images, labels, indices in evaluation_loader(cifar, PREPROCESSING, batch_size=500, num_workers=num_workers):
        assert indices.tolist() == list(range(num_done, num_done + len(indices)))
        num_done += len(indices)
        for image, label, index in zip(images.numpy(), labels.tolist(), indices.tolist(), strict=True):
            found = label, hashlib.sha256(image).digest()
            # The folder comes first and says what is wanted.
            if index < 60_000:
                wanted[cifar.names[index]] = found
            assert wanted[cifar.names[index]] == found, cifar.locate(index)
    assert len(wanted) == 60_000
    assert num_done == 60_000 * (len(FORMS) + 1)
    # The same for any number of workers.
    digest = hashlib.sha256(b"".join(data for _, data in (wanted[name] for name in sorted(wanted)))).hexdigest()
    assert digest == SEEN.setdefault("digest", digest)
    note_result(
        f"{num_workers} workers", {"images": num_done, "seconds": round(time.monotonic() - began), "same": True}
    )
    note_result("sha256 of all tensors in the order of their names", digest)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("form", [*FORMS, "hub"])
def test_a_late_start_in_cifar10_is_exact_and_reads_nothing_it_skips(cifar, form):
    """50 steps from the middle of an epoch on: the bits of a run from the start, and only their images are read."""
    source = cifar.sources[[*FORMS, "hub"].index(form)]
    order = Order(num_samples=60_000, global_batch_size=64, replicas=2, seed=3)
    transform = build_augmentation(Augment(repeats=1, crop="pad", rand_augment="", erase=0.0), PREPROCESSING)

    def run(first_step, last_step):
        counting = CountingSource(source)
        options = {"replicas": [0, 1], "first_step": first_step, "last_step": last_step}
        batches = list(training_batches(TrainingSet(counting, transform, 3), order, **options))
        return counting, batches

    _, whole = run(430, 482)
    counting, late = run(470, 482)
    assert all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in zip(late, whole[80:], strict=True))
    slots = [slot.index for step in range(470, 482) for replica in (0, 1) for slot in order.slots(step, replica)]
    assert counting.reads == slots
    note_result(f"late start, {form}", {"steps": "470 to 481 of 937", "read": len(slots), "read of what is skipped": 0})


def note_result(key: str, value: object) -> None:
    """Write a finding into data_forms.json below DEEPCAIT_RESULTS, where that is set."""
    folder = os.environ.get("DEEPCAIT_RESULTS")
    if not folder:
        return
    path = Path(folder) / "data_forms.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= {
        "what": "60,000 images of CIFAR-10 as folder, CSV, parquet, tar shards, zip and the hub's parquet",
        "command": "DEEPCAIT_CIFAR=ROOT DEEPCAIT_RESULTS=docs/results pytest tests/data/test_forms.py -m soak",
        "environment": environment(),
        key: value,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
