"""What training starts from: which rows of the head come along."""

from __future__ import annotations

import torch

from deepcait.training.recipe import load_recipe
from deepcait.training.start import start_model
from deepcait.weights import resolve


def test_rows_of_classes_with_equal_names_are_kept_on_request(caplog):
    caplog.set_level("INFO", logger="deepcait")
    nano = resolve("builtin:nano")
    classes = ["ship", "owl", "cat"]
    for wanted in (False, True):
        recipe = load_recipe("finetune", ["model=builtin:nano", f"keep_rows={str(wanted).lower()}"])
        found = start_model(recipe, classes)
        assert (found.classes, found.model.num_classes) == (classes, 3)
        for row, name in enumerate(classes):
            stored = nano.classes.index(name) if name in nano.classes else None
            same = stored is not None and torch.equal(found.model.head.weight[row], nano.model.head.weight[stored])
            assert same == (wanted and name != "owl")
    lines = caplog.messages
    assert [line for line in lines if "rows of 2 classes copied by name" in line] == [lines[-1]]
