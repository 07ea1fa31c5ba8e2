"""Reports of runs as self-contained HTML pages: curves, metrics with intervals, confusion, errors, commands."""

from deepcait.report.compare import write_comparison
from deepcait.report.page import write_at_end, write_report
from deepcait.report.several import compare_runs, write_several

__all__ = ["compare_runs", "write_at_end", "write_comparison", "write_report", "write_several"]
