"""The optimizer steps of a model: a step whose gradient is not finite is skipped, and too many in a row end the run.

Backends use it for the policy and for the critic. Ranks that train one model together have to find the same of every
step, so a backend decides from what all of them share.
"""

from __future__ import annotations

from collections.abc import Mapping

from openrlhf_gagpo.errors import DivergenceError
from openrlhf_gagpo.training.objective import merge_sums

__all__ = ["StepLog"]


class StepLog:
    """What came of one model's optimizer steps; ``begin`` forgets an iteration, but not the steps skipped in a row."""

    def __init__(self, model: str, flags: str, max_bad: int) -> None:
        """Begin the first iteration.

        Args:
            model: what is trained, for messages.
            flags: section of its flags, for messages.
            max_bad: skipped steps in a row, also over several iterations, that end the run; 0 for never.
        """
        self.model = model
        self.flags = flags
        self.max_bad = max_bad
        self._bad_in_a_row = 0
        self.begin()

    def begin(self) -> None:
        """Begin an iteration."""
        self.totals: dict[str, float] = {}
        self.norms: list[float] = []
        self._skipped = 0

    @property
    def count(self) -> int:
        """Steps that were taken in this iteration."""
        return len(self.norms)

    def end_step(self, sums: Mapping[str, float], norm: float | None) -> None:
        """Count a step.

        Args:
            sums: those of its micro-batches (see ``objective.step_loss``), which are left out if it was skipped.
            norm: the gradient's norm before clipping; None if the step was skipped.

        Raises:
            DivergenceError: it is one skipped step too many.
        """
        if norm is not None:
            merge_sums(self.totals, sums)
            self.norms.append(norm)
            self._bad_in_a_row = 0
            return
        self._skipped += 1
        self._bad_in_a_row += 1
        if self._bad_in_a_row == self.max_bad:
            raise DivergenceError(
                f"the gradient of the {self.model} was not finite in {self.max_bad} optimizer steps in a row, which "
                f"were skipped; start another run with a lower --{self.flags}.adam.lr or --{self.flags}.max_norm, or "
                "continue this one from its last checkpoint with a higher --train.max_bad_steps (0: never stop)"
            )

    def metrics(self) -> dict[str, float]:
        """Return ``skipped_steps``, and ``grad_norm``, the mean over the steps that were taken, if there were any."""
        metrics = {"skipped_steps": float(self._skipped)}
        if self.norms:
            metrics["grad_norm"] = sum(self.norms) / len(self.norms)
        return metrics
