"""The contract suite: environments that keep the contract, and one that breaks each part of it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

import agent_envs
from agent_envs import NumberedTasks, PromptTemplate, Reset, StepResult, TextEnv
from agent_envs.testing import check_env, find_breach
from agent_envs.vault import VaultEnv
from support.paths import REPOSITORY

EXTERNAL = REPOSITORY / "examples" / "external_env" / "number_hunt.py"

agent_envs.load_plugin(str(EXTERNAL))

# Those that are played with data have this test beside their own, on data that is made for it.
DATA_FREE = [name for name in agent_envs.names() if agent_envs.get(name).generator is None]


@pytest.mark.parametrize("name", DATA_FREE)
def test_environments_without_data_keep_the_contract(name: str) -> None:
    for split in agent_envs.get(name).splits:
        check_env(lambda: agent_envs.make(name), split, sample=3)


def test_both_environments_without_data_are_among_them() -> None:
    assert {"number-hunt", "vault"} <= set(DATA_FREE)


@pytest.mark.parametrize(
    "options", [{"size": 2, "keys": 1, "train_tasks": 4, "valid_tasks": 0, "test_tasks": 0}, {"keys": 4, "size": 5}]
)
def test_other_vaults_keep_the_contract(options: dict[str, int]) -> None:
    check_env(lambda: agent_envs.make("vault", max_steps=25, **options), "train")


class Silent(VaultEnv):
    """Lists no actions, and keeps the contract."""

    def reset(self, task: str, seed: int) -> Reset:
        return replace(super().reset(task, seed), admissible_actions=())

    def step(self, action: str) -> StepResult:
        return replace(super().step(action), admissible_actions=())


class Quiz(Silent):
    """Takes any text for an answer, which ends the episode."""

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        self._state = None
        return replace(result, admissible=True, terminated=True, truncated=False)

    def expert(self) -> None:
        return None


@pytest.mark.parametrize("make", [Silent, Quiz])
def test_environments_that_list_no_actions_can_keep_the_contract(make: Callable[[], TextEnv]) -> None:
    check_env(make, "train", sample=2)


class Slippery(Silent):
    """An action that makes no sense moves the agent without telling."""

    def step(self, action: str) -> StepResult:
        state = self._state
        result = super().step(action)
        if not result.admissible and state is not None:
            self._state = replace(state, agent=state.layout.altar)
        return result


class Endless(VaultEnv):
    """Counts only actions that make no sense."""

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        self._steps -= result.admissible
        return result


class Hasty(VaultEnv):
    """Stops before its limit, once nothing sensible was done."""

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        if self._steps == 3 and not result.admissible:
            self._state = None
            return replace(result, truncated=True)
        return result


class Repeating(VaultEnv):
    def tasks(self, split: str) -> NumberedTasks:
        if split in self.splits[1:]:
            return NumberedTasks("vault-train-", 2)
        return super().tasks(split)


class Welcoming(VaultEnv):
    """Has tasks for any split."""

    def tasks(self, split: str) -> NumberedTasks:
        return super().tasks(split if split in self.splits else "train")


class Undeclared(VaultEnv):
    """Plays a split of its class that the instance does not declare."""

    def __init__(self) -> None:
        super().__init__()
        self.splits = ("train",)


class Overstated(VaultEnv):
    splits = ("train", "dev")


class Random(VaultEnv):
    count = 0

    def reset(self, task: str, seed: int) -> Reset:
        Random.count += 1
        return replace(super().reset(task, seed), category=str(Random.count))


class Moody(VaultEnv):
    """Pays differently in the second instance."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        Moody.made += 1
        self._odd = Moody.made % 2

    def step(self, action: str) -> StepResult:
        return replace(super().step(action), reward=float(self._odd))


class Permissive(VaultEnv):
    def step(self, action: str) -> StepResult:
        return replace(super().step(action), admissible=True)


class Undying(VaultEnv):
    """Goes on after the end."""

    def step(self, action: str) -> StepResult:
        if self._state is None:
            return StepResult("", "", 0.0, terminated=False, truncated=False)
        return super().step(action)


class OneShot(VaultEnv):
    """Starts otherwise after the end of an episode."""

    ended = False

    def reset(self, task: str, seed: int) -> Reset:
        start = super().reset(task, seed)
        return replace(start, state_key="again") if self.ended else start

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        self.ended = self.ended or result.terminated or result.truncated
        return result


class Fragile(VaultEnv):
    def step(self, action: str) -> StepResult:
        if "九" in action:
            raise UnicodeError("what is that")
        return super().step(action)


class Fainthearted(VaultEnv):
    def expert(self):
        return lambda: "stand still"


class Clueless(VaultEnv):
    def expert(self):
        return lambda: self._admissible(self._state)[0]


class Blind(VaultEnv):
    prompt = PromptTemplate(turn="Do something.")


class Misworded(VaultEnv):
    prompt = PromptTemplate(turn="{{ thought }}")


class Versatile(VaultEnv):
    def __init__(self) -> None:
        super().__init__()
        self.prompt = PromptTemplate(turn="{{ observation }}!")


class Overrated(VaultEnv):
    def final_score(self) -> float:
        return 1.5


class Disturbed(VaultEnv):
    """Asking for the score moves the agent."""

    def final_score(self) -> None:
        state = self._state
        if state is not None:
            self._state = replace(state, agent=state.layout.altar)


class Secretive(VaultEnv):
    def task_payload(self, task: str) -> dict[str, object]:
        return {"answer": {1}}


def answering(**changes: object) -> Callable[[], TextEnv]:
    """Vaults whose steps have fields changed."""

    class Changed(VaultEnv):
        def step(self, action: str) -> StepResult:
            return replace(super().step(action), **changes)

    return Changed


def starting(**changes: object) -> Callable[[], TextEnv]:
    class Changed(VaultEnv):
        def reset(self, task: str, seed: int) -> Reset:
            return replace(super().reset(task, seed), **changes)

    return Changed


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (Slippery, r"^malformed actions changed what 'go \w+' does in task 'vault-train-0'; what cannot be read must"),
        (lambda: Endless(max_steps=14), "'vault-train-0' goes on after max_steps = 14 steps; let step 14 return"),
        (Hasty, "'vault-train-0' was truncated after 3 of max_steps = 14 steps; let max_steps be the limit"),
        (Repeating, "task 'vault-train-0' is listed twice .train, valid.; ids must be unique"),
        (Welcoming, r"tasks\('no such split'\) raised nothing; it must raise UnknownTask, since"),
        (Undeclared, r"tasks\('valid'\) raised nothing; it must raise UnknownTask, since 'valid' is not among its"),
        (Overstated, r"tasks\('dev'\) raised UnknownTask, though 'dev' is among its splits"),
        (Random, "reset in the middle of an episode starts task 'vault-train-0' differently than before; equal task"),
        (Moody, r"step 1 of task 'vault-train-0', 'go \w+', gives different results in another instance"),
        (Permissive, "action 'no such action' has admissible=True, though nothing like it is listed"),
        (Undying, "step before the first reset raised nothing; it must raise EnvError, since no episode runs"),
        (OneShot, "reset after the end of an episode starts task 'vault-train-0' differently than before"),
        (
            Fragile,
            r"step\('九.*'\) raised UnicodeError: what is that; while an episode runs it must survive",
        ),
        (Fainthearted, "the expert's action 'stand still' has admissible=False in step 1 of task 'vault-train-0'"),
        (Clueless, r"did not solve task 'vault-train-0' within 14 steps \(success False, score 0\); raise max_steps"),
        (Blind, "prompt.turn is the same for different observations; it must show"),
        (Misworded, "rendering prompt.turn raised UndefinedError: 'thought' is undefined; it may use the variables"),
        (Versatile, "an instance has another prompt than its class; set prompt_varies = True"),
        (Overrated, r"final_score\(\) returned 1.5; it must be None or a number between 0 and 1"),
        (Disturbed, r"gives other results after final_score\(\) in task 'vault-train-0'; asking must change nothing"),
        (Secretive, r"writing the payload of task_payload\('vault-train-0'\) as JSON raised TypeError"),
        (lambda: VaultEnv(train_tasks=0), "split 'train' has no tasks; there must be one"),
        (starting(observation=b"bytes"), "reset returned a bytes as observation; it must be a str"),
        (starting(category=None), "reset returned a NoneType as category; it must be a str"),
        (starting(admissible_actions="go"), "reset returned 'go' as admissible_actions; they must be a tuple of str"),
        (starting(info={1: "a"}), "reset returned the info {1: 'a'}; it must be a mapping with str as keys"),
        (starting(info=["a"]), r"reset returned the info \['a'\]; it must be a mapping"),
        (answering(info={"a": {1}}), "writing the info of step as JSON raised TypeError: .*set.*; it must hold JSON"),
        (answering(info={"a": float("inf")}), "writing the info of step as JSON raised ValueError"),
        (answering(info={"a": threading.Lock()}), "the info of step as JSON raised TypeError"),
        (answering(state_key=3), "step returned a int as state_key; it must be a str"),
        (answering(terminated="False"), "step returned terminated as a str; it must be a bool"),
        (answering(terminated=True, truncated=True), "step returned terminated=True and truncated=True"),
        (answering(reward=float("nan")), "step returned the reward nan; it must be a finite number"),
        (answering(reward="1"), "step returned the reward '1'; it must be a finite number"),
        (answering(score=2.0), "step returned the score 2; it must be between 0 and 1"),
        (lambda: VaultEnv(max_steps=14.0), "max_steps is 14.0; it must be a whole number of at least 1"),
    ],
)
def test_a_breach_is_a_sentence(make: Callable[[], TextEnv], sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_env(make, "train", sample=1)


def test_a_split_that_is_not_there_is_a_breach() -> None:
    with pytest.raises(AssertionError, match=r"its splits \(train, valid, test\) do not include 'dev'"):
        check_env(VaultEnv, "dev")


def test_breaches_travel_with_the_traceback_of_what_was_raised() -> None:
    assert find_breach(VaultEnv, VaultEnv.splits, 1) is None
    breach = find_breach(Fragile, ["valid"], 1)
    assert breach is not None
    assert breach.sentence.endswith("it must survive any string")
    assert breach.details.endswith("UnicodeError: what is that\n")
    breach = find_breach(Permissive, ["valid"], 1)
    assert breach is not None
    assert breach.details == ""


class Vast(VaultEnv):
    """A million tasks, which all begin alike."""

    made = 0

    def tasks(self, split: str) -> NumberedTasks:
        if split not in self.splits:
            return super().tasks(split)
        return Counted(f"vault-{split}-", 1_000_000)

    def _layout(self, task: str):
        if not any(task in self.tasks(split) for split in self.splits):
            return super()._layout(task)
        return self._layouts("train")[0]


class Counted(NumberedTasks):
    def __getitem__(self, index):
        Vast.made += 1
        return super().__getitem__(index)


def test_a_million_tasks_are_sampled() -> None:
    check_env(Vast, "test", sample=2)
    assert 10_000 < Vast.made < 100_000


def test_the_suite_needs_no_test_framework() -> None:
    code = "import sys, agent_envs.testing; sys.exit(bool({'pytest', '_pytest', 'jinja2', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Amnesiac(VaultEnv):
    """A snapshot that forgets how many steps were taken."""

    def restore(self, state: object) -> None:
        super().restore(state)
        self._steps = 0


def test_a_snapshot_that_forgets_is_a_breach() -> None:
    with pytest.raises(AssertionError, match="other results after restore"):
        check_env(lambda: Amnesiac(), "train", sample=1)
