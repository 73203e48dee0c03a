from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.evaluation import evaluation_metrics
from openrlhf_gagpo.rollout.grouping import GroupReport, drop_incomplete
from openrlhf_gagpo.rollout.types import Episode, Step
from openrlhf_gagpo.training.summary import rollout_metrics

STEP = Step(0, "s", "z", "", "", 0.0, True, False, True, True, [1], [2], [0.0], "")


def episode(number: int, group: str, end: str = "terminated") -> Episode:
    steps = [STEP] if end == "terminated" else []
    return Episode("task", group, f"t{number}", 0, steps, end)  # type: ignore[arg-type]


def test_faulted_episodes_leave_and_small_groups_are_skipped() -> None:
    played = [
        episode(0, "a"),
        episode(1, "b"),
        episode(2, "a"),
        episode(3, "a", "env_fault"),
        episode(4, "b", "env_fault"),
        episode(5, "c", "env_fault"),
    ]
    kept, report = drop_incomplete(played)
    assert [item.trajectory for item in kept] == ["t0", "t2"]
    assert report == GroupReport(
        groups=3,
        episodes=6,
        kept_episodes=2,
        faulted_episodes=3,
        unplayed_episodes=0,
        skipped_groups=2,
        skipped_episodes=1,
    )


def test_episodes_without_steps_leave_their_group_and_are_counted_apart() -> None:
    played = [
        episode(0, "a"),
        episode(1, "a"),
        episode(2, "a", "prompt_too_long"),
        episode(3, "b"),
        episode(4, "b", "prompt_too_long"),
        episode(5, "b", "env_fault"),
    ]
    kept, report = drop_incomplete(played)
    assert [item.trajectory for item in kept] == ["t0", "t1"]
    assert (report.faulted_episodes, report.unplayed_episodes) == (1, 2)
    assert (report.skipped_groups, report.skipped_episodes) == (1, 1)


def test_a_first_prompt_too_long_counts_as_a_failed_episode() -> None:
    played = [episode(0, "a"), episode(1, "a", "prompt_too_long"), episode(2, "a", "env_fault")]
    played[0].success = True
    evaluated = evaluation_metrics(played)
    assert (evaluated["eval/success"], evaluated["eval/episodes"], evaluated["eval/faulted"]) == (0.5, 2, 1)
    trained = rollout_metrics(played, drop_incomplete(played)[1])
    assert (trained["rollout/prompts_too_long"], trained["rollout/faulted_episodes"]) == (1, 1)


def test_min_group_one_keeps_single_episodes() -> None:
    kept, report = drop_incomplete([episode(0, "a"), episode(1, "b", "env_fault")], min_group=1)
    assert [item.trajectory for item in kept] == ["t0"]
    assert report.skipped_groups == 1


def test_nothing_in_nothing_out() -> None:
    assert drop_incomplete([]) == ([], GroupReport(0, 0, 0, 0, 0, 0, 0))


def test_bad_min_group() -> None:
    with pytest.raises(ValueError, match="min_group is 0"):
        drop_incomplete([], min_group=0)


ENDS = ("terminated", "prompt_too_long", "env_fault")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(ENDS))), st.integers(1, 4))
def test_every_episode_is_counted_once(shape: list[tuple[str, str]], min_group: int) -> None:
    played = [episode(i, group, end) for i, (group, end) in enumerate(shape)]
    kept, report = drop_incomplete(played, min_group)
    left_out = report.faulted_episodes + report.unplayed_episodes + report.skipped_episodes
    assert report.episodes == report.kept_episodes + left_out == len(played)
    assert report.kept_episodes == len(kept)
    for group in {item.group for item in kept}:
        members = [item for item in played if item.group == group and item.steps]
        assert [item for item in kept if item.group == group] == members
        assert len(members) >= min_group
