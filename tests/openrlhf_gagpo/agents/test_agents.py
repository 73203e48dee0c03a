"""What agents send to a policy, with a scripted endpoint behind it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agent_envs.base import PromptTemplate
from openrlhf_gagpo.agents.conversation import Conversation
from openrlhf_gagpo.agents.reflexion import ReflexionOptions
from openrlhf_gagpo.errors import PromptTooLong
from openrlhf_gagpo.rollout.prompt import HistoryEntry, PromptBuilder
from support.evaluations import DOORS, numbers, samples
from support.locked_doors import WORDS, door, reflecting
from support.scripted_endpoint import Reply, chat, serve


def conversations(bodies: Sequence[dict[str, Any]], at: int) -> list[list[dict[str, str]]]:
    return [body["messages"] for body in bodies if "Open door" in str(body) and door(body) == at]


def test_react_sends_the_growing_history_of_thoughts_and_actions(tmp_path: Path) -> None:
    with serve(reflecting) as endpoint:
        found = numbers(tmp_path / "out", *DOORS, "--policy.base_url", endpoint.url, "--agent", "react")
    assert found["success"]["mean"] == 0.0
    assert found["requests"] == 2 * len(WORDS)
    first, second = conversations(endpoint.bodies, 3)
    assert [message["role"] for message in first] == ["system", "user"]
    assert first[1]["content"] == "Open door 3. It is shut. Think first. You may: knock"
    assert [message["role"] for message in second] == ["system", "user", "assistant", "user"]
    # What was possible at the start is no longer said; what is possible now is.
    assert second[1]["content"] == "Open door 3. It is shut. Think first."
    assert second[2]["content"] == "<think>hm</think><action>knock</action>"
    assert second[3]["content"] == "Observation: Nothing moves.\nPossible actions: knock"


def test_reflexion_succeeds_in_the_second_trial_because_its_reflection_was_sent(tmp_path: Path) -> None:
    with serve(reflecting) as endpoint:
        found = numbers(tmp_path / "out", *DOORS, "--policy.base_url", endpoint.url, "--agent", "reflexion")
    assert found["success_by_trial"] == [0.0, 1.0]
    assert found["success"]["mean"] == 1.0
    # Two turns, a reflection, and one turn that opens the door.
    assert found["requests"] == 4 * len(WORDS)
    assert found["length"]["mean"] == 3.0
    for sample in samples(tmp_path / "out"):
        first, second = sample.trials
        assert not first.success
        assert second.success
        word = WORDS[int(first.task.removeprefix("door-"))]
        assert first.extra["reflection"] == f"Next time I say\n{word} at once."
        assert second.trajectory == f"{first.trajectory}.1"
        assert first.env_seed == second.env_seed
    (question,) = [body for body in endpoint.bodies if "Write only" in str(body) and WORDS[2] in str(body)]
    text = question["messages"][-1]["content"]
    assert "Task: Open door 2.\nObservation: It is shut.\n<think>hm</think><action>knock</action>" in text
    last = conversations(endpoint.bodies, 2)[-1]
    assert last[1]["content"].startswith("You tried this task before and did not finish it.")
    assert f"- Next time I say {WORDS[2]} at once.\n\nOpen door 2." in last[1]["content"]


def test_reflexion_without_its_reflections_never_succeeds(tmp_path: Path) -> None:
    """The control of the test above: the endpoint says nothing when it is asked to reflect."""

    def silent(number: int, body: dict[str, Any]) -> Reply:
        return chat("") if "Write only" in str(body) else reflecting(number, body)

    with serve(silent) as endpoint:
        flags = ("--policy.base_url", endpoint.url, "--agent", "reflexion", "--eval.tasks", "2", "--agent.trials", "2")
        found = numbers(tmp_path / "out", *DOORS, *flags)
    assert found["success_by_trial"] == [0.0, 0.0]
    assert all(len(sample.trials) == 2 for sample in samples(tmp_path / "out"))


def test_a_reflection_that_fails_costs_the_sample(tmp_path: Path) -> None:
    def broken(number: int, body: dict[str, Any]) -> Reply:
        return Reply("", 500) if "Write only" in str(body) and WORDS[1] in str(body) else reflecting(number, body)

    with serve(broken) as endpoint:
        flags = ("--policy.base_url", endpoint.url, "--agent", "reflexion", "--eval.tasks", "2")
        found = numbers(tmp_path / "out", *DOORS, *flags, "--env.options", "{}")
    # Two tasks spread over six are the doors 0 and 3.
    assert found["faulted"] == {"environment": 0, "policy": 0}
    with serve(broken) as endpoint:
        flags = ("--policy.base_url", endpoint.url, "--agent", "reflexion")
        found = numbers(tmp_path / "all", *DOORS, *flags)
    assert found["faulted"] == {"environment": 0, "policy": 1}
    assert found["success"]["mean"] == 1.0


def test_reflexion_keeps_only_the_latest_reflections() -> None:
    from openrlhf_gagpo.agents.reflexion import _noted

    assert ReflexionOptions().memory == 3
    assert _noted([]) == ""
    assert _noted(["a  b\nc", "d"]).endswith("\n- a b c\n- d")


class Words:
    """One token per word."""

    chat_template = None

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(range(len(text.split())))


def builder(limit: int) -> PromptBuilder:
    template = PromptTemplate(turn="{{ task }} {{ observation }}")
    return PromptBuilder(
        template, Words(), history_length=2, think=True, action_tags=True, list_actions=False, max_prompt_tokens=limit
    )


HISTORY = [HistoryEntry(step, f"seen{step}", f"act{step}", f"answer{step}") for step in range(4)]


@pytest.mark.parametrize(
    ("limit", "dropped", "shown"),
    [
        (100, 0, ["answer0", "answer1", "answer2", "answer3"]),
        (13, 1, ["answer1", "answer2", "answer3"]),
        (6, 3, ["answer3"]),
    ],
)
def test_a_conversation_that_does_not_fit_loses_its_oldest_exchanges(
    limit: int, dropped: int, shown: list[str]
) -> None:
    prompt = Conversation(builder(limit)).build("task", HISTORY, "now", (), 4)
    assert prompt.history_dropped == dropped
    assert prompt.messages[0]["content"] == "task seen0"
    assert [m["content"] for m in prompt.messages if m["role"] == "assistant"] == shown
    assert prompt.messages[-1]["content"] == "Observation: now"
    assert len(prompt.token_ids) <= limit


def test_at_last_only_the_situation_is_left() -> None:
    prompt = Conversation(builder(2)).build("task", HISTORY, "now", (), 4)
    assert [message["content"] for message in prompt.messages] == ["task now"]
    assert prompt.history_dropped == 4
    with pytest.raises(PromptTooLong):
        Conversation(builder(1)).build("task", HISTORY, "now", (), 4)
