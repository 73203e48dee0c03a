"""The vault's rules as a model: what it says is what an instance does."""

from __future__ import annotations

import random

import pytest

from agent_envs import UnknownTask
from agent_envs.limit import StepLimit
from agent_envs.vault import VaultEnv


@pytest.mark.parametrize("clock", [False, True])
def test_the_model_says_what_the_instance_does(clock: bool) -> None:
    env = VaultEnv(size=2, keys=1, train_tasks=4, valid_tasks=0, test_tasks=0, max_steps=400, clock=clock)
    model = env.model()
    rng = random.Random(0)
    ends = set()
    for task in env.tasks("train"):
        shown, state, step = env.reset(task, 0), model.start(task, 0), 0
        while True:
            view = model.view(state, step)
            assert (view.observation, view.state_key) == (shown.observation, shown.state_key)
            assert view.admissible_actions == shown.admissible_actions
            action = rng.choice([*shown.admissible_actions, "  GO  north ", "take gem", "nonsense"])
            move, shown = model.move(state, action), env.step(action)
            step += 1
            assert shown.admissible == (move is not None)
            if move is not None:
                state = move.state
                assert (move.reward, move.terminated) == (shown.reward, shown.terminated)
                assert not model.hopeless(view.admissible_actions, action[: rng.randrange(len(action))])
            if shown.terminated or shown.truncated:
                ends.add(shown.terminated)
                break
    assert True in ends


def test_a_beginning_of_no_action_is_hopeless() -> None:
    model = VaultEnv(size=2, keys=1, train_tasks=1, valid_tasks=0, test_tasks=0).model()
    assert model.hopeless(["go north"], "go s")
    assert not model.hopeless(["go north"], " Go  N")


def test_unknown_tasks_and_limits() -> None:
    limited = StepLimit(VaultEnv(size=2, keys=1, train_tasks=1, valid_tasks=0, test_tasks=0), 3)
    model = limited.model()
    assert model is not None
    with pytest.raises(UnknownTask):
        model.start("vault-train-7", 0)
