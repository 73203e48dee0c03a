from __future__ import annotations

from collections import deque
from dataclasses import replace

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_envs import UnknownTask
from agent_envs.vault import VaultEnv

ENV = VaultEnv()


def shortest_solution(env: VaultEnv, task: str) -> int:
    """Breadth-first search over the text interface alone: knows nothing of the plan that the expert follows."""
    start = env.reset(task, 0)
    seen = {start.state_key}
    queue: deque[list[str]] = deque([[]])
    while queue:
        path = queue.popleft()
        record = env.reset(task, 0)
        for action in path:
            record = env.step(action)
        for action in record.admissible_actions:
            env.reset(task, 0)
            for past in path:
                env.step(past)
            result = env.step(action)
            if result.success:
                return len(path) + 1
            if result.state_key not in seen and len(path) + 1 < env.max_steps:
                seen.add(result.state_key)
                queue.append([*path, action])
    raise AssertionError(f"{task} cannot be solved")


def expert_length(env: VaultEnv, task: str) -> int:
    env.reset(task, 0)
    expert = env.expert()
    for length in range(1, env.max_steps + 1):
        if env.step(expert()).success:
            return length
    raise AssertionError(f"the expert does not solve {task}")


@pytest.mark.parametrize("index", range(4))
def test_expert_is_optimal(index: int) -> None:
    task = f"vault-test-{index}"
    assert expert_length(ENV, task) == shortest_solution(ENV, task)


def test_every_task_can_be_solved_in_time() -> None:
    for split in ENV.splits:
        for task in ENV.tasks(split):
            assert expert_length(ENV, task) <= ENV.max_steps


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_expert_recovers_from_anywhere(data: st.DataObject) -> None:
    env = VaultEnv(max_steps=60)
    start = env.reset(data.draw(st.sampled_from(env.tasks("train"))), 0)
    admissible = start.admissible_actions
    for _ in range(data.draw(st.integers(0, 30))):
        result = env.step(data.draw(st.sampled_from(admissible)))
        assert result.admissible
        admissible = result.admissible_actions
        if result.terminated:
            return
    expert = env.expert()
    while not result_or_step(env, expert()):
        pass


def result_or_step(env: VaultEnv, action: str) -> bool:
    result = env.step(action)
    assert result.admissible
    assert not result.truncated
    return result.success


def test_reward_is_one_at_the_end_only() -> None:
    env = VaultEnv()
    env.reset("vault-train-3", 0)
    expert = env.expert()
    results = [env.step(expert())]
    while not results[-1].terminated:
        results.append(env.step(expert()))
    assert [result.reward for result in results] == [0.0] * (len(results) - 1) + [1.0]


def test_no_layout_is_in_two_splits_or_twice() -> None:
    env = VaultEnv(train_tasks=2000, valid_tasks=400, test_tasks=400)
    starts: set[str] = set()
    places: dict[str, set[object]] = {}
    for split in env.splits:
        layouts = env._layouts(split)
        assert len(set(layouts)) == len(env.tasks(split))
        starts |= {env.reset(task, 0).observation for task in env.tasks(split)}
        # Also without the start: walking about in one split never leads to a start of another.
        places[split] = {replace(layout, start=(0, 0)) for layout in layouts}
    assert len(starts) == 2800
    assert places["train"].isdisjoint(places["valid"] | places["test"])
    assert places["valid"].isdisjoint(places["test"])


def test_a_larger_split_begins_with_the_smaller() -> None:
    small, large = VaultEnv(train_tasks=10), VaultEnv(train_tasks=50)
    assert small._layouts("train") == large._layouts("train")[:10]
    assert len(small.tasks("train")) == 10


def test_text_has_fixed_slots_and_few_words() -> None:
    words: set[str] = set()
    for task in ENV.tasks("train")[:200]:
        ENV.reset(task, 0)
        expert = ENV.expert()
        while True:
            result = ENV.step(expert())
            tokens = result.observation.split()
            if result.terminated:
                break
            assert [tokens.index(word) for word in ("you", "red", "green", "chest", "gem", "altar")] == [
                0,
                6,
                13,
                20,
                27,
                30,
            ]
            assert len(tokens) == 36
            words.update(tokens, *(action.split() for action in result.admissible_actions))
    assert len(words) < 35


def test_prompt_is_the_bare_state_for_a_model_without_history_or_tags() -> None:
    engine = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    turn = engine.from_string(ENV.prompt.turn)
    seen = {"task": "", "observation": "you row 0", "history": [], "admissible_actions": [], "step": 0}
    assert turn.render(**seen, think=False, action_tags=False) == "you row 0 action :"
    told = turn.render(**seen, think=True, action_tags=True)
    assert "Situation: you row 0\n" in told
    assert "<think>" in told
    assert "<action>" in told
    assert "open the chest" in told


def test_the_prompt_keeps_its_wording_within_an_episode() -> None:
    engine = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    turn = engine.from_string(ENV.prompt.turn)
    bare = {"task": "", "observation": "you row 1", "step": 2, "think": False, "action_tags": False}
    past = [{"step": i, "observation": f"you row {i}", "action": "go south"} for i in range(2)]
    assert turn.render(**bare, history=past, admissible_actions=["go north", "take gem"]) == (
        "you row 0 action : go south\nyou row 1 action : go south\npossible : go north , take gem\nyou row 1 action :"
    )


@pytest.mark.parametrize(
    "task",
    [
        "vault-train-99999",
        "vault-dev-0",
        "train-0",
        "vault-train-",
        "vault-train-01",
        "vault-train-\u0661",
        "vault-train-" + "9" * 5000,
    ],
)
def test_unknown_tasks(task: str) -> None:
    with pytest.raises(UnknownTask):
        ENV.reset(task, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "size is 1"),
        ({"keys": 9}, "keys is 9"),
        ({"size": 2, "keys": 2}, "raise size"),
        ({"max_steps": 8}, "max_steps is 8, but with 2 keys no solution is shorter than 9 steps"),
        ({"train_tasks": -1}, "negative"),
    ],
)
def test_bad_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VaultEnv(**options)


def test_a_split_larger_than_the_grid_allows_is_refused() -> None:
    env = VaultEnv(size=2, keys=1, train_tasks=500)
    with pytest.raises(ValueError, match="ask for fewer tasks"):
        env.tasks("train")


def test_the_clock_is_in_the_observation_and_not_in_the_state() -> None:
    plain, clocked = VaultEnv(), VaultEnv(clock=True)
    before, after = plain.reset("vault-train-3", 0), clocked.reset("vault-train-3", 0)
    assert after.observation == f"{before.observation} left 14 ."
    assert after.state_key == before.state_key == before.observation
    for left in (13, 12):
        before, after = plain.step("go north"), clocked.step("go north")
        assert after.observation == f"{before.observation} left {left} ."
        assert after.state_key == before.state_key
