"""What a process learns from its surroundings: its place among others, and the device it computes on."""

from __future__ import annotations

import pytest
import torch

from deepcait.errors import ConfigError
from deepcait.runtime.device import choose_device
from deepcait.runtime.processes import Processes, join_processes

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_without_torchrun_it_is_alone():
    assert join_processes() == Processes(0, 1, 0)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"RANK": "0"}, "WORLD_SIZE, MASTER_PORT, MASTER_ADDR: expected torchrun's variables"),
        ({"TORCHELASTIC_RUN_ID": "none"}, "RANK, WORLD_SIZE, MASTER_PORT, MASTER_ADDR: expected"),
        ({"RANK": "x", "WORLD_SIZE": "1", "MASTER_PORT": "1", "MASTER_ADDR": "localhost"}, "RANK: expected"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "1"}, "MASTER_ADDR: expected"),
    ],
)
def test_a_part_of_torchruns_variables_is_one_paragraph(monkeypatch, given, named):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        join_processes()
    assert caught.value.problem.startswith(named)
    assert "torchrun" in caught.value.remedy


def test_devices_that_compute_and_others():
    assert choose_device("cpu") == torch.device("cpu")
    for wanted in ("meta", "no such device", "cuda:99"):
        with pytest.raises(ConfigError, match=f"expected one that is here, got '{wanted}'"):
            choose_device(wanted)
