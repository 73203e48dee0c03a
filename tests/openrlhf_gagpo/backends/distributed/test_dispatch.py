"""Groups are dealt to engines whole, once each, and none waits while an engine has room."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.backends.distributed.dispatch import Assignment, GroupQueue
from openrlhf_gagpo.rollout.types import EpisodeRequest


def groups(sizes: list[int]) -> list[list[EpisodeRequest]]:
    return [[EpisodeRequest("t", f"g{i}", f"g{i}t{j}", 0) for j in range(size)] for i, size in enumerate(sizes)]


def sent(queue: GroupQueue) -> list[Assignment]:
    return list(iter(queue.next, None))


def test_an_engine_gets_a_group_more_than_it_plays_at_a_time() -> None:
    queue = GroupQueue(groups([4] * 8), engines=2, room=4)
    first = sent(queue)
    assert Counter(item.engine for item in first) == {0: 2, 1: 2}
    assert [item.members[0].group for item in first] == ["g0", "g1", "g2", "g3"]
    queue.done(first[1])
    assert [(item.engine, item.members[0].group) for item in sent(queue)] == [(1, "g4")]


def test_a_group_larger_than_an_engines_room_is_played() -> None:
    queue = GroupQueue(groups([8, 8, 8]), engines=1, room=2)
    first, _ = sent(queue)
    queue.done(first)
    assert [item.members[0].group for item in sent(queue)] == ["g2"]


def test_a_slow_group_does_not_hold_up_the_others() -> None:
    queue = GroupQueue(groups([1] * 10), engines=2, room=1)
    pending = sent(queue)
    slow = next(item for item in pending if item.engine == 0)
    played = [slow]
    while others := [item for item in pending if item.engine == 1]:
        queue.done(others[0])
        played.append(others[0])
        pending.remove(others[0])
        pending += sent(queue)
    # All but those that the first engine holds.
    assert Counter(item.engine for item in played) == {0: 1, 1: 8}


@given(
    st.lists(st.integers(1, 5), max_size=12),
    st.integers(1, 4),
    st.integers(1, 8),
    st.lists(st.booleans(), max_size=40),
    st.randoms(use_true_random=False),
)
def test_every_group_is_played_once_whatever_is_lost(sizes, engines, room, losses, rng) -> None:
    made = groups(sizes)
    queue = GroupQueue(made, engines, room)
    pending, played, fates = [], [], iter(losses)
    while True:
        pending += sent(queue)
        if not pending:
            break
        item = pending.pop(rng.randrange(len(pending)))
        if next(fates, False):
            queue.lost(item)
        else:
            queue.done(item)
            played.append(item.members)
    assert sorted(members[0].group for members in played) == sorted(members[0].group for members in made)
    assert all(members in made for members in played)
