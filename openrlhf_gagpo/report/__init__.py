"""Reading a finished (or running, or broken) run: the HTML report, learning curves, recorded episodes.

Importing this package imports nothing else: drawing needs matplotlib, and a command that prints one episode does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openrlhf_gagpo.report.build import build_report
    from openrlhf_gagpo.report.curve import plot_curve

__all__ = ["build_report", "plot_curve"]


def __getattr__(name: str) -> Any:
    """Import a function of this package when it is first asked for."""
    from importlib import import_module

    homes = {"build_report": "build", "plot_curve": "curve"}
    if name not in homes:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{homes[name]}"), name)
