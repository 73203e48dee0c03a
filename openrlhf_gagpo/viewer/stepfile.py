"""Plain JSON lines with one step each, as ``gagpo credit`` reads them, seen as episodes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from openrlhf_gagpo.comparison.stepfile import read_steps
from openrlhf_gagpo.report.episodes import PlayedEpisode
from openrlhf_gagpo.rollout.types import Episode, Step
from openrlhf_gagpo.viewer.facts import EpisodeFacts

__all__ = ["StepLines"]

_CREDIT = {
    "advantage": "advantage",
    "return": "return",
    "value": "value",
    "value_proxy": "value",
    "td_residual": "td_residual",
}
"""Name in a line -> name in a run's records."""


class StepLines:
    """A file of steps. Texts (``observation``, ``response``) and credit are shown where the lines have them."""

    kept = False

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def unread(self) -> int:
        """Bytes that a scan has to read: all."""
        return self.path.stat().st_size

    def scan(self) -> list[EpisodeFacts]:
        """Read the facts of all trajectories. Raises ``StepFileError`` for lines that are not steps."""
        return [EpisodeFacts.of(played.episode, number) for number, played in enumerate(self._played)]

    def read(self, chosen: Sequence[EpisodeFacts]) -> list[PlayedEpisode]:
        """Return the chosen trajectories, with the errors of ``scan``."""
        return [self._played[facts.number] for facts in chosen]

    @cached_property
    def _played(self) -> list[PlayedEpisode]:
        columns = read_steps(self.path).columns
        text = self.path.read_text(encoding="utf-8-sig")
        lines = [json.loads(line) for line in text.split("\n") if line.strip()]
        rows: dict[tuple[str, str], list[int]] = {}
        for row, (group, trajectory) in enumerate(zip(columns["group"], columns["traj"], strict=True)):
            rows.setdefault((str(group), str(trajectory)), []).append(row)
        found = []
        for number, ((group, trajectory), own) in enumerate(rows.items()):
            own.sort(key=lambda row: columns["step"][row])
            steps = [_step(columns, lines[row], row) for row in own]
            last = own[-1]
            success = bool(columns["success"][last]) if "success" in columns else False
            end: Literal["truncated", "terminated"] = "truncated" if columns["truncated"][last] else "terminated"
            line = lines[last]
            episode = Episode(
                task=str(line.get("task", group)),
                group=group,
                trajectory=trajectory,
                env_seed=0,
                steps=steps,
                end_reason=end,
                category=str(line.get("category", "")),
                success=success,
                score=float(success),
            )
            found.append(PlayedEpisode(number, episode, [_credit(lines[row]) for row in own]))
        return found


def _step(columns: Mapping[str, list[Any]], line: Mapping[str, Any], row: int) -> Step:
    state = str(columns["state"][row])
    action = str(columns["action"][row]) if "action" in columns else ""
    return Step(
        index=columns["step"][row],
        state_key=state,
        next_state_key=str(columns["next_state"][row]),
        observation=str(line.get("observation", line["state"])),
        action=action,
        reward=float(columns["reward"][row]),
        terminated=bool(columns["terminated"][row]),
        truncated=bool(columns["truncated"][row]),
        format_valid=not (columns["invalid"][row] if "invalid" in columns else False),
        admissible=not (columns["inadmissible"][row] if "inadmissible" in columns else False),
        prompt_ids=[],
        response_ids=[],
        sampling_log_probs=[],
        response=str(line.get("response", action)),
    )


def _credit(line: Mapping[str, Any]) -> dict[str, float]:
    return {
        shown: float(line[name])
        for name, shown in _CREDIT.items()
        if isinstance(line.get(name), int | float) and not isinstance(line[name], bool)
    }
