from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.rollout.grouping import GroupReport, drop_incomplete
from openrlhf_gagpo.rollout.types import Episode


def episode(number: int, group: str, faulted: bool = False) -> Episode:
    return Episode("task", group, f"t{number}", 0, [], "env_fault" if faulted else "terminated")


def test_faulted_episodes_leave_and_small_groups_are_skipped() -> None:
    played = [
        episode(0, "a"),
        episode(1, "b"),
        episode(2, "a"),
        episode(3, "a", faulted=True),
        episode(4, "b", faulted=True),
        episode(5, "c", faulted=True),
    ]
    kept, report = drop_incomplete(played)
    assert [item.trajectory for item in kept] == ["t0", "t2"]
    assert report == GroupReport(
        groups=3, episodes=6, kept_episodes=2, faulted_episodes=3, skipped_groups=2, skipped_episodes=1
    )


def test_min_group_one_keeps_single_episodes() -> None:
    kept, report = drop_incomplete([episode(0, "a"), episode(1, "b", faulted=True)], min_group=1)
    assert [item.trajectory for item in kept] == ["t0"]
    assert report.skipped_groups == 1


def test_nothing_in_nothing_out() -> None:
    assert drop_incomplete([]) == ([], GroupReport(0, 0, 0, 0, 0, 0))


def test_bad_min_group() -> None:
    with pytest.raises(ValueError, match="min_group is 0"):
        drop_incomplete([], min_group=0)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans())), st.integers(1, 4))
def test_every_episode_is_counted_once(shape: list[tuple[str, bool]], min_group: int) -> None:
    played = [episode(i, group, faulted) for i, (group, faulted) in enumerate(shape)]
    kept, report = drop_incomplete(played, min_group)
    assert report.episodes == report.kept_episodes + report.faulted_episodes + report.skipped_episodes == len(played)
    assert report.kept_episodes == len(kept)
    for group in {item.group for item in kept}:
        members = [item for item in played if item.group == group and not item.faulted]
        assert [item for item in kept if item.group == group] == members
        assert len(members) >= min_group
