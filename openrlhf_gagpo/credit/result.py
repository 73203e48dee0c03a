"""The output of every advantage estimator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.diagnostics import diagnose
from openrlhf_gagpo.credit.sets import Floats, Ints

__all__ = ["CreditResult"]


@dataclass(frozen=True, eq=False)
class CreditResult:
    """Credit per row, in the order of the batch's rows; arrays of length N, free of NaN.

    Quantities that an estimator does not have are zeros. What not every caller reads is put into row order when first
    asked for; the ``sorted_*`` fields are in the order of the batch's layout.
    """

    batch: StepBatch
    advantage: Floats
    keep: NDArray[np.bool_]
    """False: the row must not be trained on (its advantage is 0)."""
    sorted_return: Floats | None = None
    sorted_value: Callable[[], Floats] | None = None
    sorted_td_residual: Floats | None = None

    @cached_property
    def return_(self) -> Floats:
        """Return from this step on (the episode score for estimators of whole episodes)."""
        return self._restore(self.sorted_return)

    @cached_property
    def value(self) -> Floats:
        """Group state value, or the group baseline that the return is compared with."""
        return self._restore(None if self.sorted_value is None else self.sorted_value())

    @cached_property
    def td_residual(self) -> Floats:
        """``r_t + gamma V(s_{t+1}) - V(s_t)``."""
        return self._restore(self.sorted_td_residual)

    @cached_property
    def state_group_size(self) -> Ints:
        """Rows of the same group in the same state, the row itself included."""
        cells = self.batch.layout.cells
        return self.batch.layout.restore(cells.expand(cells.count))

    @cached_property
    def diagnostics(self) -> dict[str, float]:
        """Numbers to log, see ``credit.diagnostics``."""
        return diagnose(self.batch, self.advantage, self.keep)

    def _restore(self, values: Floats | None) -> Floats:
        return np.zeros(len(self.batch)) if values is None else self.batch.layout.restore(values)

    @classmethod
    def from_sorted(
        cls,
        batch: StepBatch,
        *,
        advantage: Floats,
        return_: Floats | None = None,
        value: Callable[[], Floats] | None = None,
        td_residual: Floats | None = None,
        keep: NDArray[np.bool_] | None = None,
    ) -> CreditResult:
        """Result from arrays in the order of the batch's layout; rows not kept (default: all are) get advantage 0.

        ``value`` is a function because expanding it to rows is work that few callers want.

        Raises ``ValueError`` where the arithmetic overflowed.
        """
        if not np.isfinite(advantage).all():
            raise ValueError("advantages overflowed; scale the rewards to a moderate range")
        if keep is not None:
            advantage = np.where(keep, advantage, 0.0)
        restore = batch.layout.restore
        return cls(
            batch=batch,
            advantage=restore(advantage),
            keep=np.ones(len(batch), dtype=np.bool_) if keep is None else restore(keep),
            sorted_return=return_,
            sorted_value=value,
            sorted_td_residual=td_residual,
        )
