"""The output of every advantage estimator."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.diagnostics import clip_scale_spread, diagnose, explained_variance
from openrlhf_gagpo.credit.options import EstimatorOptions
from openrlhf_gagpo.credit.scores import kept_rows
from openrlhf_gagpo.credit.sets import Bools, Floats, Ints
from openrlhf_gagpo.errors import EstimatorError

__all__ = ["CreditResult"]


@dataclass(frozen=True, eq=False)
class CreditResult:
    """Credit of N steps, in the order in which the rows of the batch were given; estimators build it with ``of``.

    Arrays hold finite numbers, one per step or, where stated, one per trained token, row after row. None means that the
    estimator does not have the quantity.
    """

    batch: StepBatch
    advantage: Floats
    """One per step; 0 where the step does not train."""
    keep: Bools
    """Whether the step may be trained on."""
    return_: Floats | None = None
    """Return from this step on (the episode score for estimators that compare whole episodes)."""
    value: Floats | None = None
    """The baseline of the return: group state value, group mean or critic's estimate."""
    td_residual: Floats | None = None
    """``r_t + gamma V(s_{t+1}) - V(s_t)``."""
    token_advantage: Floats | None = None
    """One per trained token, used instead of ``advantage``."""
    clip_scale: Floats | None = None
    """Factor above 0 that multiplies both clip bounds of the step's action."""
    value_target: Floats | None = None
    """What a critic should predict at the step."""
    token_value_target: Floats | None = None
    """What a critic should predict at each trained token."""

    @classmethod
    def of(
        cls,
        batch: StepBatch,
        options: EstimatorOptions,
        *,
        advantage: Floats,
        keep: Bools | None = None,
        return_: Floats | None = None,
        value: Floats | None = None,
        td_residual: Floats | None = None,
        token_advantage: Floats | None = None,
        clip_scale: Floats | None = None,
        value_target: Floats | None = None,
        token_value_target: Floats | None = None,
    ) -> CreditResult:
        """Check arrays that are in the batch's order, and put them into the order of the given rows.

        Steps that ``keep`` or the options leave out of training get advantage 0.

        Raises:
            EstimatorError: an array has the wrong length, does not hold numbers or holds one that is not finite.
        """
        rows, tokens = len(batch), int(batch.n_tokens.sum())
        train = kept_rows(batch, options)
        if keep is not None:
            train &= _array("keep", keep, rows, "b")
        credit = np.where(train, _numbers("advantage", advantage, rows), 0.0)
        if token_advantage is not None:
            trained = batch.tokens.expand(train)
            token_advantage = np.where(trained, _numbers("token_advantage", token_advantage, tokens), 0.0)
        if clip_scale is not None and (_numbers("clip_scale", clip_scale, rows) <= 0).any():
            raise EstimatorError("clip_scale holds a number that is not above 0; it multiplies the clip bounds")

        def per_step(name: str, values: Floats | None) -> Floats | None:
            return None if values is None else batch.restore(_numbers(name, values, rows))

        def per_token(name: str, values: Floats | None) -> Floats | None:
            return None if values is None else batch.restore_tokens(_numbers(name, values, tokens))

        return cls(
            batch=batch,
            advantage=batch.restore(credit),
            keep=batch.restore(train),
            return_=per_step("return_", return_),
            value=per_step("value", value),
            td_residual=per_step("td_residual", td_residual),
            token_advantage=per_token("token_advantage", token_advantage),
            clip_scale=per_step("clip_scale", clip_scale),
            value_target=per_step("value_target", value_target),
            token_value_target=per_token("token_value_target", token_value_target),
        )

    @cached_property
    def state_group_size(self) -> Ints:
        """Number of steps of the same group in the same state, including the step itself."""
        return self.batch.restore(self.batch.states.expand(self.batch.states.count))

    @property
    def critic_quality(self) -> dict[str, float]:
        """How much the critic's values predict, see ``credit.diagnostics``; empty without a critic's targets."""
        if self.value_target is not None:
            values, targets = self.batch.required("value"), self.value_target[self.batch.order]
        elif self.token_value_target is not None:
            values, targets = self.batch.restore_tokens(self.batch.required("token_value")), self.token_value_target
        else:
            return {}
        quality = {"explained_variance": explained_variance(targets, values)}
        if self.return_ is not None and self.value is not None:
            quality["return_explained_variance"] = explained_variance(self.return_, self.value)
        return quality

    @cached_property
    def diagnostics(self) -> dict[str, float]:
        """Numbers to log, see ``credit.diagnostics``."""
        order = self.batch.order
        report = diagnose(self.batch, self.advantage[order], self.keep[order])
        return report if self.clip_scale is None else report | clip_scale_spread(self.clip_scale, self.keep)


def _numbers(name: str, values: Floats, expected: int) -> Floats:
    """Return ``values`` as float64 after checking that they are ``expected`` finite numbers."""
    numbers = _array(name, values, expected, "iuf").astype(np.float64, copy=False)
    if not np.isfinite(numbers).all():
        raise EstimatorError(f"{name} holds a number that is not finite; scale the rewards to a moderate range")
    return numbers


def _array(name: str, values: NDArray[Any], expected: int, kinds: str) -> NDArray[Any]:
    array = np.asarray(values)
    if array.dtype.kind not in kinds:
        wanted = "booleans" if kinds == "b" else "numbers"
        found = array.dtype if array.ndim else repr(values)
        raise EstimatorError(f"{name} must be an array of {wanted}, not {found}")
    if array.shape != (expected,):
        raise EstimatorError(f"{name} has shape {array.shape}; it must hold one number for each of {expected} entries")
    return array
