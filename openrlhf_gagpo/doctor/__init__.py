"""Whether this machine and installation can carry a run, and what to do where they cannot (``gagpo doctor``)."""

from __future__ import annotations

from openrlhf_gagpo.doctor.examine import Request, examine
from openrlhf_gagpo.doctor.finding import Finding, Level, worst

__all__ = ["Finding", "Level", "Request", "examine", "worst"]
