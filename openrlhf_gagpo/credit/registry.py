"""Names of the advantage estimators. A file in ``credit/estimators`` or a plugin registers a new one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np

from openrlhf_gagpo.credit.batch import MODEL_COLUMNS, StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.errors import EstimatorError
from openrlhf_gagpo.registry import Registry

__all__ = ["Estimator", "get", "names", "register", "restore", "snapshot"]

Compute = TypeVar("Compute", bound=Callable[[StepBatch, Any], CreditResult])


@dataclass(frozen=True)
class Estimator:
    """A registered estimator; call it with a batch and, unless the defaults fit, its options."""

    name: str
    compute: Callable[[StepBatch, Any], CreditResult]
    options_cls: type[EstimatorOptions]
    presets: Mapping[str, object] = field(default_factory=dict)
    """Run-level flags that this algorithm sets unless the user sets them (flag name without dashes -> value)."""
    needs: frozenset[str] = frozenset()
    """Columns of the batch that a model has to compute first, a subset of ``MODEL_COLUMNS``."""
    group_min: int = 2
    """Smallest number of trajectories in a group for which credit is meaningful."""

    def __call__(self, batch: StepBatch, options: EstimatorOptions | None = None) -> CreditResult:
        """Compute credit for every row of ``batch``.

        Raises:
            EstimatorError: the options belong to another estimator, the batch lacks a needed column, or the
                estimator returned something other than credit.
        """
        options = self.options_cls() if options is None else options
        if not isinstance(options, self.options_cls):
            raise EstimatorError(
                f"estimator {self.name} takes {self.options_cls.__name__}, not {type(options).__name__}"
            )
        try:
            for column in sorted(self.needs):
                batch.required(column)
            with np.errstate(over="ignore", invalid="ignore"):  # the check of the result refuses infinite values
                return self._checked(self.compute(batch, options))
        except EstimatorError as error:
            raise EstimatorError(f"advantage estimator {self.name}: {error}") from error

    def _checked(self, result: CreditResult) -> CreditResult:
        if not isinstance(result, CreditResult):
            raise EstimatorError(f"it returned a {type(result).__name__}; return CreditResult.of(...)")
        targets = (result.value_target, result.token_value_target)
        if "value" not in self.needs and any(target is not None for target in targets):
            raise EstimatorError('it returned targets for a critic without one; register it with needs={"value"}')
        return result


_ESTIMATORS: Registry[Estimator] = Registry("advantage estimator", EstimatorError)
get, names, snapshot, restore = _ESTIMATORS.get, _ESTIMATORS.names, _ESTIMATORS.snapshot, _ESTIMATORS.restore


def register(
    name: str,
    options_cls: type[EstimatorOptions],
    presets: Mapping[str, object] | None = None,
    *,
    needs: Collection[str] = (),
    group_min: int = 2,
) -> Callable[[Compute], Compute]:
    """Make a pure function of batch and options available as ``name``; use it as a decorator.

    Args:
        presets: run-level flags that choosing the estimator sets, unless the user sets them.
        needs: columns that a model has to compute before credit, a subset of ``MODEL_COLUMNS``.
        group_min: trajectories that a group must have to be trained on; 1 if they are not compared with each other.

    Raises:
        EstimatorError: the name is taken, a needed column does not exist, or another estimator describes an option of
            the same name differently.
    """
    if isinstance(needs, str) or not set(needs) <= set(MODEL_COLUMNS):
        raise EstimatorError(
            f"estimator {name!r} needs {needs!r}; a model can compute the columns {', '.join(MODEL_COLUMNS)}"
        )
    if group_min < 1:
        raise EstimatorError(f"estimator {name!r} has group_min {group_min}; a group has at least 1 trajectory")
    _check_options(name, options_cls)

    def add(compute: Compute) -> Compute:
        _ESTIMATORS.add(name, Estimator(name, compute, options_cls, dict(presets or {}), frozenset(needs), group_min))
        return compute

    return add


def _check_options(name: str, options_cls: type[EstimatorOptions]) -> None:
    """Refuse an option that shares its name, and so its flag, with an option that means something else."""
    known = {item.name: (other.name, item) for other in snapshot().values() for item in fields(other.options_cls)}
    for item in fields(options_cls):
        owner, other_item = known.get(item.name, (name, item))
        if item.metadata != other_item.metadata:
            raise EstimatorError(
                f"option {item.name} of estimator {name!r} is described differently than that of {owner}; "
                "give it another name, or the shared description"
            )
