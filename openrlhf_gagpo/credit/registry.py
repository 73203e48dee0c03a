"""Names of the advantage estimators. A new one is one file in ``credit/estimators`` that calls ``register``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.errors import EstimatorError

__all__ = ["Estimator", "get", "names", "register"]


@dataclass(frozen=True)
class Estimator:
    """A registered estimator; call it with a batch and, if the defaults will not do, its options."""

    name: str
    compute: Callable[[StepBatch, Any], CreditResult]
    options_cls: type[EstimatorOptions]
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Run-level flags this algorithm sets unless the user sets them (flag name without dashes -> value)."""

    def __call__(self, batch: StepBatch, options: EstimatorOptions | None = None) -> CreditResult:
        """Credit for every row of ``batch``. Raises ``EstimatorError`` for options of another estimator."""
        options = self.options_cls() if options is None else options
        if not isinstance(options, self.options_cls):
            raise EstimatorError(
                f"estimator {self.name} takes {self.options_cls.__name__}, not {type(options).__name__}"
            )
        return self.compute(batch, options)


_ESTIMATORS: dict[str, Estimator] = {}


def register(
    name: str, options_cls: type[EstimatorOptions], defaults: Mapping[str, object] | None = None
) -> Callable[[Callable[[StepBatch, Any], CreditResult]], Callable[[StepBatch, Any], CreditResult]]:
    """Decorator that makes a pure function of batch and options available as ``name``. Raises on a taken name."""

    def add(compute: Callable[[StepBatch, Any], CreditResult]) -> Callable[[StepBatch, Any], CreditResult]:
        if name in _ESTIMATORS:
            raise EstimatorError(f"an advantage estimator named {name!r} exists already; choose another name")
        _ESTIMATORS[name] = Estimator(name, compute, options_cls, dict(defaults or {}))
        return compute

    return add


def get(name: str) -> Estimator:
    """The estimator called ``name``. Raises ``EstimatorError`` listing the known ones."""
    if name not in _ESTIMATORS:
        raise EstimatorError(f"unknown advantage estimator {name!r}; choose one of {', '.join(names())}")
    return _ESTIMATORS[name]


def names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_ESTIMATORS))
