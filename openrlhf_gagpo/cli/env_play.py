"""Play one episode by hand in a terminal, or from piped input."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.columns import Columns
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from agent_envs.base import Expert, StepResult, TextEnv
from agent_envs.errors import EnvError
from openrlhf_gagpo.cli.env_access import made, refusals
from openrlhf_gagpo.errors import ConfigError, RunError
from openrlhf_gagpo.report.visible import visible

__all__ = ["play"]

_HELP = "Type a number from the list or an action in words; ? asks the expert, quit ends."
_NO_WORDS = "That action needs words; choose again."


def play(
    name: str,
    options: Mapping[str, Any],
    *,
    task: str | None = None,
    split: str | None = None,
    index: int | None = None,
    seed: int = 0,
) -> None:
    """Play ``task``, or task ``index`` of ``split``, until its end, ``quit`` or the end of the input.

    Raises:
        ConfigError: there is no such environment, option, split or task.
        RunError: the environment failed during the episode.
    """
    console = Console(highlight=False)
    with made(name, options) as env:
        chosen = task if task is not None else _pick(env, name, split or env.splits[0], index or 0)
        with refusals():
            start = env.reset(chosen, seed)
        _show(console, f"{name}, task {chosen}, seed {seed}, at most {env.max_steps} steps", "bold")
        if start.task and start.task not in start.observation:
            _show(console, start.task)
        _show(console, _HELP, "dim")
        try:
            _play(env, start.observation, start.admissible_actions, console)
        except EnvError as error:
            raise RunError(f"environment {name!r} failed: {str(error).rstrip('.')}") from error


def _pick(env: TextEnv, name: str, split: str, index: int) -> str:
    with refusals():
        tasks = env.tasks(split)
    if not tasks:
        raise ConfigError(f"split {split!r} of {name} has no tasks; choose another --split or check --env.options")
    if not 0 <= index < len(tasks):
        raise ConfigError(f"--index is {index}, but split {split!r} of {name} has tasks 0 to {len(tasks) - 1}")
    return tasks[index]


def _play(env: TextEnv, observation: str, offered: Sequence[str], console: Console) -> None:
    expert = env.expert()
    steps, earned = 0, 0.0
    while True:
        console.print(Rule(f"step {steps}", align="left", style="dim", characters="-"))
        _show(console, observation)
        if offered:
            listed = [Text(visible(f"{number} {action}")) for number, action in enumerate(offered, start=1)]
            console.print(Columns(listed, padding=(0, 3)), style="cyan")
        action = _ask(console, offered, env.placeholders, expert)
        if action is None:
            _show(console, f"stopped after {steps} steps, return {earned:g}")
            return
        result = env.step(action)
        steps += 1
        earned += result.reward
        if not result.admissible:
            _show(console, "not possible here", "yellow")
        if result.reward:
            _show(console, f"reward {result.reward:g}", "green")
        if result.terminated or result.truncated:
            _show(console, result.observation)
            _show(console, f"{_outcome(result)} after {steps} steps, return {earned:g}, score {result.score:g}", "bold")
            return
        observation, offered = result.observation, result.admissible_actions


def _ask(console: Console, offered: Sequence[str], placeholders: Sequence[str], expert: Expert | None) -> str | None:
    """Return the player's action, or None when they stop."""
    while True:
        line = _read(console, "> ")
        if line is None or line in ("quit", "exit"):
            return None
        if line == "?":
            _show(console, _hint(expert), "dim")
        elif line.isdecimal() and 1 <= int(line) <= len(offered):
            action = _filled(console, offered[int(line) - 1], placeholders)
            if action:
                return action
            _show(console, _NO_WORDS, "dim")
        elif line:
            return line
        else:
            _show(console, _HELP, "dim")


def _filled(console: Console, action: str, placeholders: Sequence[str]) -> str:
    """Return ``action`` with the player's words in place of each placeholder; "" if they give none."""
    for placeholder in placeholders:
        if placeholder in action:
            words = _read(console, f"{placeholder} ")
            if not words:
                return ""
            action = action.replace(placeholder, words)
    return action


def _read(console: Console, prompt: str) -> str | None:
    """Read a line of input; return None at its end."""
    try:
        line = console.input(Text(prompt)).strip()
    except EOFError:
        console.print()
        return None
    if not sys.stdin.isatty():
        # A terminal echoes what is typed, but piped input would be missing from the output.
        _show(console, line)
    return line


def _show(console: Console, text: str, style: str = "") -> None:
    # Printed as text, not markup, because an environment's words may contain square brackets.
    console.print(Text(visible(text), style=style), soft_wrap=not console.is_terminal)


def _hint(expert: Expert | None) -> str:
    if expert is None:
        return "this environment has no expert"
    try:
        return f"the expert would: {expert()}"
    except EnvError as error:
        return f"the expert does not know: {error}"


def _outcome(result: StepResult) -> str:
    if result.success:
        return "success"
    return "failure" if result.terminated else "step limit reached"
