"""An evaluation over a policy that takes messages and returns text, with real environment workers and no optimizer."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from openrlhf_gagpo.evaluation import EvaluationPlan, evaluate, play_with
from openrlhf_gagpo.metrics import undocumented
from openrlhf_gagpo.rollout.player import EpisodePlayer, RolloutSettings
from openrlhf_gagpo.rollout.types import Completion, Episode, Prompt, SamplingParams


class Words:
    """Stands in for a tokenizer; such a policy has none."""

    chat_template = None

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return list(range(len(text.split())))

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        raise AssertionError("the text of a message policy is not decoded")


class Reader:
    """Walks towards the first thing that the situation in the last message calls for."""

    def __init__(self) -> None:
        self.prompts: list[Prompt] = []

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        self.prompts.append(prompt)
        situation = prompt.messages[-1]["content"].rpartition("Situation:")[2].splitlines()[0]
        return Completion([], [], "stop", text=f"<action>{self._action(situation)}</action>", prompt_form="messages")

    def _action(self, situation: str) -> str:
        wanted = re.search(r"(\w+ key|chest locked|chest \w+|altar) ((?:\w+ \d+|level 0)) (\w+ \d+|level 0)", situation)
        for part in (wanted[2], wanted[3]) if wanted else ():
            direction, _, steps = part.partition(" ")
            if int(steps) > 0:
                return f"go {direction}"
        return f"take {wanted[1]}" if wanted and wanted[1].endswith("key") else "open chest"


def run(policy: Any, samples: int = 2) -> tuple[dict[str, float], list[Episode], list[Episode]]:
    settings = RolloutSettings(
        "vault", {"size": 3, "keys": 1, "train_tasks": 4, "valid_tasks": 4, "test_tasks": 0},
        think=False, max_prompt_tokens=500, concurrency=4,
    )  # fmt: skip
    plan = EvaluationPlan("valid", [f"vault-valid-{i}" for i in range(4)], samples, SamplingParams(32), seed=3)
    seen: list[Episode] = []
    with play_with(policy, EpisodePlayer(settings, Words())) as play:
        result = evaluate(play, plan, "first", seen.append)
    return result.metrics, result.episodes, seen


def test_a_policy_of_messages_is_evaluated() -> None:
    policy = Reader()
    metrics, episodes, seen = run(policy)
    assert [episode.task for episode in episodes] == [f"vault-valid-{i}" for i in range(4) for _ in range(2)]
    assert len(seen) == 8
    assert metrics["eval/episodes"] == 8
    assert metrics["eval/tasks"] == 4
    assert undocumented([metrics | {"iteration": 0}]) == set()
    # The text reached the environment: a key was taken in some episode.
    assert any(step.action.startswith("take") and step.admissible for episode in episodes for step in episode.steps)
    steps = [step for episode in episodes for step in episode.steps]
    assert all(step.response_ids == [] and step.prompt_ids == [] for step in steps)
    sent = sorted(json.dumps(prompt.messages) for prompt in policy.prompts)
    assert sorted(json.dumps(step.messages) for step in steps) == sent
    assert all(prompt.messages[-1]["role"] == "user" for prompt in policy.prompts)
    assert all(prompt.messages[-1]["content"] in prompt.text for prompt in policy.prompts)


def test_evaluations_of_one_plan_play_the_same_starts() -> None:
    first, second = run(Reader(), samples=1)[1], run(Reader(), samples=1)[1]
    assert [episode.steps[0].observation for episode in first] == [episode.steps[0].observation for episode in second]


def test_evaluating_imports_no_training() -> None:
    import subprocess

    code = "import sys, openrlhf_gagpo.evaluation\nprint([n for n in sys.modules if n == 'torch' or '.training' in n])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
