"""The parts of the environment contract, and the order in which they are checked."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agent_envs.base import Reset, StepResult, TextEnv
from agent_envs.errors import EnvError, UnknownTask
from agent_envs.testing.subject import Subject, check_mapping, demand, ended, raising, short, surviving

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
"""Actions that make no sense in any environment, unless it accepts any text."""

_NOTHING_CHANGES = "what cannot be read must change nothing but the step count"

_MOST_NAMES = 10_000
"""Task ids checked per split; of a larger split, this many at even distances."""


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
    """The traceback of the environment's exception; "" if there was none."""


def find_breach(make_env: MakeEnv, splits: Sequence[str], sample: int) -> Breach | None:
    """Return the first breach in any of ``splits``, or None if the contract is kept.

    It runs the checks of ``check_env`` and returns a result that can be sent to another process.
    """
    try:
        _check(make_env, splits, sample)
    except AssertionError as error:
        cause = error.__cause__
        return Breach(str(error), "".join(traceback.format_exception(cause)) if cause is not None else "")
    return None


def _check(make_env: MakeEnv, splits: Sequence[str], sample: int) -> None:
    # All checks share two instances, because making one and listing its tasks may take long.
    first, second = Subject(make_env()), Subject(make_env())
    try:
        _check_tasks(first, second, splits)
        for split in splits:
            tasks = _first_tasks(first.env, split, sample)
            _check_ends(first, make_env, tasks[0])
            _check_truncation(first, tasks[0])
            _check_final_score(first, tasks[0])
            _check_payloads(first, tasks)
            _check_determinism(first, second, tasks)
            _check_malformed(first, second, tasks[0])
            _check_snapshots(first, second, tasks[0])
            _check_expert(first, tasks)
            _check_prompt(first, tasks[0])
    finally:
        first.env.close()
        second.env.close()


def _check_tasks(first: Subject, second: Subject, splits: Sequence[str]) -> None:
    env = first.env
    limit = env.max_steps
    whole = isinstance(limit, int) and not isinstance(limit, bool)
    demand(whole and limit >= 1, f"max_steps is {limit!r}; it must be a whole number of at least 1")
    seen: dict[str, str] = {}
    for name in env.splits:
        for task in _names(env, name, needed=name in splits):
            text = isinstance(task, str) and bool(task)
            demand(text, f"tasks({name!r}) lists {task!r}; a task id must be a str that is not empty")
            demand(task not in seen, f"task {task!r} is listed twice ({seen.get(task)}, {name}); ids must be unique")
            seen[task] = name
    for split in splits:
        demand(split in env.splits, f"its splits ({', '.join(env.splits)}) do not include {split!r}; name one of them")
        same = len(env.tasks(split)) == len(second.env.tasks(split)) and _names(env, split) == _names(second.env, split)
        demand(same, f"two instances list different tasks of split {split!r}; equal options must give equal tasks")
    strange = [name for name in _class_splits(env) if name not in env.splits]
    for name in [*strange, "no such split"]:
        with raising(UnknownTask, f"tasks({name!r})", f"{name!r} is not among its splits ({', '.join(env.splits)})"):
            env.tasks(name)
    with raising(UnknownTask, "reset('no such task', 0)", "there is no such task"):
        env.reset("no such task", 0)


def _check_ends(first: Subject, make_env: MakeEnv, task: str) -> None:
    fresh = make_env()
    try:
        with raising(EnvError, "step before the first reset", "no episode runs"):
            fresh.step("anything")
    finally:
        fresh.close()
    start = first.reset(task)
    first.step(MALFORMED[0])
    demand(first.reset(task) == start, _unequal(task, "reset in the middle of an episode"))
    _explore(first, task)
    with raising(EnvError, "step after the end of an episode", "no episode runs"):
        first.env.step("anything")
    demand(first.reset(task) == start, _unequal(task, "reset after the end of an episode"))
    first.step(MALFORMED[0])


def _check_determinism(first: Subject, second: Subject, tasks: Sequence[str]) -> None:
    """Check that two instances, one of them used before, agree on everything."""
    for task in tasks:
        start, results, actions = _explore(first, task)
        demand(second.reset(task) == start, _unequal(task, "reset in another instance"))
        for number, (action, result) in enumerate(zip(actions, results, strict=True), start=1):
            demand(
                second.step(action) == result,
                f"step {number} of task {task!r}, {short(action)}, gives different results in another instance; equal "
                "task, seed and actions must give equal results",
            )


def _check_malformed(first: Subject, second: Subject, task: str) -> None:
    """Check that an action that makes no sense changes nothing but the number of steps."""
    unread = []
    for action in MALFORMED:
        offered = first.reset(task).admissible_actions
        result = first.step(action)
        # An environment that lists no actions may accept any text.
        demand(
            not (offered and result.admissible),
            f"action {short(action)} has admissible=True, though nothing like it is listed; what cannot be read must "
            "have admissible=False",
        )
        if result.admissible:
            continue
        unread.append(action)
        demand(
            not (result.terminated or result.success),
            f"action {short(action)} ended the episode with admissible=False; {_NOTHING_CHANGES}",
        )
        demand(
            result.truncated or tuple(result.admissible_actions) == tuple(offered),
            f"action {short(action)} changed the list of actions with admissible=False; {_NOTHING_CHANGES}",
        )
    if first.env.max_steps > 1 and unread:
        _check_later_steps(first, second, task, unread)


def _check_later_steps(first: Subject, second: Subject, task: str, unread: Sequence[str]) -> None:
    """Check that sensible actions after senseless ones do the same as in an instance that got no senseless ones.

    Sensible actions are the expert's or, if there is no expert, listed ones.
    """
    limit = first.env.max_steps
    offered = second.reset(task).admissible_actions
    expert = second.expert()
    actions: list[str] = []
    clean: list[StepResult] = []
    # The other half of the steps is for actions that make no sense.
    while len(actions) < limit // 2 and (expert is not None or offered) and not (clean and ended(clean[-1])):
        actions.append(second.advice(expert) if expert is not None else offered[0])
        clean.append(second.step(actions[-1]))
        offered = clean[-1].admissible_actions
    room = limit - len(actions)
    for begin in range(0, len(unread), room):
        first.reset(task)
        for action in unread[begin : begin + room]:
            first.step(action)
        for action, result in zip(actions, clean, strict=True):
            demand(
                _effect(first.step(action)) == _effect(result),
                f"malformed actions changed what {short(action)} does in task {task!r}; {_NOTHING_CHANGES}",
            )


def _check_truncation(first: Subject, task: str) -> None:
    limit = first.env.max_steps
    results = first.play(task, MALFORMED[0])
    last = results[-1]
    if last.terminated:
        return  # It accepts any text as an action, and may end by its own rules.
    demand(
        last.truncated,
        f"task {task!r} goes on after max_steps = {limit} steps; let step {limit} return truncated=True",
    )
    demand(
        len(results) == limit,
        f"task {task!r} was truncated after {len(results)} of max_steps = {limit} steps; let max_steps be the limit",
    )


def _check_final_score(first: Subject, task: str) -> None:
    """Check that asking for the score of an unfinished episode gives a score and changes nothing."""
    if type(first.env).final_score is TextEnv.final_score:
        return
    _, results, actions = _explore(first, task)
    first.reset(task)
    for action, result in zip(actions, results, strict=True):
        with surviving("final_score()", "it must return a number or None while an episode runs"):
            score = first.env.final_score()
        demand(
            score is None or 0.0 <= score <= 1.0,
            f"final_score() returned {score!r:.60}; it must be None or a number between 0 and 1",
        )
        demand(
            first.step(action) == result,
            f"{short(action)} gives other results after final_score() in task {task!r}; asking must change nothing",
        )


def _check_payloads(first: Subject, tasks: Sequence[str]) -> None:
    for task in tasks:
        with surviving(f"task_payload({task!r})", "it must return a mapping for every task that tasks() lists"):
            payload = first.env.task_payload(task)
        check_mapping(payload, "payload", f"task_payload({task!r})")


def _check_snapshots(first: Subject, second: Subject, task: str) -> None:
    """Check that a state that went through pickling continues as the episode it was taken in, in both instances."""
    if not first.env.can_snapshot:
        return
    _, results, actions = _explore(first, task)
    half = len(actions) // 2
    first.reset(task)
    for action in actions[:half]:
        first.step(action)
    with surviving("snapshot()", "it must return a value that can be pickled while an episode runs"):
        state = pickle.dumps(first.env.snapshot())
    for subject in (second, first):
        with surviving("restore", "it must take what snapshot returned, at any time"):
            subject.env.restore(pickle.loads(state))
        for action, result in zip(actions[half:], results[half:], strict=True):
            demand(
                subject.step(action) == result,
                f"{short(action)} gives other results after restore in task {task!r}; snapshot must hold all that "
                "later results depend on",
            )


def _check_expert(first: Subject, tasks: Sequence[str]) -> None:
    for task in tasks:
        first.reset(task)
        expert = first.expert()
        if expert is None:
            return
        result: StepResult | None = None
        steps = 0
        while result is None or not ended(result):
            demand(steps < first.env.max_steps, f"task {task!r} goes on after max_steps = {steps} steps")
            action = first.advice(expert)
            result = first.step(action)
            steps += 1
            demand(
                result.admissible,
                f"the expert's action {short(action)} has admissible=False in step {steps} of task {task!r}; fix the "
                "expert, or what step says about its action",
            )
        demand(
            result.terminated and result.success and result.score == 1.0,
            f"the expert did not solve task {task!r} within {steps} steps (success {result.success}, score "
            f"{result.score:g}); raise max_steps, or fix the expert",
        )


def _check_prompt(first: Subject, task: str) -> None:
    """Check that the template uses only known variables and shows the observation."""
    # Imported here, because nothing else in this module needs more than the standard library.
    import jinja2

    same = getattr(type(first.env), "prompt", first.env.prompt) == first.env.prompt
    demand(
        same or first.env.prompt_varies,
        "an instance has another prompt than its class; set prompt_varies = True, or training uses that of the class",
    )
    start = first.reset(task)
    engine = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    past = [{"step": 0, "observation": "seen before", "action": "done before"}]
    with surviving("rendering prompt.turn", "it may use the variables that PromptTemplate names, and no others"):
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
    demand(not blind, "prompt.turn is the same for different observations; it must show {{ observation }}")


def _first_tasks(env: TextEnv, split: str, sample: int) -> list[str]:
    with surviving(f"tasks({split!r})", "it must list the tasks of each of its splits"):
        tasks = env.tasks(split)
        chosen = [tasks[number] for number in range(min(sample, len(tasks)))]
    demand(bool(chosen), f"split {split!r} has no tasks; there must be one to check the contract on")
    return chosen


def _names(env: TextEnv, split: str, needed: bool = True) -> list[str]:
    """Return the task ids of a split, or none if its data is missing and it is not ``needed``."""
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


def _explore(subject: Subject, task: str) -> tuple[Reset, list[StepResult], list[str]]:
    """Play an episode that tries different admissible actions if they are listed, and the expert's if not."""
    start = subject.reset(task)
    expert = subject.expert()
    actions: list[str] = []
    results: list[StepResult] = []
    offered = start.admissible_actions
    limit = subject.env.max_steps
    while not results or not ended(results[-1]):
        demand(
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


def _effect(result: StepResult) -> tuple[object, ...]:
    """Return the parts of a result that must not depend on the number of steps taken before."""
    ended = (result.terminated, result.success, result.score, result.reward)
    return (result.state_key, result.admissible, result.admissible_actions, *ended)


def _unequal(task: str, what: str) -> str:
    return f"{what} starts task {task!r} differently than before; equal task and seed must give equal starts"
