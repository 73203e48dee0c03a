"""Information gain from the log-probabilities of golden answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from openrlhf_gagpo.credit.gains import GainOptions
from openrlhf_gagpo.metrics import is_documented
from openrlhf_gagpo.rollout.types import AnswerTokens, Episode, Step
from openrlhf_gagpo.training.information_gain import Probes, gain_metrics


def _episode(name: str, contexts: Sequence[list[int]], answers: Sequence[AnswerTokens], *, truncated: bool) -> Episode:
    """An episode with these prompts, the last of which is nobody's turn if it was truncated."""
    prompts = contexts[:-1] if truncated else contexts
    steps = [
        Step(index, f"s{index}", "s", "", "", 0.0, False, False, True, True, list(prompt), [1], [-0.5], "")
        for index, prompt in enumerate(prompts)
    ]
    episode = Episode("task", "g", name, 0, steps, "truncated" if truncated else "terminated")
    episode.answers = list(answers)
    episode.final_prompt_ids = list(contexts[-1]) if truncated else []
    return episode


def _log_probs(probes: Probes) -> np.ndarray:
    """A model for which a token is the more likely, the longer the prompt and the smaller the token."""
    return np.array([-token / len(row.prompt_ids) for row in probes.rows for token in row.response_ids], dtype=float)


ANSWER = AnswerTokens([50, 4, 6], 1)


def test_a_gain_is_the_difference_of_means_over_the_answers_own_tokens() -> None:
    probes = Probes.of([_episode("t", [[9], [9, 9]], [ANSWER], truncated=False)])
    gains = probes.gains(_log_probs(probes), GainOptions())
    # Means of (4, 6) over prompts of 1 and 2 tokens; 50 only leads to the answer. The answering step has no gain.
    assert gains[0] == pytest.approx(-2.5 - -5.0)
    assert math.isnan(gains[1])
    prob = probes.gains(_log_probs(probes), GainOptions(ig_type="prob"))
    assert prob[0] == pytest.approx(math.exp(-2.5) - math.exp(-5.0))


def test_gains_add_up_to_what_the_episode_gained() -> None:
    contexts = [[9] * count for count in (1, 2, 4, 5)]
    probes = Probes.of([_episode("t", contexts, [ANSWER], truncated=True)])
    gains = probes.gains(_log_probs(probes), GainOptions())
    assert gains.shape == (3,)
    assert gains[1:].sum() == pytest.approx(-1.0 - -2.5)


def test_of_several_answers_the_most_likely_counts_after_each_prompt() -> None:
    other = AnswerTokens([3], 0)
    probes = Probes.of([_episode("t", [[9], [9, 9], [9] * 3], [ANSWER, other], truncated=True)])
    assert len(probes.rows) == 6
    gains = probes.gains(_log_probs(probes), GainOptions(ig_answers="max"))
    np.testing.assert_allclose(gains, [1.5, 0.5])


def test_episodes_without_answers_or_steps_leave_the_others_in_place() -> None:
    episodes = [
        _episode("a", [[9], [9, 9]], [], truncated=False),
        _episode("b", [[9], [9, 9]], [ANSWER], truncated=True),
        _episode("c", [], [ANSWER], truncated=False),
        _episode("d", [[9, 9], [9] * 4], [ANSWER], truncated=False),
    ]
    probes = Probes.of(episodes)
    gains = probes.gains(_log_probs(probes), GainOptions())
    np.testing.assert_allclose(gains, [np.nan, np.nan, 2.5, 1.25, np.nan])
    metrics = gain_metrics(gains, np.array([0, 1, 0, 0, 1]))
    assert metrics == {
        "credit/ig_share": 0.4,
        "credit/ig_mean": pytest.approx(1.875),
        "credit/ig_std": pytest.approx(0.625),
        "credit/ig_positive_share": 1.0,
        "credit/ig_mean/0": pytest.approx(1.875),
    }
    assert all(is_documented(name) for name in metrics)
    none = Probes.of(episodes[:1])
    assert np.isnan(none.gains(np.zeros(0), GainOptions())).all()
    assert gain_metrics(np.full(2, np.nan), np.arange(2)) == {"credit/ig_share": 0.0}
