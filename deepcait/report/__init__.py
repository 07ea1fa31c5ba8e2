"""A run as one page that needs no network: curves, figures with intervals, confusion, mistakes, how to repeat it."""

from deepcait.report.compare import write_comparison
from deepcait.report.page import write_at_end, write_report

__all__ = ["write_at_end", "write_comparison", "write_report"]
