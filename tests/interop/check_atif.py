"""Reads exported trajectories with Harbor's own models; `make test-interop` runs it where they are installed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from harbor.models.trajectories import Trajectory
from harbor.utils.trajectory_validator import TrajectoryValidator


def main(folder: Path) -> None:
    files = sorted((folder / "trajectories").glob("*.json"))
    assert len(files) == 3
    for file in files:
        validator = TrajectoryValidator()
        assert validator.validate(file), validator.get_errors()
        # Nothing is lost on the way through.
        text = file.read_text(encoding="utf-8")
        read = Trajectory.model_validate_json(text)
        assert read.model_dump(exclude_unset=True, mode="json") == json.loads(text)
        agent = [step for step in read.steps if step.source == "agent"]
        for step in agent:
            assert step.metrics is not None
            assert len(step.metrics.logprobs or []) == len(step.metrics.completion_token_ids or [])
            assert step.extra is not None
            assert set(step.extra["credit"]) in ({"advantage", "return", "value", "td_residual"}, set())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.write("atif: 1 passed, 0 failed\n")
