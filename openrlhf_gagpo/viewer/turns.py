"""The steps of an episode as its page shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from openrlhf_gagpo.report.episodes import PlayedEpisode
from openrlhf_gagpo.rollout.types import Step
from openrlhf_gagpo.viewer.estimates import Estimate
from openrlhf_gagpo.viewer.graph import GroupGraph, Node

__all__ = ["Turn", "turns"]

_THINKING = re.compile(r"^\s*(?:<think>)?(.*?)</think>", re.IGNORECASE | re.DOTALL)
_ACTION = re.compile(r"^\s*<action>(.*)</action>\s*$", re.IGNORECASE | re.DOTALL)
_SHOWN_APART = ("advantage",)
_LABELS = {"return": "return", "value": "value proxy", "td_residual": "TD residual"}


@dataclass(frozen=True)
class Turn:
    """One step."""

    step: Step
    credit: Mapping[str, float]
    other: Mapping[str, float] | None
    """Credit of the second estimator; None if there is none, empty if it leaves the step out."""
    node: Node
    """The step's state in the graph of its group."""

    @property
    def thinking(self) -> str:
        """What the response says before its closing tag of thinking."""
        match = _THINKING.match(self.step.response)
        return match[1].strip() if match else ""

    @property
    def rest(self) -> str:
        """The response outside thinking, unless it only repeats the action."""
        match = _THINKING.match(self.step.response)
        rest = (self.step.response[match.end() :] if match else self.step.response).strip()
        bare = _ACTION.match(rest)
        return "" if (bare[1] if bare else rest).strip() == self.step.action.strip() else rest

    @property
    def flags(self) -> list[str]:
        """What was wrong with the response, in words."""
        found = []
        if not self.step.format_valid:
            found.append("malformed response")
        if not self.step.admissible:
            found.append("inadmissible action")
        if self.step.finish_reason == "length":
            found.append("cut by the token limit")
        if self.step.history_dropped:
            found.append(f"{self.step.history_dropped} history entries dropped")
        return found

    @property
    def advantage(self) -> float | None:
        """The recorded advantage."""
        return self.credit.get("advantage")

    @property
    def other_advantage(self) -> float | None:
        """The advantage under the second estimator."""
        return (self.other or {}).get("advantage")

    @property
    def numbers(self) -> list[tuple[str, float]]:
        """The other recorded credit, with labels."""
        return [
            (_LABELS.get(name, name.replace("_", " ")), value)
            for name, value in self.credit.items()
            if name not in _SHOWN_APART
        ]


def turns(played: PlayedEpisode, graph: GroupGraph, estimate: Estimate | None) -> list[Turn]:
    """Return the steps of an episode of the group that ``graph`` shows, with the credit of a second estimator."""
    episode = played.episode
    return [
        Turn(
            step=step,
            credit=credit,
            other=None
            if estimate is None or estimate.problem
            else estimate.steps.get((episode.group, episode.trajectory, step.index), {}),
            node=graph.of_state(step.state_key),
        )
        for step, credit in zip(episode.steps, played.credit, strict=True)
    ]
