"""The truth beside the credit of a run: values of the policy that played, and how close each estimator comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from openrlhf_gagpo.comparison.compute import Credit
from openrlhf_gagpo.comparison.steps import Source
from openrlhf_gagpo.config.resolve import Config, resolve
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.truth.by_play import truths_by_play
from openrlhf_gagpo.truth.by_rules import truths_by_rules
from openrlhf_gagpo.truth.continuations import Budget
from openrlhf_gagpo.truth.scores import Findings, Score, Truth, score, state_group_sizes

__all__ = ["Verdict", "judge"]

_VALUE = "value"


@dataclass(frozen=True)
class Verdict:
    """The truth at the steps of a source, and every estimator's distance to it."""

    truths: Sequence[Truth]
    """One per discount factor."""
    scores: Sequence[Score]
    note: str
    """How exact the truth is, as a sentence."""

    def lines(self, source: Source) -> list[dict[str, object]]:
        """Return JSON objects: the truth at every step where it is known, per discount factor, then one per score."""
        columns = ("value", "advantage", "value_error", "advantage_error")
        steps = [
            {**identity, "truth": "step", "gamma": truth.gamma}
            | {name: float(getattr(truth, name)[row]) for name in columns}
            for truth in self.truths
            for row, identity in enumerate(source.identity)
            if truth.known[row]
        ]
        return [*steps, *({"truth": "score", **asdict(found)} for found in self.scores)]


def judge(
    path: Path,
    source: Source,
    credits: Sequence[Credit],
    *,
    gammas: Sequence[float],
    model: Path | None,
    budget: Budget | None = None,
) -> Verdict:
    """Find the truth for the steps of a run's iterations, and compare each estimator's advantages with it.

    Args:
        path: the run folder that ``source`` was read from.
        gammas: discount factors to find the truth for.
        model: folder of the weights that played the iteration; None finds them in the run.
        budget: how much to play for an estimated truth; None computes the exact one.

    Raises:
        ConfigError: the run has no truth of this kind, or the weights are not those that played.
        RunError: the environment failed.
    """
    run = RunFolder.open(path)
    config = resolve(["--config", str(run.config_path)])
    _check(config, source, model)
    if budget is None:
        found = truths_by_rules(run, config, source, credits, gammas, model)
    else:
        found = truths_by_play(run, config, source, credits, gammas, model, budget)
    return Verdict(found.truths, _scores(source, credits, found), found.note)


def _check(config: Config, source: Source, model: Path | None) -> None:
    if config.rollout.top_p < 1:
        raise ConfigError(
            "--truth cannot tell which weights played this run: --rollout.top_p is below 1, so that probabilities are "
            "not the model's; train with --rollout.top_p 1"
        )
    if model is not None and len(source.parts) > 1:
        raise ConfigError("--model names the weights of one iteration; choose that one with --iteration")


def _scores(source: Source, credits: Sequence[Credit], found: Findings) -> list[Score]:
    sizes = np.concatenate([state_group_sizes(part.columns["group"], part.columns["state"]) for part in source.parts])
    scores = []
    for number, truth in enumerate(found.truths):
        for place, credit in enumerate(credits):
            scores.append(
                score(
                    credit.estimator,
                    truth.gamma,
                    credit.values["advantage"],
                    truth.advantage,
                    truth.smallest_certain,
                    credit.keep & truth.known,
                    sizes,
                    scaled=True,
                    cosine=found.cosines[number][place] if found.cosines else None,
                )
            )
        if all(_VALUE in part.columns for part in source.parts):
            predicted = np.array([value for part in source.parts for value in part.columns[_VALUE]], dtype=np.float64)
            scores.append(
                score(
                    "critic's value",
                    truth.gamma,
                    predicted,
                    truth.value,
                    truth.margin * truth.value_error,
                    truth.known,
                    sizes,
                    scaled=False,
                )
            )
    return scores
