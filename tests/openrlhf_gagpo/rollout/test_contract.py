"""What an environment may answer: wrong types cost one episode and are never read as something else."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from agent_envs.base import EnvError, Reset, StepResult
from openrlhf_gagpo.rollout.contract import sound_reset, sound_step


def answer(**changes: Any) -> StepResult:
    fields = {"observation": "o", "state_key": "s", "reward": 0.0, "terminated": False, "truncated": False} | changes
    return StepResult(**fields)


@pytest.mark.parametrize("name", ["terminated", "truncated", "admissible", "success"])
@pytest.mark.parametrize("wrong", ["False", "", b"1", math.nan, None, 2, [True, False], np.array([True])])
def test_a_switch_is_true_or_false(name: str, wrong: Any) -> None:
    with pytest.raises(EnvError, match=f"as {name}: it must be True or False"):
        sound_step(answer(**{name: wrong}))


@pytest.mark.parametrize("right", [True, np.True_, 1, 1.0, np.int64(1)])
def test_a_switch_becomes_a_plain_bool(right: Any) -> None:
    assert sound_step(answer(terminated=right)).terminated is True


@pytest.mark.parametrize("wrong", ["3", b"3", math.inf, math.nan, None, [1.0, 2.0]])
def test_a_reward_is_a_finite_number(wrong: Any) -> None:
    with pytest.raises(EnvError, match="reward"):
        sound_step(answer(reward=wrong))
    assert type(sound_step(answer(reward=np.float32(0.5))).reward) is float


@pytest.mark.parametrize("wrong", [np.array([1, 2]), {"x": math.nan}, {"x": object()}, "text", 3, None])
def test_an_info_is_json(wrong: Any) -> None:
    for check, made in ((sound_step, answer(info=wrong)), (sound_reset, Reset("o", "s", info=wrong))):
        with pytest.raises(EnvError, match="info that is not JSON"):
            check(made)


def test_an_info_is_kept_as_json_gives_it_back() -> None:
    info = {"answers": ("a", "b"), "n": 3, "deep": {"x": [1.5, None]}}
    expected = {"answers": ["a", "b"], "n": 3, "deep": {"x": [1.5, None]}}
    assert sound_reset(Reset("o", "s", info=info)).info == expected
    assert sound_step(answer(info=info)).info == expected
    assert sound_step(answer()).info == {}
