"""Metrics of a run as a pandas table."""

from __future__ import annotations

import pytest

import deepcait

pandas = pytest.importorskip("pandas")


def test_metrics_as_a_table(tmp_path):
    settings = {"data": {"limit": 20, "val_limit": 20, "num_workers": 0}, "epochs": 1, "global_batch_size": 20}
    run = deepcait.train("builtin:demo", tmp_path / "run", model="builtin:nano", recipe="demo", settings=settings)
    table = run.metrics.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == len(run.metrics)
    assert table[table.kind == "eval"].top1.iloc[-1] == run.best["top1"]
