"""Recorded steps with what the truth needs of them, replayed under an environment's rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent_envs.base import Move
from openrlhf_gagpo.comparison.steps import Steps
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.rollout.records import read_records
from openrlhf_gagpo.rollout.types import Episode, Step
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training.rows import TokenRow
from openrlhf_gagpo.truth.exact import Node, Rules

__all__ = ["Played", "read_played", "replay"]


@dataclass(frozen=True)
class Played:
    """The N steps of one iteration, in the order of the comparison."""

    iteration: int
    episodes: Sequence[Episode]
    """Episode of each step; the same object for all steps of one."""
    steps: Sequence[Step]

    @property
    def rows(self) -> list[TokenRow]:
        """Prompt and response of each step."""
        return [TokenRow(step.prompt_ids, step.response_ids, step.sampling_log_probs) for step in self.steps]


def read_played(run: RunFolder, part: Steps) -> Played:
    """Read the episodes behind the steps of one iteration of a run."""
    iteration = part.identity[0]["iteration"]
    episodes, _ = read_records(run.rollout_path(iteration))
    found = {
        (episode.group, episode.trajectory, step.index): (episode, step)
        for episode in episodes
        for step in episode.steps
    }
    pairs = [found[row["group"], row["traj"], row["step"]] for row in part.identity]
    return Played(iteration, [episode for episode, _ in pairs], [step for _, step in pairs])


def replay(played: Played, rules: Rules) -> list[Node]:
    """Return the node at which each step was taken.

    Raises:
        ConfigError: the rules do not give what was recorded, as for an environment that changed since the run.
    """
    nodes: dict[tuple[str, str, int], Node] = {}
    for episode in {id(episode): episode for episode in played.episodes}.values():
        state = rules.model.start(episode.task, episode.env_seed)
        for step in episode.steps:
            nodes[episode.group, episode.trajectory, step.index] = Node(state, step.index)
            shown = rules.model.view(state, step.index)
            move = rules.model.move(state, step.action)
            after = Move(state) if move is None else move
            expected = (shown.observation, after.reward, after.terminated)
            if expected != (step.observation, step.reward, step.terminated):
                raise ConfigError(
                    f"step {step.index} of {episode.trajectory} in iteration {played.iteration} was recorded "
                    "differently from what the environment's model() says; it must describe the environment that played"
                )
            state = after.state
    return [
        nodes[episode.group, episode.trajectory, step.index]
        for episode, step in zip(played.episodes, played.steps, strict=True)
    ]
