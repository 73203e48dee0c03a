"""Reading a finished (or running, or broken) run: the HTML report, learning curves, success intervals."""

from __future__ import annotations

from openrlhf_gagpo.report.build import build_report
from openrlhf_gagpo.report.curve import plot_curve
from openrlhf_gagpo.report.stats import CategorySuccess, success_by_category, wilson_interval

__all__ = ["CategorySuccess", "build_report", "plot_curve", "success_by_category", "wilson_interval"]
