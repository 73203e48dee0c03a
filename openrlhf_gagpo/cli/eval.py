"""``gagpo eval``: play every task of a split with any policy, and state the result with its protocol."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.cli.env_access import load_plugins, made, refusals
from openrlhf_gagpo.cli.main import guarded
from openrlhf_gagpo.config.evaluating import EvaluationConfig, resolve
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.output import LibraryOutput
from openrlhf_gagpo.policies import PolicySetting, PolicySource
from openrlhf_gagpo.report.visible import visible

if TYPE_CHECKING:
    from rich.console import Console

    from openrlhf_gagpo.agents import Agent
    from openrlhf_gagpo.evaluation import EvaluationPlan
    from openrlhf_gagpo.evaluation.session import Session
    from openrlhf_gagpo.rollout.prompt import PromptBuilder, ResolvedPrompt

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit status, 130 after Ctrl-C. Raises ``GagpoError`` for unusable input."""
    given = resolve(argv)
    # Environments' packages may change it.
    command = list(sys.argv)
    if isinstance(given, list):
        _show(given, _console(sys.stdout))
        return 0
    with LibraryOutput() as libraries:
        return _evaluate(given, command, _console(libraries.terminal), libraries)


def _console(stream: IO[str]) -> Console:
    from rich.console import Console

    # Rows are wide, and a file has no width.
    return Console(file=stream, highlight=False, soft_wrap=True)


def _show(folders: Sequence[Path], console: Console) -> None:
    from openrlhf_gagpo.evaluation.rows import table
    from openrlhf_gagpo.evaluation.store import EvaluationFolder

    console.print(table([EvaluationFolder(folder).result() for folder in folders]), markup=False, end="")


def _evaluate(config: EvaluationConfig, command: Sequence[str], console: Console, libraries: LibraryOutput) -> int:
    from openrlhf_gagpo.evaluation.prices import read_price
    from openrlhf_gagpo.evaluation.protocol import environment_facts, settings_of
    from openrlhf_gagpo.evaluation.result import check_comparable
    from openrlhf_gagpo.evaluation.samples import Kit
    from openrlhf_gagpo.evaluation.session import Session
    from openrlhf_gagpo.evaluation.store import EvaluationFolder
    from openrlhf_gagpo.rollout.player import prompt_builder

    other = EvaluationFolder(config.against).result() if config.against else None
    source = _source(config)
    price = read_price(config.prices, source.label) if config.prices else None
    agent = config.agent.make(config.agent_options)
    load_plugins(config.rollout.plugins)
    with made(config.rollout.env_name, config.rollout.env_options) as env, refusals():
        plan = _plan(config, env.tasks(config.split))
        source.check(env, plan.tasks[0])
        environment = environment_facts(env, config.rollout, plan)
    prompts = prompt_builder(config.rollout, source.tokenizer)
    prompt = _wording(prompts, agent)
    settings = settings_of(environment, config.rollout, plan, prompt, _player(config, source))
    if other is not None:
        check_comparable(settings, other["settings"])
    kit = Kit(agent, source, prompts, config.rollout, config.sampling)
    session = Session(EvaluationFolder(config.out), plan, kit, source, source.label or config.policy.name, price)
    with session.folder.claim(settings, _about(config, command), prompt.text):
        libraries.keep(session.folder.log_path)
        if not _play(session, config, console):
            return 130
        result = session.conclude()
    _report(result, session, console)
    if other is not None:
        _compare(result, other, console)
    return 0


def _source(config: EvaluationConfig) -> PolicySource:
    from openrlhf_gagpo.rollout.player import tag_names

    rollout = config.rollout
    with refusals():
        names = tag_names(rollout)
    setting = PolicySetting(
        rollout.think, rollout.action_tags, rollout.chat_template, config.max_len, config.seed, names
    )
    return config.policy.make(config.policy_options, setting)


def _plan(config: EvaluationConfig, tasks: Sequence[str]) -> EvaluationPlan:
    from openrlhf_gagpo.evaluation import EvaluationPlan, spread

    if not tasks:
        raise ConfigError(f"split {config.split!r} of {config.rollout.env_name} has no tasks; check env.options")
    chosen = spread(tasks, config.tasks)
    return EvaluationPlan(config.split, chosen, config.samples, config.sampling, config.seed)


def _wording(prompts: PromptBuilder, agent: Agent) -> ResolvedPrompt:
    """Return the prompts' wording with what the agent adds to it."""
    prompt = prompts.resolved()
    return prompt.extended("agent", agent.wording()) if agent.wording() else prompt


def _player(config: EvaluationConfig, source: PolicySource) -> dict[str, object]:
    options = config.policy_options
    kept = {item.name: getattr(options, item.name) for item in fields(options) if item.name not in options.operational}
    return {
        "policy": config.policy.name,
        "policy_options": kept,
        "policy_facts": source.facts(),
        "agent": config.agent.name,
        "agent_options": asdict(config.agent_options),
    }


def _about(config: EvaluationConfig, command: Sequence[str]) -> dict[str, object]:
    from agent_envs import registry
    from openrlhf_gagpo.runfolder import git_commit, package_versions

    options = config.policy_options
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "working_folder": os.getcwd(),
        "git_commit": git_commit(),
        "python": sys.version.split()[0],
        "packages": package_versions(registry.get(config.rollout.env_name).needs.packages),
        "policy_operation": {name: getattr(options, name) for name in sorted(options.operational)},
        "concurrency": config.rollout.concurrency,
    }


def _play(session: Session, config: EvaluationConfig, console: Console) -> bool:
    """Play what is missing; return False if it was interrupted."""
    from openrlhf_gagpo.interrupts import terminate_as_interrupt
    from openrlhf_gagpo.progress import ProgressDisplay

    requests = session.open_requests(retry_faulted=config.retry_faulted)
    display = ProgressDisplay(0, console)
    total = len(session.plan.tasks) * session.plan.samples
    display.note(f"evaluation {session.folder.path}: {len(requests)} of {total} samples to play")
    try:
        with terminate_as_interrupt(), display:
            display.phase(0, "playing", len(requests))
            session.play(requests, lambda sample: display.episode(sample.episode))
    except KeyboardInterrupt:
        display.note("interrupted; the same command goes on with the samples that are missing")
        return False
    return True


def _report(result: Mapping[str, Any], session: Session, console: Console) -> None:
    from openrlhf_gagpo.evaluation.rows import table

    console.print(table([result]), markup=False, end="")
    categories = result["numbers"]["categories"]
    for name, entry in categories.items():
        success = entry["success"]
        console.print(
            f"{visible(name)}: success {success['mean']:.3f} [{success['low']:.3f}, {success['high']:.3f}] on "
            f"{entry['tasks']} tasks",
            markup=False,
        )
    console.print(f"result: {session.folder.result_path}", markup=False)


def _compare(result: Mapping[str, Any], other: Mapping[str, Any], console: Console) -> None:
    from openrlhf_gagpo.evaluation.result import differences
    from openrlhf_gagpo.evaluation.rows import difference_lines

    found = differences(result["settings"], result["numbers"], other["settings"], other["numbers"])
    for line in difference_lines(found):
        console.print(line, markup=False)


if __name__ == "__main__":
    hygiene.apply()
    sys.exit(guarded(main, sys.argv[1:]))
