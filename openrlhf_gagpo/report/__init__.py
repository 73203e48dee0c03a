"""Reading a finished (or running, or broken) run: the HTML report, learning curves."""

from __future__ import annotations

from openrlhf_gagpo.report.build import build_report
from openrlhf_gagpo.report.curve import plot_curve

__all__ = ["build_report", "plot_curve"]
