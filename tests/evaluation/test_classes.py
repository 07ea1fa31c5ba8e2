"""Property: how the classes of data find those of a model, and what is said of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from deepcait.errors import DataError
from deepcait.evaluation.classes import class_names, describe_mapping, map_classes
from deepcait.weights.imagenet import wnids


def data(*classes: str, labels: tuple[int | None, ...] = (0, 0, 1, None)) -> SimpleNamespace:
    return SimpleNamespace(classes=list(classes), labels=list(labels))


@pytest.mark.parametrize(
    ("classes", "of_model", "said"),
    [
        (("cat", "dog"), ["dog", "cat", "owl"], "2 of the model's 3 classes, by name"),
        (("cat", "dog"), None, "2 classes, in the order of the data (the model has no names)"),
        (("3", "7"), ["dog", "cat"], "2 of the model's classes, the integers of the data are class indices"),
        (("3", "7"), None, "2 of the model's classes, the integers of the data are class indices"),
        # A model whose classes are called by numbers: then numbers are names.
        (("3", "7"), ["7", "3"], "2 of the model's 2 classes, by name"),
    ],
)
def test_the_sentence_says_how_classes_are_found(classes, of_model, said):
    assert describe_mapping(data(*classes), of_model) == said


def test_an_error_names_five_classes_and_counts_the_others():
    names = [f"class {letter}" for letter in "abcdefg"]
    with pytest.raises(DataError) as caught:
        map_classes(data("cat", "dog"), names, 7)
    assert "(class a, class b, class c, class d, class e and 2 more)" in caught.value.problem
    assert "unknown class 'cat', 'dog'" in caught.value.problem
    with pytest.raises(DataError, match=r"\(class a, class b, class c, class d, class e\)"):
        map_classes(data("cat", "dog"), names[:5], 5)


def test_a_name_that_two_classes_of_the_model_have_is_not_taken_for_the_last_of_them():
    with pytest.raises(DataError, match="several classes with the same name: crane"):
        map_classes(data("crane", "dog"), ["crane", "dog", "crane"], 3)
    assert map_classes(data("dog", "owl"), ["crane", "dog", "crane", "owl"], 4) == [1, 3]


def test_an_error_gives_the_range_of_a_model_without_names():
    with pytest.raises(DataError, match="expected class indices 0 to 2, got 3"):
        map_classes(data("1", "3"), None, 3)


def test_a_model_of_imagenet_called_by_integers_is_measured_by_wnids():
    """As one trained from scratch on shards of ImageNet is; other names stay what they are."""
    integers = [str(index) for index in range(1000)]
    some = data(wnids()[7], wnids()[3])
    assert class_names(some, integers, 1000) == class_names(some, None, 1000) == wnids()
    assert map_classes(some, class_names(some, integers, 1000), 1000) == [7, 3]
    assert class_names(data("7", "3"), integers, 1000) == integers
    assert class_names(data("cat", "dog"), None, 1000) is None
    assert class_names(some, integers[:2], 2) == ["0", "1"]
    assert class_names(some, wnids()[::-1], 1000) == wnids()[::-1]


def test_a_class_without_images_needs_no_class_of_the_model():
    assert map_classes(data("cat", "dog", "owl"), ["dog", "cat"], 2) == [1, 0, -1]
    assert map_classes(data("0", "1", "7"), None, 2) == [0, 1, -1]
