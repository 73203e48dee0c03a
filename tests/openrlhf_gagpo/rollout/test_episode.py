from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent_envs.base import EnvError, PromptTemplate, Reset, StepResult
from agent_envs.workers import ServerLost
from openrlhf_gagpo.errors import PolicyFault, RolloutError
from openrlhf_gagpo.rollout.episode import REPLAYS, play_all, play_episode, turn_seed
from openrlhf_gagpo.rollout.prompt import PromptBuilder
from openrlhf_gagpo.rollout.records import read_episodes, write_episodes
from openrlhf_gagpo.rollout.table import Table
from openrlhf_gagpo.rollout.types import Completion, Episode, EpisodeRequest, Prompt, SamplingParams

TEMPLATE = PromptTemplate(
    turn="{% for item in history %}{{ item.observation }}>{{ item.action }};{% endfor %}{{ observation }}"
)
SAMPLING = SamplingParams(max_new_tokens=8, temperature=0.5, top_p=0.9, seed=99)


class Characters:
    """A tokenizer with one id per character."""

    chat_template = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) for character in text]


def decode(ids: Sequence[int]) -> str:
    return "".join(chr(i) for i in ids)


def prompts(**changes: Any) -> PromptBuilder:
    options: dict[str, Any] = {"history_length": 2, "max_prompt_tokens": 1000, "list_actions": True}
    return PromptBuilder(TEMPLATE, Characters(), think=False, action_tags=True, **{**options, **changes})


class ScriptedPolicy:
    """Answers with the next scripted response (the last one for ever) and remembers what it was asked."""

    def __init__(self, *responses: str) -> None:
        self.responses = list(responses) or ["<action>go</action>"]
        self.asked: list[tuple[list[int], SamplingParams]] = []

    async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
        self.asked.append((list(prompt.token_ids), params))
        response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
        await asyncio.sleep(0)
        return Completion([ord(c) for c in response], [-0.5] * len(response), "stop")


class ScriptedSession:
    """Walks s0, s1, ... for ``length`` steps; ``script`` may replace a step's result or raise."""

    def __init__(self, length: int = 3, script: dict[int, Any] | None = None, start: Any = None) -> None:
        self.length, self.script, self.start = length, script or {}, start
        self.actions: list[str] = []
        self.seed: int | None = None
        self.closed = 0

    async def reset(self, task: str, seed: int) -> Reset:
        self.seed = seed
        if isinstance(self.start, BaseException):
            raise self.start
        if self.start is not None:
            return self.start
        return Reset("o0", "s0", task=f"do {task}", admissible_actions=("go",), category="walk")

    async def step(self, action: str) -> StepResult:
        self.actions.append(action)
        number = len(self.actions)
        await asyncio.sleep(0)
        result = self.script.get(number)
        if isinstance(result, BaseException):
            raise result
        if number in self.script:
            return result
        ended = number == self.length
        return StepResult(f"o{number}", f"s{number}", float(ended), ended, False, success=ended, score=float(ended))

    async def close(self) -> None:
        self.closed += 1


def request(trajectory: str = "t0", **changes: Any) -> EpisodeRequest:
    return replace(EpisodeRequest("walk", "g0", trajectory, env_seed=5, sampling_seed=7), **changes)


def play(session: ScriptedSession, policy: Any = None, builder: PromptBuilder | None = None, **changes: Any) -> Episode:
    return asyncio.run(
        play_episode(
            request(**changes),
            session,
            policy or ScriptedPolicy(),
            builder or prompts(),
            sampling=SAMPLING,
            decode=decode,
            think=False,
            action_tags=True,
        )
    )


def play_many(requests: Sequence[EpisodeRequest], open_session: Callable[[], Any], policy: Any, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "sampling": SAMPLING,
        "decode": decode,
        "think": False,
        "action_tags": True,
        "concurrency": 4,
    }
    return play_all(requests, open_session, policy, prompts(), **{**options, **changes})


def opener(sessions: list[ScriptedSession], make: Callable[[int], ScriptedSession]) -> Callable[[], Any]:
    async def open_session() -> ScriptedSession:
        sessions.append(make(len(sessions)))
        return sessions[-1]

    return open_session


def check_identity(episode: Episode) -> None:
    assert [step.index for step in episode.steps] == list(range(len(episode.steps)))
    for step, following in zip(episode.steps, episode.steps[1:], strict=False):
        assert step.next_state_key == following.state_key
        assert not step.terminated
        assert not step.truncated


def test_a_whole_episode() -> None:
    session, policy = ScriptedSession(), ScriptedPolicy("<action>a</action>", "nonsense", "x<action>c</action>")
    episode = play(session, policy)
    check_identity(episode)
    assert (episode.task, episode.group, episode.trajectory, episode.env_seed) == ("walk", "g0", "t0", 5)
    assert session.seed == 5
    assert session.actions == [step.action for step in episode.steps] == ["a", "nonsense", "c"]
    assert [step.format_valid for step in episode.steps] == [True, False, True]
    assert [step.observation for step in episode.steps] == ["o0", "o1", "o2"]
    assert [step.state_key for step in episode.steps] == ["s0", "s1", "s2"]
    assert (episode.end_reason, episode.success, episode.score, episode.category) == ("terminated", True, 1.0, "walk")
    assert episode.steps[-1].terminated
    assert not episode.faulted
    assert episode.extra == {"final_observation": "o3", "instruction": "do walk"}
    assert decode(episode.steps[2].prompt_ids) == "o0>a;o1>nonsense;o2"
    assert episode.generation_s > 0
    assert episode.environment_s > 0
    assert session.closed == 0


def test_tokens_are_kept_as_sampled() -> None:
    class Odd(ScriptedPolicy):
        async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
            self.asked.append((list(prompt.token_ids), params))
            return Completion([103, 111, 0], [-0.1, -0.2, -0.3], "length")

    policy = Odd()
    step = play(ScriptedSession(1), policy).steps[0]
    assert (step.response_ids, step.sampling_log_probs) == ([103, 111, 0], [-0.1, -0.2, -0.3])
    assert step.prompt_ids == policy.asked[0][0]
    assert (step.response, step.finish_reason) == ("go\x00", "length")


def test_seeds_are_stable_and_differ_by_turn() -> None:
    policy = ScriptedPolicy()
    play(ScriptedSession(), policy)
    assert [params.seed for _, params in policy.asked] == [turn_seed(7, step) for step in range(3)]
    assert all(replace(params, seed=99) == SAMPLING for _, params in policy.asked)
    assert turn_seed(7, 0) == 7985665222500292864
    assert len({turn_seed(root, step) for root in range(50) for step in range(50)}) == 2500
    assert all(0 <= turn_seed(root, 0) < 2**63 for root in range(-5, 5))
    unseeded = ScriptedPolicy()
    play(ScriptedSession(), unseeded, sampling_seed=None)
    assert {params.seed for _, params in unseeded.asked} == {None}


def test_environment_truncation() -> None:
    session = ScriptedSession(9, {2: StepResult("o", "s2", 0.25, False, True, admissible=False, score=0.5)})
    episode = play(session)
    check_identity(episode)
    assert (episode.end_reason, episode.success, episode.score) == ("truncated", False, 0.5)
    assert episode.steps[-1].truncated
    assert not episode.steps[-1].admissible
    assert episode.episode_return == 0.25


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (EnvError("engine gone"), "EnvError: engine gone"),
        (TimeoutError(), "TimeoutError"),
        (StepResult("o", "s", 0.0, True, True), "EnvError: .*both terminated and truncated"),
        (StepResult("o", "s", math.nan, False, False), "EnvError: .*nan, which is not finite"),
        (StepResult("o", "s", "much", False, False), "EnvError: .*reward 'much', which is not finite"),  # type: ignore[arg-type]
        (StepResult("o", "s", 0.0, False, False, score=math.inf), "EnvError: .*score inf, which is not finite"),
        (StepResult("o", ["s"], 0.0, False, False), "EnvError: .*list as state_key: it must be a str"),  # type: ignore[arg-type]
        (StepResult(None, "s", 0.0, False, False), "EnvError: .*NoneType as observation"),  # type: ignore[arg-type]
        (StepResult("o", "s", 0.0, np.zeros(2), False), "EnvError: .*as terminated: it must be True or False"),  # type: ignore[arg-type]
        (StepResult("o", "s", 0.0, False, False, admissible_actions="go"), "EnvError: .*admissible_actions"),  # type: ignore[arg-type]
        (None, "EnvError: .*step returned a NoneType: it must return a StepResult"),
        (("o", 1.0, True, {}), "EnvError: .*step returned a tuple"),
    ],
)
def test_a_faulty_step_ends_the_episode(fault: Any, error: str) -> None:
    policy = ScriptedPolicy()
    episode = play(ScriptedSession(script={2: fault}), policy)
    check_identity(episode)
    assert episode.faulted
    assert len(episode.steps) == 1
    assert len(policy.asked) == 2
    assert re.match(error, episode.error)


def test_a_faulty_reset() -> None:
    policy = ScriptedPolicy()
    episode = play(ScriptedSession(start=EnvError("no such task")), policy)
    assert (episode.end_reason, episode.steps, policy.asked) == ("env_fault", [], [])
    assert episode.error == "EnvError: no such task"


@pytest.mark.parametrize(
    ("start", "error"),
    [
        (("o", {}), "EnvError: the environment's reset returned a tuple: it must return a Reset"),
        (Reset("o", 3), "EnvError: the environment's reset returned a int as state_key: it must be a str"),  # type: ignore[arg-type]
        (Reset("o", "s", category=None), "EnvError: the environment's reset returned a NoneType as category"),  # type: ignore[arg-type]
    ],
)
def test_a_reset_of_the_wrong_type_is_a_fault(start: Any, error: str) -> None:
    episode = play(ScriptedSession(start=start))
    assert (episode.end_reason, episode.steps) == ("env_fault", [])
    assert episode.error.startswith(error)


def test_numpy_numbers_of_an_environment_can_be_recorded(tmp_path: Path) -> None:
    result = StepResult(
        "o", "s", np.float32(0.5), np.bool_(True), np.bool_(False), np.bool_(True), np.bool_(True), np.float16(1)
    )  # type: ignore[arg-type]
    episode = play(ScriptedSession(script={1: result}))
    assert type(episode.steps[0].reward) is type(episode.score) is float
    assert type(episode.success) is type(episode.steps[0].terminated) is type(episode.steps[0].admissible) is bool
    assert (episode.end_reason, episode.steps[0].reward, episode.score) == ("terminated", 0.5, 1.0)
    write_episodes(tmp_path / "e.jsonl.gz", [episode])
    assert read_episodes(tmp_path / "e.jsonl.gz") == [episode]


def test_prompt_too_long_truncates_the_last_step() -> None:
    session, policy = (
        ScriptedSession(script={1: StepResult("o" * 50, "s1", 0.5, False, False, score=0.1)}),
        ScriptedPolicy(),
    )
    episode = play(session, policy, prompts(max_prompt_tokens=20))
    check_identity(episode)
    assert (episode.end_reason, episode.score, episode.faulted) == ("prompt_too_long", 0.1, False)
    assert episode.steps[-1].truncated
    assert episode.steps[-1].next_state_key == "s1"
    assert len(policy.asked) == 1
    assert "50 tokens" in episode.error


def test_a_first_prompt_that_cannot_fit_is_no_fault_of_the_environment() -> None:
    episode = play(ScriptedSession(), builder=prompts(max_prompt_tokens=1))
    assert (episode.end_reason, episode.faulted, episode.success) == ("prompt_too_long", False, False)
    assert not episode.steps
    assert "2 tokens" in episode.error


@pytest.mark.parametrize(("too_long", "reason"), [(False, "policy_fault"), (True, "prompt_too_long")])
def test_a_policy_without_an_answer_ends_one_episode(too_long: bool, reason: str) -> None:
    class Silent(ScriptedPolicy):
        async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
            if self.asked:
                raise PolicyFault("no answer", too_long=too_long)
            return await super().generate(prompt, params)

    episode = play(ScriptedSession(), Silent())
    assert (episode.end_reason, episode.error, len(episode.steps)) == (reason, "no answer", 1)
    # A prompt beyond the model's context is the agent's affair, like one beyond the run's limit.
    assert episode.faulted is not too_long
    assert episode.steps[-1].truncated is too_long


def test_the_history_holds_whole_responses() -> None:
    class Remembering:
        def build(self, task: str, history: Any, observation: str, actions: Any, step: int, previous: object) -> Prompt:
            seen.append([entry.response for entry in history])
            return Prompt([1], "", [])

    seen: list[list[str]] = []
    play(ScriptedSession(), ScriptedPolicy("x<action>a</action>", "nonsense"), Remembering())  # type: ignore[arg-type]
    assert seen == [[], ["x<action>a</action>"], ["x<action>a</action>", "nonsense"]]


def test_dropped_history_is_recorded() -> None:
    episode = play(ScriptedSession(), builder=prompts(max_prompt_tokens=8))
    assert [step.history_dropped for step in episode.steps] == [0, 0, 1]


def test_thinking_opened_by_the_prompt_counts() -> None:
    template = PromptTemplate(turn="{{ observation }}<think>\n")
    builder = PromptBuilder(
        template, Characters(), history_length=0, think=True, action_tags=True, list_actions=True, max_prompt_tokens=99
    )
    policy = ScriptedPolicy("so</think><action>a</action>", "<action>b</action>")
    play_it = play_episode(
        request(), ScriptedSession(2), policy, builder, sampling=SAMPLING, decode=decode, think=True, action_tags=True
    )
    assert [step.format_valid for step in asyncio.run(play_it).steps] == [True, False]


@pytest.mark.parametrize(("ids", "log_probs"), [([], []), ([1, 2], [-0.1])])
def test_a_policy_that_breaks_its_interface(ids: list[int], log_probs: list[float]) -> None:
    class Broken:
        async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
            return Completion(ids, log_probs, "stop")

    with pytest.raises(RolloutError, match="the policy"):
        play(ScriptedSession(), Broken())


def test_play_all_keeps_request_order_and_isolates_faults() -> None:
    sessions: list[ScriptedSession] = []
    done: list[str] = []

    def make(number: int) -> ScriptedSession:
        return ScriptedSession(10 - number, {1: EnvError("broken")} if number == 3 else None)

    requests = [request(f"t{i}") for i in range(8)]
    episodes = asyncio.run(
        play_many(
            requests,
            opener(sessions, make),
            ScriptedPolicy(),
            concurrency=8,
            on_done=lambda episode: done.append(episode.trajectory),
        )
    )
    assert [episode.trajectory for episode in episodes] == [f"t{i}" for i in range(8)]
    assert [len(episode.steps) for episode in episodes] == [10, 9, 8, 0, 6, 5, 4, 3]
    assert [episode.faulted for episode in episodes] == [i == 3 for i in range(8)]
    # Short episodes do not wait for long ones.
    assert done == ["t3", "t7", "t6", "t5", "t4", "t2", "t1", "t0"]
    assert all(session.closed == 1 for session in sessions)


def test_no_generation_after_the_end_and_bounded_concurrency() -> None:
    open_now, most = 0, 0

    class Counted(ScriptedSession):
        async def close(self) -> None:
            nonlocal open_now
            open_now -= 1

    async def open_session() -> Counted:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        return Counted(4)

    policy = ScriptedPolicy()
    episodes = asyncio.run(play_many([request(f"t{i}") for i in range(10)], open_session, policy, concurrency=3))
    assert len(policy.asked) == sum(len(episode.steps) for episode in episodes) == 40
    assert (open_now, most) == (0, 3)


def test_an_episode_is_not_held_up_by_a_slow_generation() -> None:
    async def scenario() -> list[Episode]:
        others_done = asyncio.Event()
        first = True

        class SlowFirst(ScriptedPolicy):
            async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
                nonlocal first
                if first:
                    first = False
                    await others_done.wait()
                return await super().generate(prompt, params)

        remaining = 3

        def on_done(episode: Episode) -> None:
            nonlocal remaining
            remaining -= 1
            if remaining == 0:
                others_done.set()

        requests = [request(f"t{i}") for i in range(4)]
        return await play_many(requests, opener([], lambda _: ScriptedSession()), SlowFirst(), on_done=on_done)

    episodes = asyncio.run(asyncio.wait_for(scenario(), 5))
    assert [len(episode.steps) for episode in episodes] == [3, 3, 3, 3]


def test_a_session_that_cannot_be_opened_faults_its_episode() -> None:
    async def open_session() -> ScriptedSession:
        raise EnvError("no worker")

    [episode] = asyncio.run(play_many([request()], open_session, ScriptedPolicy()))
    assert episode.faulted
    assert episode.error == "EnvError: no worker"


LOST = ServerLost("the fork server died")


@pytest.mark.parametrize("place", ["open", "reset", "step"])
def test_an_episode_lost_with_all_environments_is_played_again(place: str) -> None:
    first = ScriptedSession(start=LOST if place == "reset" else None, script={2: LOST} if place == "step" else None)
    opened: list[ScriptedSession] = []
    done: list[Episode] = []
    policy = ScriptedPolicy()

    async def open_session() -> ScriptedSession:
        opened.append(ScriptedSession() if opened else first)
        if place == "open" and opened == [first]:
            raise LOST
        return opened[-1]

    episodes = asyncio.run(play_many([request()], open_session, policy, on_done=done.append))
    assert episodes == done
    assert episodes[0].end_reason == "terminated"
    assert [step.index for step in episodes[0].steps] == [0, 1, 2]
    # From its beginning, with the same prompts and seeds.
    lost, again = policy.asked[:-3], policy.asked[-3:]
    assert len(lost) == len(first.actions) == (2 if place == "step" else 0)
    assert lost == again[: len(lost)]
    assert [session.closed for session in opened] == [place != "open", 1]


def test_an_episode_that_is_lost_again_and_again_is_a_fault() -> None:
    sessions: list[ScriptedSession] = []
    done: list[Episode] = []

    def make(number: int) -> ScriptedSession:
        return ScriptedSession(script={2: LOST})

    [episode] = asyncio.run(play_many([request()], opener(sessions, make), ScriptedPolicy(), on_done=done.append))
    assert done == [episode]
    assert (episode.end_reason, episode.error) == ("env_fault", "ServerLost: the fork server died")
    assert [session.closed for session in sessions] == [1] * (1 + REPLAYS)


def test_an_agents_episode_that_is_lost_with_all_environments_is_a_fault() -> None:
    """It has no other session."""
    table = Table(
        request(), ScriptedSession(script={2: LOST}), ScriptedPolicy(), prompts(), SAMPLING, decode, False, True
    )
    with pytest.raises(ServerLost):
        play(table.session)
    table.session.actions.clear()
    episode = asyncio.run(table.play(trial=1))
    assert (episode.end_reason, episode.error) == ("env_fault", "ServerLost: the fork server died")
    assert episode.trajectory == "t0.1"


def test_a_fault_while_closing_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Sticky(ScriptedSession):
        async def close(self) -> None:
            raise EnvError("stuck")

    [episode] = asyncio.run(play_many([request()], opener([], lambda _: Sticky()), ScriptedPolicy()))
    assert episode.end_reason == "terminated"
    assert "stuck" in caplog.text


def test_other_errors_name_the_episode_and_stop_the_rest() -> None:
    sessions: list[ScriptedSession] = []

    async def scenario() -> set[asyncio.Task[Any]]:
        class Failing(ScriptedPolicy):
            async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
                if len(self.asked) == 5:
                    raise KeyError("engine bug")
                return await super().generate(prompt, params)

        open_session = opener(sessions, lambda _: ScriptedSession(1000))
        with pytest.raises(
            RolloutError, match=r"episode 't\d' of task 'walk' failed: KeyError: 'engine bug'"
        ) as caught:
            await play_many([request(f"t{i}") for i in range(9)], open_session, Failing())
        assert isinstance(caught.value.__cause__, KeyError)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(scenario()) == set()
    assert 4 <= len(sessions) < 9
    assert all(session.closed == 1 for session in sessions)


def test_cancellation_closes_every_session() -> None:
    sessions: list[ScriptedSession] = []

    async def scenario() -> None:
        started = asyncio.Event()

        class Hanging(ScriptedPolicy):
            async def generate(self, prompt: Prompt, params: SamplingParams) -> Completion:
                self.asked.append((list(prompt.token_ids), params))
                if len(self.asked) == 4:
                    started.set()
                await asyncio.Event().wait()
                raise AssertionError

        requests = [request(f"t{i}") for i in range(9)]
        running = asyncio.create_task(play_many(requests, opener(sessions, lambda _: ScriptedSession()), Hanging()))
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(scenario())
    assert len(sessions) == 4
    assert all(session.closed == 1 for session in sessions)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="concurrency is 0"):
        asyncio.run(play_many([], opener([], lambda _: ScriptedSession()), ScriptedPolicy(), concurrency=0))
    with pytest.raises(ValueError, match="share their group and trajectory"):
        asyncio.run(play_many([request(), request()], opener([], lambda _: ScriptedSession()), ScriptedPolicy()))


def test_no_requests() -> None:
    assert asyncio.run(play_many([], opener([], lambda _: ScriptedSession()), ScriptedPolicy())) == []


def test_tags_of_several_names_reach_the_environment() -> None:
    sessions: list[ScriptedSession] = []
    policy = ScriptedPolicy("<search>a</search><answer>b</answer>", "<action>c</action>", "answer d")
    (episode,) = asyncio.run(
        play_many([request()], opener(sessions, lambda _: ScriptedSession()), policy, tag_names=("search", "answer"))
    )
    assert sessions[0].actions == ["<search>a</search>", "<action>c</action>", "answer d"]
    assert [step.format_valid for step in episode.steps] == [True, False, False]
