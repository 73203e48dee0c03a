"""What the rules read: the metrics of a run so far and the settings that decide what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from openrlhf_gagpo.credit import options as credit_options
from openrlhf_gagpo.credit import registry as estimators
from openrlhf_gagpo.stats import mean
from openrlhf_gagpo.training.settings import LoopSettings

__all__ = ["Advice", "Facts", "History", "Row"]


@dataclass(frozen=True)
class Advice:
    """One thing that a user should know about a run."""

    kind: str
    """Name of what was found; a run says each kind once."""
    seen: str
    """What the metrics show, with numbers."""
    meaning: str
    remedy: str
    """What to do, with the flag that does it."""

    @property
    def text(self) -> str:
        """One sentence."""
        return f"{self.seen}: {self.meaning}; {self.remedy}."


@dataclass(frozen=True)
class Row:
    """The metrics of one iteration or evaluation."""

    iteration: int
    values: Mapping[str, float]
    """Finite numbers only."""
    not_finite: frozenset[str] = frozenset()
    """Names of the metrics that were logged without a finite value."""
    labels: frozenset[tuple[str, str]] = frozenset()
    """The text columns, such as the split that was evaluated; rows with other labels cannot be compared."""

    @classmethod
    def of(cls, logged: Mapping[str, object]) -> Row:
        """Read a row of ``metrics.jsonl`` or ``eval.jsonl``, whose text columns are its labels."""
        numbers = {name: value for name, value in logged.items() if isinstance(value, int | float)}
        values = {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
        missing = {name for name, value in logged.items() if value is None or (name in numbers and name not in values)}
        labels = frozenset((name, value) for name, value in logged.items() if isinstance(value, str))
        return cls(int(values["iteration"]), values, frozenset(missing), labels)

    def __getitem__(self, name: str) -> float:
        """Return a metric, 0 if the row lacks it (for counts)."""
        return self.values.get(name, 0.0)


@dataclass(frozen=True)
class History:
    """All iterations and evaluations of a run so far, oldest first."""

    iterations: Sequence[Row]
    evaluations: Sequence[Row] = field(default_factory=tuple)

    @classmethod
    def of(cls, metrics: Sequence[Mapping[str, object]], evals: Sequence[Mapping[str, object]] = ()) -> History:
        """Read the rows of a run folder."""
        return cls([Row.of(row) for row in metrics], [Row.of(row) for row in evals])

    @property
    def last(self) -> Row | None:
        """The latest iteration."""
        return self.iterations[-1] if self.iterations else None

    def recent(self, name: str, window: int) -> float | None:
        """Return the mean of a metric over the last ``window`` iterations; None unless each of them has it."""
        rows = self.iterations[-window:]
        if len(rows) < window or any(name not in row.values for row in rows):
            return None
        return mean(row.values[name] for row in rows)


@dataclass(frozen=True)
class Facts:
    """Settings of a run that decide what its metrics mean."""

    estimator: str
    lone_states: credit_options.LoneStates | None
    """What the estimator does without shared states; None if it does not look for them."""
    compares: bool
    """Whether the estimator compares the episodes of a group with each other, and with nothing else."""
    penalises: bool
    """Whether malformed or inadmissible steps cost anything."""
    group_size: int
    critic_warmup: int = 0
    stateless: tuple[str, ...] = ()
    """Estimators that need neither shared states nor a model's columns."""

    @classmethod
    def of(cls, settings: LoopSettings) -> Facts:
        """Collect the facts from the settings of the iteration loop."""
        estimator, options = estimators.get(settings.estimator), settings.estimator_options
        costs = options.invalid_penalty > 0 or options.inadmissible_penalty > 0
        return cls(
            estimator=settings.estimator,
            lone_states=options.lone_states,
            compares=estimator.group_min > 1 and not estimator.needs,
            penalises=costs and options.invalid_penalty_mode != "none",
            group_size=settings.group_size,
            critic_warmup=settings.critic_warmup,
            stateless=tuple(
                name
                for name, other in sorted(estimators.snapshot().items())
                if not other.needs and other.options_cls().lone_states is None
            ),
        )
