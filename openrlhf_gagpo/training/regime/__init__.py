"""Signs that a run can learn nothing or learns wrongly, read from its metrics, and the options that help."""

from __future__ import annotations

from openrlhf_gagpo.training.regime.history import Advice, Facts, History
from openrlhf_gagpo.training.regime.rules import RULES, advise
from openrlhf_gagpo.training.regime.watch import Watch

__all__ = ["RULES", "Advice", "Facts", "History", "Watch", "advise"]
