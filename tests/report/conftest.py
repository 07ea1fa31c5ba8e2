"""Two small finished runs on real photographs: 24 training and 8 validation pictures of three classes of CIFAR-10."""

from __future__ import annotations

import pytest

from deepcait.cli.main import main
from tests.processes.harness import make_bench


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    return make_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def run(bench):
    """A finished run, with the report that the training wrote."""
    folder = bench.data.parent / "first"
    assert main(bench.train(folder)) == 0
    return folder


@pytest.fixture(scope="session")
def other_run(bench):
    """The same with another seed and another rate."""
    folder = bench.data.parent / "second"
    assert main(bench.train(folder, "--set", "seed=3", "optimizer.lr=3.0e-3", "epochs=3")) == 0
    return folder
