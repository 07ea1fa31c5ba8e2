"""Kinds of findings of the doctor, each with its severity and meaning."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")

# Errors stop a training or make its results wrong; warnings may be intentional; notes are handled when reading.
KINDS = {
    "unreadable": (ERROR, "files that can't be opened"),
    "empty_file": (ERROR, "files of zero bytes"),
    "not_an_image": (ERROR, "files that hold no image of an allowed format"),
    "undecodable": (ERROR, "images that are damaged, truncated or with values of an unknown range"),
    "bomb": (ERROR, "decompression bombs: more pixels than the limit"),
    "ends_its_reader": (ERROR, "files that crash the process that reads them"),
    "refused": (ERROR, "data that training does not accept: `deepcait help refused-data`"),
    "unusable_split": (ERROR, "splits that can't be opened"),
    "empty_class": (ERROR, "class folders without an image in training"),
    "unknown_class": (ERROR, "classes that the training split does not have"),
    "two_labels": (ERROR, "the same image under two labels"),
    "leak": (ERROR, "the same image in two splits or folds"),
    "duplicate": (WARNING, "the same image twice"),
    "near_duplicate": (WARNING, "images that look alike"),
    "near_leak": (WARNING, "images that look alike in two splits or folds"),
    "split_group": (
        WARNING,
        "groups (patients) in two splits or folds: `deepcait split --group` keeps groups together",
    ),
    "doubtful": (WARNING, "data that may not be what you meant: `deepcait help doubtful-data`"),
    "class_missing": (WARNING, "classes without an image in a split"),
    "imbalance": (WARNING, "classes of very different size"),
    "class_names_alike": (WARNING, "class names that differ in case, spaces, dashes or the coding of accents only"),
    "wrong_extension": (WARNING, "files whose suffix contradicts their format"),
    "tiny": (WARNING, "images of a few pixels"),
    "few_levels": (WARNING, "16-bit images that use a small part of the range"),
    "huge": (WARNING, "images that are slow to decode"),
    "extreme_aspect": (WARNING, "images with an extreme aspect ratio"),
    "hidden_folder": (WARNING, "hidden folders, which are not read"),
    "empty_folder": (WARNING, "folders without an image"),
    "stray_folder": (WARNING, "folders next to the splits, which are not read"),
    "stray_image": (WARNING, "images next to class folders, which are not read"),
    "unsupported_format": (WARNING, "images of an unsupported format"),
    "stray_file": (NOTE, "files that are not images"),
    "hidden_file": (NOTE, "hidden files, which are not read"),
    "exif_turn": (NOTE, "images that are rotated according to their EXIF data"),
    "not_rgb": (NOTE, "images of another mode, converted to RGB"),
    "animated": (NOTE, "files with several frames or pages, of which the first is read"),
}

# What a person may do with a fix list.
_DECIDE = {"two_labels": "; delete the line of the image with the correct label to keep it"}


@dataclass(frozen=True)
class Finding:
    """A finding of the doctor.

    kind: a key of KINDS. paths: files; for classes SPLIT/CLASS. text: details.
    leave_out: the paths to exclude from training.
    """

    kind: str
    paths: tuple[str, ...]
    text: str
    leave_out: tuple[str, ...] = ()

    @property
    def severity(self) -> str:
        """error, warning or note."""
        return KINDS[self.kind][0]

    def to_dict(self) -> dict:
        """The same for JSON."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "paths": list(self.paths),
            "text": self.text,
            "leave_out": list(self.leave_out),
        }


@dataclass(frozen=True)
class Diagnosis:
    """All findings of the doctor in one data source.

    kind: of the source. num_images: split -> images. classes: names, of all splits.
    findings: by severity, then in the order of KINDS.
    """

    kind: str
    num_images: dict[str, int]
    classes: list[str]
    findings: list[Finding]

    def count(self, severity: str) -> int:
        """Number of findings of this severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def leave_out(self) -> list[str]:
        """Paths to leave out of a training, each once."""
        return list(dict.fromkeys(path for finding in self.findings for path in finding.leave_out))

    @property
    def reasons(self) -> dict[str, str]:
        """For the first path of each finding that leaves some out: the kind, and what to decide."""
        found: dict[str, str] = {}
        named: set[str] = set()
        for finding in self.findings:
            new = [path for path in finding.leave_out if path not in named]
            named.update(new)
            if new:
                found[new[0]] = f"{finding.kind}: {finding.text}{_DECIDE.get(finding.kind, '')}"
        return found

    def to_dict(self) -> dict:
        """The same for JSON."""
        return {
            "kind": self.kind,
            "num_images": self.num_images,
            "num_classes": len(self.classes),
            "summary": {severity + "s": self.count(severity) for severity in SEVERITIES},
            "by_kind": dict(Counter(finding.kind for finding in self.findings)),
            "findings": [finding.to_dict() for finding in self.findings],
            "leave_out": self.leave_out,
        }


def merge_paths(kind: str, paths: list[str], text: str, leave_out: tuple[str, ...] = ()) -> list[Finding]:
    """Return one finding for all paths; none if there are no paths."""
    return [Finding(kind, tuple(paths), text, leave_out)] if paths else []


def sort_by_severity(findings: list[Finding]) -> list[Finding]:
    """Return the findings in the order of KINDS: errors first."""
    rank = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda finding: rank[finding.kind])
