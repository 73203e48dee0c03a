"""The flags of ``gagpo eval``: those that it shares with training, its own, and those of policies and agents."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_gagpo import agents, machine, policies
from openrlhf_gagpo.agents.direct import DirectAgent
from openrlhf_gagpo.config.families import Family, option_family
from openrlhf_gagpo.config.flag import Disposition, Flag
from openrlhf_gagpo.config.flags import all_flags
from openrlhf_gagpo.config.parser import FlagFormatter, FlagParser, add_flag, checked, unknown
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.plugins import load_player_plugin
from openrlhf_gagpo.rollout.types import SamplingParams

if TYPE_CHECKING:
    from openrlhf_gagpo.rollout.player import RolloutSettings

__all__ = ["EvaluationConfig", "parse", "resolve"]

_B = Disposition.BOTH
_SHARED = (
    "env.name", "env.options", "env.plugin", "env.max_steps", "env.workers", "env.reset_timeout", "env.step_timeout",
    "rollout.history_length", "rollout.think", "rollout.action_tags", "rollout.list_actions", "rollout.chat_template",
    "rollout.context", "rollout.transcript_overflow", "rollout.concurrency", "rollout.max_new_tokens", "rollout.top_p",
    "data.max_len", "eval.tasks", "eval.temperature", "eval.n_samples_per_prompt",
)  # fmt: skip
"""Flags of ``gagpo train`` with the same meaning, whose values a run or a recipe can give."""
_CONCURRENCY = 32
_OWN = (
    Flag("config", str, None, _B, "run folder or recipe to take environment, prompts and sampling from; of a run, also "
         "its final model", command_line_only=True),
    Flag("out", str, None, _B, "folder of the evaluation; the same command continues in it", command_line_only=True),
    Flag("against", str, None, _B, "folder of another evaluation: show the paired difference over its tasks"),
    Flag("results", str, [], _B, "show the rows of these finished evaluations in one table, and play nothing",
         nargs="+"),
    Flag("prices", str, None, _B, "YAML file with the prices of models, for the cost"),
    Flag("retry_faulted", bool, False, _B, "play samples again that a failure of environment or policy ended"),
    Flag("plugin", str, [], _B, "file or module that registers agents or policies; may be repeated", repeatable=True),
    Flag("seed", int, 42, _B, "seed of the sampling"),
    Flag("env.split", str, None, _B, "split to play; unset: the run's evaluation split"),
)  # fmt: skip


@dataclass(frozen=True)
class EvaluationConfig:
    """A checked command line."""

    out: Path
    split: str
    tasks: int | None
    """Number of tasks, spread over the split; None for all."""
    samples: int
    seed: int
    sampling: SamplingParams
    rollout: RolloutSettings
    max_len: int
    policy: policies.PolicyEntry
    policy_options: policies.PolicyOptions
    agent: agents.AgentEntry
    agent_options: agents.AgentOptions
    against: Path | None
    prices: Path | None
    retry_faulted: bool


@dataclass(frozen=True)
class _Parsed:
    given: Mapping[str, Any]
    flags: Mapping[str, Flag]
    policies: Family
    agents: Family


def parse(argv: Sequence[str]) -> Mapping[str, Any]:
    """Return the checked values of the flags that ``argv`` sets.

    Raises:
        ConfigError: a flag is unknown or a value is wrong.
        SystemExit: after ``--help``.
    """
    return _parse(argv).given


def resolve(argv: Sequence[str]) -> EvaluationConfig | list[Path]:
    """Return the evaluation that ``argv`` describes, or the folders of the results that it asks to show.

    A value on the command line overrides that of ``--config``, which overrides the default.

    Raises:
        ConfigError: a flag is unknown, missing or does not fit the others.
        SystemExit: after ``--help``.
    """
    parsed = _parse(argv)
    given = dict(parsed.given)
    if given.get("results"):
        return [Path(name) for name in given["results"]]
    values = {name: flag.default for name, flag in parsed.flags.items() if flag.default is not None}
    values |= _inherited(given["config"], parsed.flags) if given.get("config") else {}
    if values.get("env.name") != given.get("env.name", values.get("env.name")):
        values["env.options"] = {}
    if "env.options" in given:
        given["env.options"] = {**values["env.options"], **given["env.options"]}
    values |= given

    policy = _policy(given, values)
    agent = agents.get(values["agent"])
    for family, name in ((parsed.policies, policy.name), (parsed.agents, agent.name)):
        _check_owner(family, name, given)
    if agent.make.reads_prompts and not policy.make.reads_prompts:
        raise ConfigError(f"the agent {agent.name} needs a policy that reads its prompt, which {policy.name} does not")
    if agent.make.thinks:
        for name in ("rollout.think", "rollout.action_tags"):
            if given.get(name) is False:
                raise ConfigError(f"the agent {agent.name} answers with a thought and an action in tags; keep {name}")
            values[name] = True
    if not values.get("env.name"):
        raise ConfigError("no environment is given; set --env.name (gagpo env list shows what there is) or --config")
    if not values.get("env.split"):
        raise ConfigError("no split is given; set --env.split")
    if not values.get("out"):
        raise ConfigError("no folder is given; set --out")
    if values["rollout.max_new_tokens"] >= values["data.max_len"]:
        raise ConfigError("rollout.max_new_tokens leaves no room for the prompt; raise data.max_len")
    return EvaluationConfig(
        out=Path(values["out"]),
        split=values["env.split"],
        tasks=values.get("eval.tasks"),
        samples=values["eval.n_samples_per_prompt"],
        seed=values["seed"],
        sampling=SamplingParams(values["rollout.max_new_tokens"], values["eval.temperature"], values["rollout.top_p"]),
        rollout=_rollout(values),
        max_len=values["data.max_len"],
        policy=policy,
        policy_options=_options(parsed.policies, policy.name, values),
        agent=agent,
        agent_options=_options(parsed.agents, agent.name, values),
        against=Path(values["against"]) if values.get("against") else None,
        prices=Path(values["prices"]) if values.get("prices") else None,
        retry_faulted=values["retry_faulted"],
    )


def _parse(argv: Sequence[str]) -> _Parsed:
    plugins = FlagParser(add_help=False, allow_abbrev=False)
    plugins.add_argument("--plugin", action="append", default=[])
    for plugin in plugins.parse_known_args(list(argv))[0].plugin:
        load_player_plugin(plugin)
    played = {name: policies.get(name).options_cls for name in policies.names()}
    acting = {name: agents.get(name).options_cls for name in agents.names()}
    by_policy = option_family("policy", "policy", "policy.", played)
    by_agent = option_family("agent", "agent", "agent.", acting)
    flags = {flag.name: flag for flag in _OWN}
    flags |= {name: flag for name, flag in all_flags().items() if name in _SHARED}
    chosen = {
        "policy": Flag("policy", str, None, _B, "what plays; unset: what the options of policies imply",
                       choices=tuple(played)),
        "agent": Flag("agent", str, _default_agent(), _B, "how it plays", choices=tuple(acting)),
    }  # fmt: skip
    groups: dict[str, list[Flag]] = {
        "evaluation": [flags[name] for name in flags if "." not in name or name.startswith("eval.")],
        "environment": [flags[name] for name in flags if name.startswith("env.")],
        "prompts and sampling": [flags[name] for name in flags if name.startswith(("rollout.", "data."))],
        "policy": [chosen["policy"], *by_policy.options.values()],
        "agent": [chosen["agent"], *by_agent.options.values()],
    }
    every = {flag.name: flag for group in groups.values() for flag in group}
    parser = FlagParser(
        prog="gagpo eval",
        usage="gagpo eval --out FOLDER [--config RUN_OR_RECIPE] [--FLAG VALUE ...]",
        description="Play every task of a split with a model, an endpoint, the expert or at random, and state the "
        "result with its protocol. A run that was stopped goes on where it was.",
        epilog="--a.no_b turns off the switch --a.b.",
        formatter_class=FlagFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    owners = {**by_policy.owners, **by_agent.owners}
    for title, members in groups.items():
        target = parser.add_argument_group(title)
        for flag in members:
            add_flag(target, flag, _help(flag, owners.get(flag.name, ()), (by_policy, by_agent)))
    namespace, rest = parser.parse_known_args(list(argv))
    if rest:
        raise ConfigError(unknown(rest, every, "eval"))
    return _Parsed(checked(vars(namespace), every), every, by_policy, by_agent)


def _default_agent() -> str:
    """Return the name of the agent for which checkpoints are trained."""
    return next(name for name in agents.names() if agents.get(name).make is DirectAgent)


def _help(flag: Flag, owners: Sequence[str], registered: Sequence[Family]) -> str:
    text = _HELP.get(flag.name, flag.help)
    if owners:
        text += f" [{', '.join(owners)}]"
    family = next((family for family in registered if flag.name in family.options), None)
    default = _DEFAULTS.get(flag.name, flag.default)
    if family is not None:
        default = family.defaults(owners[0])[flag.name]
    if default not in (None, [], {}, ""):
        text += f" (default {flag.show(default)})"
    return text.replace("%", "%%")


_DEFAULTS: Mapping[str, Any] = {"rollout.concurrency": _CONCURRENCY}
_HELP = {"rollout.concurrency": "episodes in flight", "rollout.top_p": "nucleus sampling threshold"}
"""What differs from training in the description of shared flags."""


def _inherited(source: str, flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Return the values that a run or a recipe gives. Raises ``ConfigError`` for one that cannot be read."""
    from openrlhf_gagpo.config import resolve as training
    from openrlhf_gagpo.runfolder import RunFolder

    run = RunFolder.open(source) if Path(source).is_dir() else None
    config = training.resolve(["--config", str(run.config_path if run else source)])
    left_alone = {"rollout.concurrency", "env.workers"}
    values = {name: config.get(name) for name in _SHARED if name not in left_alone}
    values["env.split"] = config.env.eval_split
    if run is not None and run.model_dir.is_dir():
        values["policy.model"] = str(run.model_dir)
    return {name: value for name, value in values.items() if value is not None}


def _policy(given: Mapping[str, Any], values: Mapping[str, Any]) -> policies.PolicyEntry:
    if "policy" in given:
        return policies.get(given["policy"])
    options = {name.removeprefix("policy."): value for name, value in values.items() if name.startswith("policy.")}
    entry = policies.implied(options)
    if entry is None:
        raise ConfigError(
            "nothing says what plays; set --policy.model to a folder, add --policy.base_url for an endpoint, or name a "
            f"--policy ({', '.join(policies.names())})"
        )
    return entry


def _check_owner(family: Family, name: str, given: Mapping[str, Any]) -> None:
    for flag, owners in family.owners.items():
        if flag in given and name not in owners:
            raise ConfigError(f"--{flag} is not an option of {name}; it belongs to {', '.join(owners)}")


def _options(family: Family, name: str, values: Mapping[str, Any]) -> Any:
    defaults = family.defaults(name)
    return family.build(name, {flag: values.get(flag, default) for flag, default in defaults.items()})


def _rollout(values: Mapping[str, Any]) -> RolloutSettings:
    from openrlhf_gagpo.rollout.player import RolloutSettings

    limit = {} if values.get("env.max_steps") is None else {"max_steps": values["env.max_steps"]}
    concurrency = values.get("rollout.concurrency") or _CONCURRENCY
    return RolloutSettings(
        env_name=values["env.name"],
        env_options={**values["env.options"], **limit},
        plugins=tuple(_absolute(plugin) for plugin in values["env.plugin"]),
        workers=values.get("env.workers") or max(1, min(machine.cores(), concurrency)),
        reset_timeout=values["env.reset_timeout"],
        step_timeout=values["env.step_timeout"],
        concurrency=concurrency,
        history_length=values["rollout.history_length"],
        think=values["rollout.think"],
        action_tags=values["rollout.action_tags"],
        list_actions=values["rollout.list_actions"],
        chat_template=values["rollout.chat_template"],
        max_prompt_tokens=values["data.max_len"] - values["rollout.max_new_tokens"],
        context=values["rollout.context"],
        transcript_overflow=values["rollout.transcript_overflow"],
    )


def _absolute(plugin: str) -> str:
    return str(Path(plugin).expanduser().resolve()) if plugin.endswith(".py") else plugin
