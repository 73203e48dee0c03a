"""What every environment has to keep to, as checks that any environment's tests can call.

``check_env`` raises ``AssertionError`` with a sentence that says what the environment did and what is asked of it. It
needs no test framework.
"""

from __future__ import annotations

import json
import math
import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real

from agent_envs.base import Expert, Reset, StepResult, TextEnv
from agent_envs.errors import EnvError, UnknownTask

__all__ = ["Breach", "check_env", "find_breach"]

MakeEnv = Callable[[], TextEnv]

MALFORMED = (
    "no such action",
    "",
    "   ",
    "\n\t\r",
    "\x00\x01\x1b[31m\x7f",
    "go " * 3,
    "九尾の狐 \N{FIRE} \u202e\u0661\u0662",
    "\ud800",
    "<action>go</action>",
    "%s {0} {{ x }} \\",
    "x" * 200_000,
)
"""Actions that make no sense anywhere, except where an environment takes any text."""

_NOTHING_CHANGES = "what cannot be read must change nothing but the step count"

_SEED = 7
_MOST_NAMES = 10_000
"""Names looked at per split; of more, these many at even distances."""


def check_env(make_env: MakeEnv, split: str, sample: int = 5) -> None:
    """Check the contract in ``TextEnv``'s docstring on up to ``sample`` tasks of ``split``.

    ``make_env`` is called several times; each call has to return a new instance with the same options. Raises
    ``AssertionError``.
    """
    _check(make_env, (split,), sample)


@dataclass(frozen=True)
class Breach:
    """How an environment breaks the contract."""

    sentence: str
    details: str
    """The traceback of what it raised; "" where it raised nothing."""


def find_breach(make_env: MakeEnv, splits: Sequence[str], sample: int) -> Breach | None:
    """The first breach in any of ``splits``; None where the contract is kept.

    What ``check_env`` does, for callers in another process.
    """
    try:
        _check(make_env, splits, sample)
    except AssertionError as error:
        cause = error.__cause__
        return Breach(str(error), "".join(traceback.format_exception(cause)) if cause is not None else "")
    return None


def _check(make_env: MakeEnv, splits: Sequence[str], sample: int) -> None:
    # Two instances for all of it: making one and listing its tasks may take long.
    first, second = _Subject(make_env()), _Subject(make_env())
    try:
        _check_tasks(first, second, splits)
        for split in splits:
            tasks = _first_tasks(first.env, split, sample)
            _check_ends(first, make_env, tasks[0])
            _check_truncation(first, tasks[0])
            _check_determinism(first, second, tasks)
            _check_malformed(first, second, tasks[0])
            _check_expert(first, tasks)
            _check_prompt(first, tasks[0])
    finally:
        first.env.close()
        second.env.close()


class _Subject:
    """An instance under test; whatever it answers is checked, and whatever it raises becomes a sentence."""

    def __init__(self, env: TextEnv) -> None:
        self.env = env

    def reset(self, task: str) -> Reset:
        with _surviving(f"reset({task!r}, {_SEED})", "it must start every task that tasks() lists"):
            start = self.env.reset(task, _SEED)
        _check_answer(start, Reset, "reset", ("observation", "state_key", "task", "category"))
        _check_pickling(start, "reset")
        return start

    def step(self, action: str) -> StepResult:
        with _surviving(f"step({_short(action)})", "while an episode runs it must survive any string"):
            result = self.env.step(action)
        _check_answer(result, StepResult, "step", ("observation", "state_key"))
        _check_outcome(result)
        _check_pickling(result, "step")
        return result

    def expert(self) -> Expert | None:
        with _surviving("expert()", "it must return None where there is no expert"):
            return self.env.expert()

    def advice(self, expert: Expert) -> str:
        with _surviving("the expert", "it must know an action while an episode runs"):
            action = expert()
        _demand(isinstance(action, str), f"the expert returned a {type(action).__name__}; its actions must be str")
        return action

    def play(self, task: str, action: str) -> list[StepResult]:
        """An episode of nothing but ``action``, to its end or the step limit."""
        self.reset(task)
        results: list[StepResult] = []
        while len(results) < self.env.max_steps and not (results and _ended(results[-1])):
            results.append(self.step(action))
        return results


def _check_tasks(first: _Subject, second: _Subject, splits: Sequence[str]) -> None:
    env = first.env
    limit = env.max_steps
    whole = isinstance(limit, int) and not isinstance(limit, bool)
    _demand(whole and limit >= 1, f"max_steps is {limit!r}; it must be a whole number of at least 1")
    seen: dict[str, str] = {}
    for name in env.splits:
        for task in _names(env, name, needed=name in splits):
            text = isinstance(task, str) and bool(task)
            _demand(text, f"tasks({name!r}) lists {task!r}; a task id must be a str that is not empty")
            _demand(task not in seen, f"task {task!r} is listed twice ({seen.get(task)}, {name}); ids must be unique")
            seen[task] = name
    for split in splits:
        _demand(split in env.splits, f"its splits ({', '.join(env.splits)}) do not hold {split!r}; name one of them")
        same = len(env.tasks(split)) == len(second.env.tasks(split)) and _names(env, split) == _names(second.env, split)
        _demand(same, f"two instances list other tasks of split {split!r}; equal options must give equal tasks")
    strange = [name for name in _class_splits(env) if name not in env.splits]
    for name in [*strange, "no such split"]:
        with _raising(UnknownTask, f"tasks({name!r})", f"{name!r} is not among its splits ({', '.join(env.splits)})"):
            env.tasks(name)
    with _raising(UnknownTask, "reset('no such task', 0)", "there is no such task"):
        env.reset("no such task", 0)


def _check_ends(first: _Subject, make_env: MakeEnv, task: str) -> None:
    fresh = make_env()
    try:
        with _raising(EnvError, "step before the first reset", "no episode runs"):
            fresh.step("anything")
    finally:
        fresh.close()
    start = first.reset(task)
    first.step(MALFORMED[0])
    _demand(first.reset(task) == start, _unequal(task, "reset in the middle of an episode"))
    _explore(first, task)
    with _raising(EnvError, "step after the end of an episode", "no episode runs"):
        first.env.step("anything")
    _demand(first.reset(task) == start, _unequal(task, "reset after the end of an episode"))
    first.step(MALFORMED[0])


def _check_determinism(first: _Subject, second: _Subject, tasks: Sequence[str]) -> None:
    """Two instances, one of them used before, agree on everything."""
    for task in tasks:
        start, results, actions = _explore(first, task)
        _demand(second.reset(task) == start, _unequal(task, "reset in another instance"))
        for number, (action, result) in enumerate(zip(actions, results, strict=True), start=1):
            _demand(
                second.step(action) == result,
                f"step {number} of task {task!r}, {_short(action)}, gives other results in another instance; equal "
                "task, seed and actions must give equal results",
            )


def _check_malformed(first: _Subject, second: _Subject, task: str) -> None:
    """An action that makes no sense changes nothing but the number of steps."""
    unread = []
    for action in MALFORMED:
        offered = first.reset(task).admissible_actions
        result = first.step(action)
        # Where nothing is listed, an environment may take any text for an action.
        _demand(
            not (offered and result.admissible),
            f"action {_short(action)} has admissible=True, though nothing like it is listed; what cannot be read must "
            "have admissible=False",
        )
        if result.admissible:
            continue
        unread.append(action)
        _demand(
            not (result.terminated or result.success),
            f"action {_short(action)} ended the episode with admissible=False; {_NOTHING_CHANGES}",
        )
        _demand(
            result.truncated or tuple(result.admissible_actions) == tuple(offered),
            f"action {_short(action)} changed the list of actions with admissible=False; {_NOTHING_CHANGES}",
        )
    if first.env.max_steps > 1 and unread:
        _check_later_steps(first, second, task, unread)


def _check_later_steps(first: _Subject, second: _Subject, task: str, unread: Sequence[str]) -> None:
    """After actions that make no sense, sensible ones do what they do in an instance that saw none.

    Sensible are the expert's actions and, where there is no expert, listed ones.
    """
    limit = first.env.max_steps
    offered = second.reset(task).admissible_actions
    expert = second.expert()
    actions: list[str] = []
    clean: list[StepResult] = []
    # The other half of the steps is for actions that make no sense.
    while len(actions) < limit // 2 and (expert is not None or offered) and not (clean and _ended(clean[-1])):
        actions.append(second.advice(expert) if expert is not None else offered[0])
        clean.append(second.step(actions[-1]))
        offered = clean[-1].admissible_actions
    room = limit - len(actions)
    for begin in range(0, len(unread), room):
        first.reset(task)
        for action in unread[begin : begin + room]:
            first.step(action)
        for action, result in zip(actions, clean, strict=True):
            _demand(
                _effect(first.step(action)) == _effect(result),
                f"malformed actions changed what {_short(action)} does in task {task!r}; {_NOTHING_CHANGES}",
            )


def _check_truncation(first: _Subject, task: str) -> None:
    limit = first.env.max_steps
    results = first.play(task, MALFORMED[0])
    last = results[-1]
    if last.terminated:
        return  # It takes any text for an action, and may end by its own rules.
    _demand(
        last.truncated,
        f"task {task!r} goes on after max_steps = {limit} steps; let step {limit} return truncated=True",
    )
    _demand(
        len(results) == limit,
        f"task {task!r} was truncated after {len(results)} of max_steps = {limit} steps; let max_steps be the limit",
    )


def _check_expert(first: _Subject, tasks: Sequence[str]) -> None:
    for task in tasks:
        first.reset(task)
        expert = first.expert()
        if expert is None:
            return
        result: StepResult | None = None
        steps = 0
        while result is None or not _ended(result):
            _demand(steps < first.env.max_steps, f"task {task!r} goes on after max_steps = {steps} steps")
            action = first.advice(expert)
            result = first.step(action)
            steps += 1
            _demand(
                result.admissible,
                f"the expert's action {_short(action)} has admissible=False in step {steps} of task {task!r}; mend the "
                "expert, or what step tells of it",
            )
        _demand(
            result.terminated and result.success and result.score == 1.0,
            f"the expert did not solve task {task!r} within {steps} steps (success {result.success}, score "
            f"{result.score:g}); raise max_steps, or mend the expert",
        )


def _check_prompt(first: _Subject, task: str) -> None:
    """The template uses known variables only and shows the observation."""
    # Late: nothing else here needs more than the standard library.
    import jinja2

    start = first.reset(task)
    engine = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    past = [{"step": 0, "observation": "seen before", "action": "done before"}]
    with _surviving("rendering prompt.turn", "it may use the variables that PromptTemplate names, and no others"):
        turn = engine.from_string(first.env.prompt.turn)
        shown = [
            turn.render(
                task=start.task,
                observation=observation,
                history=history,
                admissible_actions=list(start.admissible_actions),
                step=len(history),
                think=tags,
                action_tags=tags,
            )
            for history in ([], past)
            for tags in (False, True)
            for observation in (start.observation, f"{start.observation} and more")
        ]
    blind = any(one == other for one, other in zip(shown[::2], shown[1::2], strict=True))
    _demand(not blind, "prompt.turn is the same for different observations; it must show {{ observation }}")


def _first_tasks(env: TextEnv, split: str, sample: int) -> list[str]:
    with _surviving(f"tasks({split!r})", "it must list the tasks of each of its splits"):
        tasks = env.tasks(split)
        chosen = [tasks[number] for number in range(min(sample, len(tasks)))]
    _demand(bool(chosen), f"split {split!r} has no tasks; there must be one to check the contract on")
    return chosen


def _names(env: TextEnv, split: str, needed: bool = True) -> list[str]:
    """Names of a split; none where its data is not there and it is not ``needed``."""
    try:
        tasks = env.tasks(split)
    except UnknownTask as error:
        raise AssertionError(f"tasks({split!r}) raised UnknownTask, though {split!r} is among its splits") from error
    except (EnvError, ValueError):
        if needed:
            raise
        return []
    places = range(0, len(tasks), max(1, len(tasks) // _MOST_NAMES))
    return [tasks[place] for place in places]


def _class_splits(env: TextEnv) -> tuple[str, ...]:
    return tuple(getattr(type(env), "splits", ()))


def _explore(subject: _Subject, task: str) -> tuple[Reset, list[StepResult], list[str]]:
    """An episode that tries different admissible actions where they are listed, and the expert's where not."""
    start = subject.reset(task)
    expert = subject.expert()
    actions: list[str] = []
    results: list[StepResult] = []
    offered = start.admissible_actions
    limit = subject.env.max_steps
    while not results or not _ended(results[-1]):
        _demand(
            len(results) < limit,
            f"task {task!r} goes on after max_steps = {limit} steps; let step {limit} return truncated=True",
        )
        if offered:
            actions.append(offered[(3 * len(actions) + 1) % len(offered)])
        else:
            actions.append(subject.advice(expert) if expert is not None else MALFORMED[0])
        results.append(subject.step(actions[-1]))
        offered = results[-1].admissible_actions
    return start, results, actions


def _check_answer(answer: object, kind: type[Reset | StepResult], method: str, texts: Sequence[str]) -> None:
    if not isinstance(answer, kind):
        raise AssertionError(f"{method} returned a {type(answer).__name__}; it must return a {kind.__name__}")
    for name in texts:
        text = getattr(answer, name)
        _demand(isinstance(text, str), f"{method} returned a {type(text).__name__} as {name}; it must be a str")
    actions = answer.admissible_actions
    listed = isinstance(actions, tuple | list) and all(isinstance(action, str) for action in actions)
    _demand(listed, f"{method} returned {actions!r:.60} as admissible_actions; they must be a tuple of str")
    _check_info(answer.info, method)


def _check_pickling(answer: Reset | StepResult, method: str) -> None:
    with _surviving(f"pickling what {method} returned", "answers travel between processes"):
        copy = pickle.loads(pickle.dumps(answer))
    _demand(copy == answer, f"what {method} returned is changed by pickling; answers travel between processes")


def _check_info(info: object, method: str) -> None:
    named = isinstance(info, Mapping) and all(isinstance(key, str) for key in info)
    _demand(named, f"{method} returned the info {info!r:.60}; it must be a mapping with str as keys")
    with _surviving(f"writing the info of {method} as JSON", "it must hold JSON values only, and no infinite number"):
        json.dumps(dict(info) if isinstance(info, Mapping) else info, allow_nan=False)


def _check_outcome(result: StepResult) -> None:
    for name in ("terminated", "truncated", "admissible", "success"):
        switch = getattr(result, name)
        # A bool of numpy will do.
        plain = isinstance(switch, bool) or getattr(getattr(switch, "dtype", None), "kind", "") == "b"
        _demand(plain, f"step returned {name} as a {type(switch).__name__}; it must be a bool")
    _demand(
        not (result.terminated and result.truncated),
        "step returned terminated=True and truncated=True; the task's own end comes first, so leave truncated False",
    )
    for name in ("reward", "score"):
        number = getattr(result, name)
        finite = isinstance(number, Real) and math.isfinite(number)
        _demand(finite, f"step returned the {name} {number!r:.60}; it must be a finite number")
    _demand(0.0 <= result.score <= 1.0, f"step returned the score {result.score:g}; it must be between 0 and 1")


def _effect(result: StepResult) -> tuple[object, ...]:
    """What may not depend on the number of steps taken before."""
    ended = (result.terminated, result.success, result.score, result.reward)
    return (result.state_key, result.admissible, result.admissible_actions, *ended)


def _ended(result: StepResult) -> bool:
    return bool(result.terminated or result.truncated)


def _demand(kept: bool, sentence: str) -> None:
    if not kept:
        raise AssertionError(sentence)


@contextmanager
def _surviving(what: str, asked: str) -> Iterator[None]:
    try:
        yield
    # SystemExit too: engines written as programs call sys.exit.
    except (Exception, SystemExit) as error:
        raise AssertionError(f"{what} raised {_described(error)}; {asked}") from error


@contextmanager
def _raising(kind: type[EnvError], what: str, why: str) -> Iterator[None]:
    try:
        yield
    except kind:
        return
    except Exception as error:
        raise AssertionError(
            f"{what} raised {_described(error)}; it must raise {kind.__name__}, since {why}"
        ) from error
    raise AssertionError(f"{what} raised nothing; it must raise {kind.__name__}, since {why}")


def _unequal(task: str, what: str) -> str:
    return f"{what} starts task {task!r} otherwise than before; equal task and seed must give equal starts"


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(".")


def _short(action: str) -> str:
    return repr(action if len(action) <= 40 else f"{action[:40]}...")
