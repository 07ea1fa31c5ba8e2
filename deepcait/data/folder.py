"""Class folders: ROOT/<class>/*.png, or with splits ROOT/<split>/<class>/*.png."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from deepcait.data.formats import count_suffixes
from deepcait.data.image import read_image_bytes
from deepcait.data.labels import find_classes, map_labels, sort_classes
from deepcait.data.listing import walk_files, walk_images
from deepcait.data.source import Sample, options_of
from deepcait.errors import DataError, some

SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
# Around such a word: training_set, test-data, trainset, seg_train.
_SPLIT_WORD = re.compile(r"(?:seg[-_ ])?(?P<word>[a-z]+?)(?:[-_ ]?(?:set|data|images|imgs|split))?")
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}
_LABEL_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet", "labels.csv")


class FolderSource:
    """Images in one folder per class; a class folder can have subfolders.

    Args:
        base: folder that `names` are relative to.
        split: train, val, test or all.
        classes: index -> class name.
        names, labels: of each image, in reading order.
        note: what was left out, printed by `describe`.
    """

    kind = "folder"

    def __init__(
        self,
        base: Path,
        *,
        split: str,
        classes: Sequence[str],
        names: Sequence[str],
        labels: Sequence[int | None],
        note: str = "",
    ) -> None:
        self.base = Path(base)
        self.split = split
        self.classes = list(classes)
        self.names = list(names)
        self.labels: list[int | None] = list(labels)
        self.note = note

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Sample:
        """The sample at `index`; ImageError when its file can't be read."""
        return Sample(
            read_image_bytes(self.base / self.names[index], max_bytes=options_of(self).max_bytes),
            self.labels[index],
            self.names[index],
        )

    def locate(self, index: int) -> str:
        """Path of the image, for messages."""
        return str(self.base / self.names[index])


def open_folder(
    root: str | os.PathLike[str],
    split: str | None,
    classes: Sequence[str] | None = None,
    labels: str = "auto",
    left_out: Collection[str] = (),
) -> FolderSource:
    """Open class folders; file names are listed, no image is read.

    Without `classes` the mapping is that of the training split, if there is one, else of the
    folders themselves (sorted as text; by number when all are integers). With `classes` (fixed by
    training) folders are mapped to them, see `map_labels`. Order: class by class, files in natural order.
    An empty class folder is an error if it would define a class (train, or no splits, and
    `classes` not given); elsewhere that class just has no image here.

    Args:
        root: the folder; hidden files and folders in it are ignored.
        split: train, val or test; None takes all images, of all splits.
        classes: index -> class name.
        labels: what integers mean, see `RULES`.
        left_out: absolute paths of class folders that are not read.

    Raises:
        DataError: no such folder or split, no class folders, no images, an unknown class, an empty
            class folder in training data.
    """
    root = Path(root)
    _require_folder(root)
    splits = find_splits(root)
    if split is None:
        require_sorted(root, splits, ("val", "test"))
        folders = {path.name + "/": path for path in splits.values()} or {"": root}
    else:
        folders = {"": _require_split(root, splits, split)}
        root = folders[""]
    known = list(classes) if classes is not None else _own_classes(root, splits, folders.values(), labels, left_out)
    defining = set() if classes is not None else ({splits["train"]} if "train" in splits else set(folders.values()))

    found: list[tuple[str, str]] = []
    for prefix, folder in folders.items():
        may_be_empty = folder not in defining or split in ("val", "test")
        for name, files in _class_files(folder, may_be_empty=may_be_empty, left_out=left_out):
            found += [(f"{prefix}{name}/{file}", name) for file in files]
    index_of = map_labels(root, {name for _, name in found}, known, labels)
    return FolderSource(
        root,
        split=split or "all",
        classes=known,
        names=[path for path, _ in found],
        labels=[index_of[name] for _, name in found],
        note=_left_out(folders.values()),
    )


def _left_out(folders: Iterable[Path]) -> str:
    """A sentence about files in class folders that are not images; empty if there are none."""
    files = [file for folder in folders for name in subfolders(folder) for file in walk_files(folder / name)[1]]
    return f"left out: {count_suffixes(files)}" if files else ""


def find_splits(root: str | os.PathLike[str]) -> dict[str, Path]:
    """The split folders below `root` by name (train, val, test); empty if there are none.

    A folder called "train" that holds images but no class folders is a class (the vehicle), unless
    nothing but such folders is there.

    Raises:
        DataError: two folders for one split, or split folders whose images are not in class folders.
    """
    root = Path(root)
    _require_folder(root)
    visible = subfolders(root)
    splits: dict[str, Path] = {}
    for name in visible:
        split = split_of(name)
        if split is None or not subfolders(root / name):
            continue
        if split in splits:
            raise DataError(
                f"{root}: two folders for the split {split}: {splits[split].name} and {name}.",
                remedy="Rename or merge one of them.",
            )
        splits[split] = _unnested(root / name)
    # One folder alone is not a set of classes; but "train", which may be all that a model is measured on.
    several = len(visible) > 1 or [split_of(name) for name in visible] in (["val"], ["test"])
    if not splits and several and all(split_of(name) for name in visible):
        for name in visible:
            if walk_images(root / name):
                raise _flat_images(root / name)
    return {split: splits[split] for split in SPLIT_NAMES if split in splits}


def _unnested(folder: Path) -> Path:
    """The folder of class folders: itself, or the one of the same name in it (seg_train/seg_train)."""
    inner = subfolders(folder)
    same = len(inner) == 1 and split_of(inner[0]) is not None and split_of(inner[0]) == split_of(folder.name)
    return folder / inner[0] if same and subfolders(folder / inner[0]) else folder


def require_sorted(root: Path, splits: Mapping[str, Path], wanted: Sequence[str]) -> None:
    """Raise if one split has images without class folders, although others have class folders.

    Args:
        root: the folder above the splits.
        splits: those that `find_splits` found; without any, folders called like splits are classes.
        wanted: the splits that are looked for.

    Raises:
        DataError: such a folder.
    """
    for name in subfolders(root) if splits else ():
        if split_of(name) in wanted and not subfolders(root / name) and walk_images(root / name):
            raise _flat_images(root / name)


def split_of(word: str | None) -> str | None:
    """The split that a word means, or None: "Validation" is val, "training_set" is train."""
    found = _SPLIT_WORD.fullmatch(word.lower()) if word else None
    return _SPLIT_OF.get(found["word"]) if found else None


def label_file(folder: Path) -> Path | None:
    """The file with labels next to images, as in the HF hub's `imagefolder`; None if there is none."""
    return next((folder / name for name in _LABEL_FILES if (folder / name).is_file()), None)


def subfolders(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted as text.

    Raises:
        DataError: `folder` can't be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))
    except OSError as error:
        raise DataError(
            f"{folder}: the folder can't be read: {error}.", remedy="Check the path and its permissions."
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself has no target, like a broken one
            return False
        raise


def _class_files(folder: Path, *, may_be_empty: bool, left_out: Collection[str] = ()) -> list[tuple[str, list[str]]]:
    """(class name, files) for every class folder with images, in class order."""
    listed = [(name, walk_images(folder / name)) for name in sort_classes(_class_folders(folder, left_out))]
    filled = [(name, files) for name, files in listed if files]
    if not filled:
        if walk_images(folder):
            raise _flat_images(folder)
        classes = f" (classes: {some([name for name, _ in listed])})" if listed else ""
        raise DataError(
            f"No images found below {folder}{classes}.",
            remedy="Add images, or pass the folder that contains the class folders.",
        )
    empty = [str(folder / name) for name, files in listed if not files]
    if empty and not may_be_empty:
        raise DataError(
            f"Class folders without images: {some(empty)}.",
            remedy="Add images or remove these folders, or list them in a fix list (`deepcait doctor --fix-list`).",
        )
    return filled


def empty_classes(root: Path) -> frozenset[str]:
    """Return the absolute paths of the class folders without an image, of all splits."""
    folders = [*find_splits(root).values()] or [root]
    inner = [folder / name for folder in folders for name in subfolders(folder)]
    return frozenset(os.path.abspath(folder) for folder in inner if not walk_images(folder))


def _class_folders(folder: Path, left_out: Collection[str]) -> list[str]:
    return [name for name in subfolders(folder) if os.path.abspath(folder / name) not in left_out]


def _own_classes(
    root: Path, splits: dict[str, Path], folders: Iterable[Path], labels: str, left_out: Collection[str]
) -> list[str]:
    defining = [splits["train"]] if "train" in splits else list(folders)
    return find_classes(root, {name for folder in defining for name in _class_folders(folder, left_out)}, labels)


def _require_folder(root: Path) -> None:
    if not root.is_dir():
        what = "this is a file, not a folder of class folders" if root.exists() else "there is no such folder"
        raise DataError(f"{root}: {what}.", remedy="Check the path.")


def _require_split(root: Path, splits: dict[str, Path], split: str) -> Path:
    if split not in splits:
        found = f"the splits are {', '.join(splits)}" if splits else "the class folders have no splits"
        raise DataError(
            f"{root}: there is no split {split}; {found}.",
            remedy=f"Choose one that is there, or add a folder {split}/.",
        )
    return splits[split]


def _flat_images(folder: Path) -> DataError:
    remedy = "Sort them into class folders, e.g. cat/1.jpg and dog/2.jpg: the folder's name is the label."
    labels = label_file(folder)
    if labels is not None:
        return DataError(
            f"{folder}: the images are not in class folders.",
            remedy=f"Give {labels}: it names the label of each image.",
        )
    if any(path.name.startswith("ILSVRC2012_val_") for path in folder.iterdir()):
        remedy = (
            "These are ImageNet's validation images: give imagenet:ROOT, with ROOT above this folder and a file of "
            "labels or the unpacked ILSVRC2012_devkit_t12 in it."
        )
    return DataError(f"{folder}: the images are not in class folders.", remedy=remedy)
