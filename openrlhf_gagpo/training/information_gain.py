"""Information gain: how much more likely a step makes the golden answer (A2TGPO, arXiv 2605.06200; IGPO).

With l(x) the mean log-probability of the answer's tokens after the prompt x, in the words in which the policy would
give it, the gain of step t is ``l(x_{t+1}) - l(x_t)``. The gains of an episode from t on add up to ``l(end) - l(x_t)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.credit.gains import GainOptions
from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.training.rows import TokenRow

__all__ = ["Probes", "gain_metrics"]

_FIRST_STEPS = 4
"""Steps of an episode whose gains are logged apart."""


@dataclass(frozen=True)
class Probes:
    """The prompts of an iteration, each followed by a golden answer of its task, for a model to read."""

    rows: list[TokenRow]
    """One per episode, prompt and answer, in this order; "response" means the answer with the words before it."""
    starts: list[int]
    """Per row: the answer's first token in its response."""
    shapes: list[tuple[int, int, int]]
    """Per episode: steps, prompts and answers."""

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> Probes:
        """Make the probes of ``episodes``, whose golden answers were encoded as they were played.

        An episode without answers has none. The prompt after the last step exists where the episode was truncated.
        """
        probes = cls([], [], [])
        for episode in episodes:
            contexts = [step.prompt_ids for step in episode.steps]
            if episode.final_prompt_ids:
                contexts.append(episode.final_prompt_ids)
            probes.shapes.append((len(episode.steps), len(contexts), len(episode.answers)))
            for context in contexts:
                for answer in episode.answers:
                    probes.rows.append(TokenRow(context, answer.ids, []))
                    probes.starts.append(answer.start)
        return probes

    def gains(self, log_probs: NDArray[np.float64], options: GainOptions) -> NDArray[np.float64]:
        """Return the gain of every step, in the order of episodes and of the steps in each; NaN where there is none.

        A step has none if nothing follows it, or if its task has no answers. With several answers, that which is most
        likely after a prompt counts.

        Args:
            log_probs: of the response tokens of ``rows``, row after row.
        """
        ends = np.cumsum([len(row.response_ids) for row in self.rows], dtype=np.int64)
        values = np.split(log_probs, ends[:-1]) if self.rows else []
        means = np.array([part[start:].mean() for part, start in zip(values, self.starts, strict=True)])
        columns = []
        first = 0
        for steps, contexts, answers in self.shapes:
            gain = np.full(steps, np.nan)
            if answers:
                count = contexts * answers
                likely = means[first : first + count].reshape(contexts, answers).max(axis=1)
                first += count
                gain[: contexts - 1] = np.diff(np.exp(likely) if options.ig_type == "prob" else likely)
            columns.append(gain)
        return np.concatenate(columns) if columns else np.zeros(0)


def gain_metrics(gains: NDArray[np.float64], step: NDArray[np.int64]) -> dict[str, float]:
    """Return ``credit/ig_*``: which steps have a gain, and location, spread and sign of the gains, also by step."""
    measured = ~np.isnan(gains)
    if not measured.any():
        return {"credit/ig_share": 0.0}
    values = gains[measured]
    metrics = {
        "credit/ig_share": float(measured.mean()),
        "credit/ig_mean": float(values.mean()),
        "credit/ig_std": float(values.std()),
        "credit/ig_positive_share": float(np.mean(values > 0)),
    }
    for index in range(_FIRST_STEPS):
        if (here := measured & (step == index)).any():
            metrics[f"credit/ig_mean/{index}"] = float(gains[here].mean())
    return metrics
