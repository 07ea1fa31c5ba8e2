"""What a process learns from its surroundings: its place among others, and the device it computes on."""

from __future__ import annotations

import pytest
import torch

from deepcait.errors import ConfigError
from deepcait.runtime.device import _groups, choose_device, sum_dtype, to_host
from deepcait.runtime.processes import Processes, join_processes, num_processes

SLURM = ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")
NAMES = (*SLURM, "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_without_torchrun_it_is_alone():
    assert join_processes() == Processes(0, 1, 0)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"RANK": "0"}, "WORLD_SIZE, MASTER_PORT, MASTER_ADDR: torchrun's environment variables"),
        ({"TORCHELASTIC_RUN_ID": "none"}, "RANK, WORLD_SIZE, MASTER_PORT, MASTER_ADDR: "),
        ({"RANK": "x", "WORLD_SIZE": "1", "MASTER_PORT": "1", "MASTER_ADDR": "localhost"}, "RANK: "),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "1"}, "MASTER_ADDR: "),
    ],
)
def test_a_part_of_torchruns_variables_is_one_paragraph(monkeypatch, given, named):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        join_processes()
    assert caught.value.problem.startswith(named)
    assert "torchrun" in caught.value.remedy


@pytest.mark.parametrize(
    ("given", "raises"),
    [
        ({"SLURM_NTASKS": "2"}, True),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "2(x1)"}, False),
    ],
)
def test_srun_without_torchrun_is_recognised(monkeypatch, given, raises):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    if not raises:
        assert join_processes() == Processes()
        return
    with pytest.raises(ConfigError, match="SLURM runs 2 tasks") as caught:
        join_processes()
    assert "srun --ntasks-per-node=1 torchrun" in caught.value.remedy
    assert num_processes() == 1


def test_devices_that_compute_and_others():
    assert choose_device("cpu") == torch.device("cpu")
    for wanted in ("meta", "no such device", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device '{wanted}' is not available"):
            choose_device(wanted)


def test_a_gpu_is_chosen_by_the_number_of_the_process_on_its_machine(monkeypatch):
    """Not by its rank among all: the second machine's first process has the first GPU there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.ones(1))
    for name, value in (("RANK", "9"), ("WORLD_SIZE", "16"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    monkeypatch.delenv("RANK")
    assert choose_device("cuda") == torch.device("cuda:0")


@pytest.mark.parametrize("wanted", ["mps", "cuda:99", "xpu", "hpu", "tpu", "meta"])
def test_a_device_that_is_absent_is_one_sentence(wanted):
    if wanted == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(ConfigError) as caught:
        choose_device(wanted)
    problem = caught.value.problem
    assert problem.startswith(f"device '{wanted}' is not available: ")
    assert problem.endswith(".")
    assert "\n" not in problem
    assert len(problem) < 160
    assert "[" not in problem


def test_sums_are_in_float64_but_on_a_device_that_has_none():
    assert sum_dtype(torch.device("cpu")) == sum_dtype(torch.device("cuda")) == torch.float64
    assert sum_dtype(torch.device("mps")) == torch.float32


def test_tensors_of_a_cpu_are_not_copied():
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(6).view(2, 3).t()}
    host = to_host(tensors)
    assert list(host) == ["a", "b"]
    assert host["a"].data_ptr() == tensors["a"].data_ptr()
    assert host["b"].is_contiguous()
    assert torch.equal(host["b"], tensors["b"])


def test_what_one_copy_takes_is_of_one_type_and_limited(monkeypatch):
    monkeypatch.setattr("deepcait.runtime.device._STAGE_BYTES", 16)
    floats, ints = torch.zeros(2), torch.zeros(1, dtype=torch.int64)
    given = {"a": floats, "b": ints, "c": floats, "d": torch.zeros(9), "e": ints, "f": floats}
    assert _groups(given) == [["a", "c"], ["b", "e"], ["d"], ["f"]]
