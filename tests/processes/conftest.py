"""Data, recipe and model for the runs, once a session; one finished run that nothing disturbed."""

from __future__ import annotations

import pytest

from tests.processes.harness import finish, finish_pair, make_bench
from tests.processes.nursery import Nursery


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    return make_bench(tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="session")
def nursery():
    server = Nursery()
    yield server
    server.close()


@pytest.fixture(scope="session")
def straight_run(bench, tmp_path_factory):
    """A run of one process that went through undisturbed, started as a user does."""
    folder = tmp_path_factory.mktemp("straight")
    finish(bench.command(folder / "run"), folder / "log")
    return folder / "run"


@pytest.fixture(scope="session")
def straight_pair(bench, nursery, tmp_path_factory):
    """A run of two processes that went through undisturbed."""
    folder = tmp_path_factory.mktemp("straight_pair")
    finish_pair(bench.command(folder / "run"), folder / "log", nursery)
    return folder / "run"
