"""GraphGPO: steps from one state compared by how near to success they led in the graph of the group's transitions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.graph import distances, next_states, succeeded
from openrlhf_gagpo.credit.options import EstimatorOptions, LoneStates, option
from openrlhf_gagpo.credit.penalty import step_penalty
from openrlhf_gagpo.credit.presets import BASELINE_PRESETS
from openrlhf_gagpo.credit.registry import register
from openrlhf_gagpo.credit.result import CreditResult
from openrlhf_gagpo.credit.scores import episode_scores, group_statistics
from openrlhf_gagpo.credit.sets import Floats, Ints
from openrlhf_gagpo.credit.statistics import centred, standardised, statistics_of
from openrlhf_gagpo.options import declare

__all__ = ["GraphgpoOptions", "graphgpo", "success_distances"]


@dataclass(frozen=True)
class GraphgpoOptions(EstimatorOptions):
    """Options of GraphGPO; the defaults are its ALFWorld settings."""

    omega: float = declare(0.1, "what one more step to success multiplies the worth of a state by", range=(0.0, 1.0))
    goal_reward: float = option("goal_reward", 10.0)
    success_above: float = option("success_above", 0.0)
    progress: bool = declare(
        False, "score a step by the change of the distance to success instead of the distance that it led to"
    )
    failed_end: str = declare(
        "state",
        "where the last step of a failed, terminated episode leads: state = to its final state, whose distance others "
        "may have made short; dead_end = to a node without a path to success",
        choices=("state", "dead_end"),
    )
    gigpo_mode: str = option("gigpo_mode", "mean_std_norm")
    step_coef: float = option("step_coef", 1.0)
    episode_coef: float = option("episode_coef", 1.0)

    @property
    def lone_states(self) -> LoneStates | None:
        if self.step_coef == 0.0:
            return None
        return LoneStates("the episode's advantage" if self.episode_coef else "")


@register("graphgpo", GraphgpoOptions, BASELINE_PRESETS)
def graphgpo(batch: StepBatch, options: GraphgpoOptions) -> CreditResult:
    """Compute ``A^E + A^S`` with GiGPO's A^E, and A^S from ``q_t = C omega^d(s_{t+1})`` less the step's penalty.

    d is the number of edges of the shortest path to success, C is ``goal_reward``, and A^S standardises q over the
    visits of the state. With ``progress`` the exponent is ``d(s_{t+1}) - d(s_t) + 1``. (arXiv 2605.26684, as in the
    authors' code; ``progress`` is there too, ``dead_end`` is ours.)
    """
    compare = standardised if options.gigpo_mode == "mean_std_norm" else centred
    here, there = success_distances(batch, options)
    exponent = there - here + 1 if options.progress else there
    worth = options.goal_reward * options.omega**exponent - step_penalty(batch, options)
    visits = statistics_of(worth, batch.states)
    scores = episode_scores(batch, options)
    episode_advantage = compare(scores, batch.groups, group_statistics(batch, scores, options))
    step_advantage = compare(worth, batch.states, visits)
    return CreditResult.of(
        batch,
        options,
        advantage=options.episode_coef * episode_advantage + options.step_coef * step_advantage,
        return_=worth,
        value=batch.states.expand(visits.mean),
    )


def success_distances(batch: StepBatch, options: GraphgpoOptions) -> tuple[Floats, Floats]:
    """Return the distance to success from each row's state and from the node behind it.

    A node without a path to success is one step further away than the furthest node of the group that has one.
    """
    states = len(batch.states.count)
    goal, dead_end = states, states + 1
    target = _targets(batch, options, goal, dead_end)
    distance = distances(batch.states.label, target, goal, states + 2)
    here, there = distance[batch.states.label], distance[target]
    furthest = np.maximum.reduceat(np.where(np.isfinite(here), here, 0.0), batch.groups.start)
    beyond = batch.groups.expand(furthest + 1)
    return np.where(np.isfinite(here), here, beyond), np.where(np.isfinite(there), there, beyond)


def _targets(batch: StepBatch, options: GraphgpoOptions, goal: int, dead_end: int) -> Ints:
    """Return the node behind each row: a state, ``goal`` after a success, or ``dead_end``.

    No path leads from either node, so that all groups can share them.
    """
    success = batch.trajectories.expand(succeeded(batch, options.success_above))
    target = next_states(batch)
    target[batch.trajectories.is_last & success] = goal
    if options.failed_end == "dead_end":
        target[batch.terminated & ~success] = dead_end
    return target
