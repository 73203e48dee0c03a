"""Gymnasium environments (1.x) as text environments, by functions that say what a state looks like in words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from agent_envs.adapters.numbered import PROMPT, Counts, NumberedEnv, calling_module, check_counts, drawn
from agent_envs.base import PromptTemplate, Reset, StepResult, TextEnv
from agent_envs.declarations import Needs
from agent_envs.errors import EnvError

if TYPE_CHECKING:
    import gymnasium

__all__ = ["Moment", "from_gymnasium"]


@dataclass(frozen=True)
class Moment:
    """What gymnasium said last about the running episode."""

    env: gymnasium.Env[Any, Any]
    observation: Any
    info: Mapping[str, Any]
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False


@dataclass(frozen=True)
class _Words:
    """The arguments of ``from_gymnasium``."""

    make: Callable[[int], gymnasium.Env[Any, Any]]
    shared: bool
    counts: Counts
    names: Mapping[str, int]
    read: Callable[[str], object] | None
    text: Callable[[Moment], str]
    success: Callable[[Moment], bool]
    score: Callable[[Moment], float] | None
    state_key: Callable[[Moment], str]
    possible: Callable[[Moment], Collection[str]] | None
    instruction: str


def from_gymnasium(
    make: Callable[[int], gymnasium.Env[Any, Any]],
    *,
    tasks: Mapping[str, int],
    actions: Sequence[str] | Callable[[str], object],
    text: Callable[[Moment], str],
    success: Callable[[Moment], bool],
    score: Callable[[Moment], float] | None = None,
    state_key: Callable[[Moment], str] | None = None,
    possible: Callable[[Moment], Collection[str]] | None = None,
    instruction: str = "",
    prompt: PromptTemplate = PROMPT,
    max_steps: int = 50,
    shared: bool = False,
) -> type[TextEnv]:
    """Return a text environment that plays a gymnasium environment; give it a name with ``agent_envs.register``.

    What a task draws at its start comes from its number, which gymnasium's ``reset`` gets as its seed; what is drawn
    later comes from number and seed of the episode, through ``np_random``. An action that cannot be read is not passed
    on to gymnasium.

    Args:
        make: returns the environment of a task, given the task's number.
        tasks: split -> number of tasks. Numbers go on from split to split, so no two tasks share one.
        actions: names of the actions 0, 1, 2 and so on; or a function from the agent's words to an action, which
            returns None for words that it cannot read.
        text: words the state for the agent.
        success: whether the task is solved.
        score: how well it is solved, in [0, 1]; by default 1 for success and 0 otherwise.
        state_key: equal for equal states; by default the text.
        possible: which of the named actions the agent can take now; by default all.
        instruction: tells the agent what to do.
        prompt: words the turns.
        max_steps: default of the option of that name.
        shared: play all tasks in the environment that ``make`` returned for the first one. Only for environments that
            differ by nothing but the seed.

    Raises:
        ValueError: ``tasks`` or ``actions`` make no sense.
    """
    check_counts(tasks, "the gymnasium environment")
    named = () if callable(actions) else tuple(actions)
    names = {name.strip().casefold(): place for place, name in enumerate(named)}
    if not callable(actions) and (not names or len(names) < len(named)):
        raise ValueError(f"the actions are {list(named)!r}; give each a name of its own.")
    words = _Words(
        make=make,
        shared=shared,
        counts=dict(tasks),
        names=names,
        read=actions if callable(actions) else None,
        text=text,
        success=success,
        score=score,
        state_key=state_key or text,
        possible=possible or (None if callable(actions) else lambda moment: named),
        instruction=instruction,
    )
    limit = max_steps

    class Gymnasium(_GymnasiumEnv):
        splits = tuple(tasks)

        def __init__(self, max_steps: int = limit) -> None:
            super().__init__(max_steps)

    Gymnasium.words = words
    Gymnasium.prompt = prompt
    Gymnasium.__module__, Gymnasium.__qualname__ = calling_module(), Gymnasium.__name__
    return Gymnasium


class _GymnasiumEnv(NumberedEnv):
    needs = Needs(packages=("gymnasium",), extra="gymnasium")
    words: ClassVar[_Words]

    def __init__(self, max_steps: int) -> None:
        super().__init__(max_steps)
        self._env: gymnasium.Env[Any, Any] | None = None
        self._made_for: int | None = None
        self._moment: Moment | None = None

    def close(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _counts(self) -> Counts:
        return self.words.counts

    def _start(self, split: str, place: int, number: int, seed: int) -> Reset:
        import numpy as np

        env = self._env_of(number)
        observation, info = env.reset(seed=number)
        env.unwrapped.np_random = np.random.default_rng(drawn(number, seed))
        moment = self._moment = Moment(env, observation, info)
        return Reset(
            observation=self.words.text(moment),
            state_key=self.words.state_key(moment),
            task=self.words.instruction,
            admissible_actions=self._possible(moment),
        )

    def _act(self, action: str) -> StepResult:
        before = self._moment
        if before is None:
            raise EnvError(f"{self.name}: no episode is running; call reset before step.")
        chosen = self._read(action, before)
        if chosen is None:
            return self._result(before, 0.0, admissible=False)
        observation, reward, terminated, truncated, info = before.env.step(chosen)
        moment = Moment(before.env, observation, info, float(reward), bool(terminated), bool(truncated))
        self._moment = moment
        return self._result(moment, moment.reward, admissible=True)

    def _result(self, moment: Moment, reward: float, admissible: bool) -> StepResult:
        success = bool(self.words.success(moment))
        return StepResult(
            observation=self.words.text(moment),
            state_key=self.words.state_key(moment),
            reward=reward,
            terminated=moment.terminated,
            truncated=moment.truncated and not moment.terminated,
            admissible=admissible,
            success=success,
            score=float(success) if self.words.score is None else float(self.words.score(moment)),
            admissible_actions=self._possible(moment),
        )

    def _read(self, action: str, moment: Moment) -> object:
        """Return the action that the words stand for, or None if they cannot be read or are not possible now."""
        if self.words.read is not None:
            return self.words.read(action)
        wanted = action.strip().casefold()
        offered = {name.strip().casefold() for name in self._possible(moment)}
        return self.words.names.get(wanted) if wanted in offered else None

    def _possible(self, moment: Moment) -> tuple[str, ...]:
        return () if self.words.possible is None else tuple(self.words.possible(moment))

    def _env_of(self, number: int) -> gymnasium.Env[Any, Any]:
        if self._env is not None and (self.words.shared or self._made_for == number):
            return self._env
        self.close()
        env = self.words.make(number)
        limit = None if env.spec is None else env.spec.max_episode_steps
        if limit is not None and limit < self.max_steps:
            env.close()
            raise EnvError(
                f"{self.name}: gymnasium ends this environment after {limit} steps, before max_steps = "
                f"{self.max_steps}; set max_steps={limit}, or make it with max_episode_steps={self.max_steps}."
            )
        self._env, self._made_for = env, number
        return env
