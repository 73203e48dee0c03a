"""ALFWorld: what a turn looks like to a model, in each answer format."""

from __future__ import annotations

import itertools

import pytest
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from agent_envs.alfworld import AlfworldEnv

FIRST = "-= Welcome to TextWorld, ALFRED! =-\n\nYou see a shelf 1.\n\nYour task is to: put a mug in shelf."
HISTORY = [{"step": 0, "observation": FIRST, "action": "go to shelf 1"}]


def turn(*, think, action_tags, history=(), observation=FIRST, actions=("look", "go to shelf 1")) -> str:
    engine = ImmutableSandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return engine.from_string(AlfworldEnv.prompt.turn).render(
        task="put a mug in shelf",
        observation=observation,
        history=list(history),
        admissible_actions=list(actions),
        step=len(history),
        think=think,
        action_tags=action_tags,
    )


@pytest.mark.parametrize(("think", "tags"), itertools.product((False, True), repeat=2))
def test_every_format_shows_task_history_observation_and_actions_once(think, tags):
    text = turn(think=think, action_tags=tags, history=HISTORY, observation="On the shelf 1, you see nothing.")
    for part in ("put a mug in shelf", "You see a shelf 1.", "On the shelf 1, you see nothing.", "look"):
        assert text.count(part) == 1
    assert text.count("go to shelf 1") == 2
    assert "Welcome" not in text
    assert "Your task is" not in text
    assert ("<think>" in text, "<action>" in text) == (think, tags)
    assert "\n\n\n" not in text
    assert text == text.strip()


def test_the_compact_form_is_labelled_lines():
    assert turn(think=False, action_tags=False, history=HISTORY, observation="Nothing happens.") == (
        "task : put a mug in shelf\n"
        "seen : You see a shelf 1.\n"
        "did : go to shelf 1\n"
        "seen : Nothing happens.\n"
        "can : look ; go to shelf 1\n"
        "do :"
    )


def test_hidden_actions_are_replaced_by_the_command_forms():
    text = turn(think=False, action_tags=True, actions=())
    assert f"You now see: {FIRST}" in text
    assert "take X from Y" in text
    assert "copied from the list" not in text
    assert turn(think=False, action_tags=False, actions=()).endswith("put a mug in shelf.\ndo :")
