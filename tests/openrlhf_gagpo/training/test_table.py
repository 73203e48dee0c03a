"""The steps of an iteration as one table."""

from __future__ import annotations

from dataclasses import replace

import pytest

from openrlhf_gagpo.errors import CreditError, StepBatchError
from openrlhf_gagpo.training.table import StepTable
from support.report_runs import episode


def test_every_step_is_one_row_with_its_identity_and_tokens() -> None:
    episodes = [episode(0, success=True, steps=3), episode(1, success=False, steps=2)]
    table = StepTable.from_episodes(episodes)
    steps = [(played, step) for played in episodes for step in played.steps]
    assert len(table) == len(steps) == 5
    for row, (played, step) in enumerate(steps):
        assert (table.group[row], table.trajectory[row], table.step[row]) == (
            played.group,
            played.trajectory,
            step.index,
        )
        assert (table.state[row], table.next_state[row]) == (step.state_key, step.next_state_key)
        assert table.tokens[row].prompt_ids is step.prompt_ids
        assert table.tokens[row].response_ids is step.response_ids
        assert (table.invalid[row], table.inadmissible[row]) == (not step.format_valid, not step.admissible)
    batch = table.batch()
    assert batch.n_tokens.tolist() == [len(step.response_ids) for _, step in steps]


def test_a_prompt_that_no_longer_fits_truncates_the_episode() -> None:
    played = episode(0, success=False, steps=2)
    played.end_reason = "prompt_too_long"
    played.steps[-1] = replace(played.steps[-1], terminated=False, truncated=False)
    assert StepTable.from_episodes([played]).truncated == [False, True]


def test_faulted_and_torn_episodes_are_refused() -> None:
    fault = episode(0, success=False)
    fault.end_reason = "env_fault"
    with pytest.raises(CreditError, match="remove faulted episodes"):
        StepTable.from_episodes([fault])
    torn = episode(1, success=True, steps=3)
    del torn.steps[1]
    with pytest.raises(StepBatchError, match="missing"):
        StepTable.from_episodes([torn]).batch()
    assert len(StepTable.from_episodes([])) == 0
