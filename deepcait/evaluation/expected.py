"""The published accuracy of a released model, printed next to the measured one."""

from __future__ import annotations

from dataclasses import dataclass

from deepcait.data import Source
from deepcait.weights.imagenet import subset_name
from deepcait.weights.published import REEVALUATED, REEVALUATED_COLUMNS
from deepcait.weights.registry import RELEASED
from deepcait.weights.spec import Resolved

ORIGIN = "others' re-evaluation of the released weights (timm, results/*.csv)"
# In percentage points: decoders and rounding of resized pixels change an accuracy by hundredths.
TOLERANCE = 0.005
_COLUMNS = {"imagenet": ("top1", "top5"), "real": ("real", "real_top5"), "v2": ("v2", "v2_top5")}


@dataclass(frozen=True)
class Expected:
    """Accuracies as fractions in [0, 1]; top5 is None if it was not reported."""

    top1: float
    top5: float | None


def expected_accuracy(found: Resolved, protocol: str, source: Source, class_mask: object = None) -> Expected | None:
    """Return the published accuracy of this model and protocol; None if it is not a released model.

    Args:
        found: the model, at the image size of its release.
        protocol: imagenet, real or v2; under folder ImageNet-A and -R are recognised by their classes.
        source: the data.
        class_mask: as given to `evaluate`; the accuracies of ImageNet-A and -R are over their own classes.
    """
    name = found.name if found.name in REEVALUATED else None
    of_release = found.kind == "name" or found.provenance.get("hub_id") == RELEASED[name].hub_id if name else False
    columns = _COLUMNS.get(protocol)
    if columns is None and class_mask == "data":
        subset = subset_name(source.classes)
        columns = (subset,) if subset else None
    if name is None or not of_release or columns is None:
        return None
    figures = dict(zip(REEVALUATED_COLUMNS, REEVALUATED[name], strict=True))
    fractions = [round(figures[column] / 100, 5) for column in columns]
    return Expected(fractions[0], fractions[1] if len(fractions) > 1 else None)


def differs(expected: Expected, top1: float) -> str | None:
    """Return a warning if the measured accuracy differs by more than rounding, else None."""
    if abs(top1 - expected.top1) <= TOLERANCE:
        return None
    return (
        f"top-1: expected {100 * expected.top1:.2f} % ({ORIGIN}), got {100 * top1:.2f} %: the images, the "
        "preprocessing or the weights are not those of the release."
    )
