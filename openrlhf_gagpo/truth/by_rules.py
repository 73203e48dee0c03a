"""Exact truths at the steps of a run, by the rules of its environment and its policy's distribution over responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent_envs import registry
from agent_envs.base import TextEnv, View
from agent_envs.errors import EnvError
from openrlhf_gagpo.comparison.compute import Credit
from openrlhf_gagpo.comparison.steps import Source, Steps
from openrlhf_gagpo.config.reading import env_options
from openrlhf_gagpo.config.resolve import Config
from openrlhf_gagpo.config.settings import rollout_settings
from openrlhf_gagpo.credit.sets import Floats
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.rollout.player import prompt_builder, tag_names
from openrlhf_gagpo.rollout.prompt import PromptBuilder
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.truth.exact import ExactValues, Node, Replies, Rules, explore
from openrlhf_gagpo.truth.played import Played, read_played, replay
from openrlhf_gagpo.truth.policy import LoadedPolicy, load_policy
from openrlhf_gagpo.truth.replies import ReplyReader
from openrlhf_gagpo.truth.scores import Findings, Truth

__all__ = ["truths_by_rules"]


@dataclass(frozen=True)
class _Part:
    """One iteration: the truths at its steps, and the gradients under all columns of weights."""

    truths: Sequence[Truth]
    products: Floats
    missed: float


def truths_by_rules(
    run: RunFolder,
    config: Config,
    source: Source,
    credits: Sequence[Credit],
    gammas: Sequence[float],
    model: Path | None,
) -> Findings:
    """Compute V and the advantage of every step, and the cosines between the policy gradients of credit and truth.

    The arguments are those of ``referee.judge``.

    Raises:
        ConfigError: the run's settings have no exact truth, its environment offers no rules, or the weights are not
            those that played.
    """
    _check_settings(config)
    env = _environment(config)
    try:
        rules = _rules(config, env)
        parts = []
        start = 0
        for steps in source.parts:
            chosen = slice(start, start + len(steps))
            parts.append(_part(run, config, rules, steps, [_cut(credit, chosen) for credit in credits], gammas, model))
            start += len(steps)
    finally:
        env.close()
    truths = [_joined([part.truths[number] for part in parts]) for number in range(len(gammas))]
    missed = max(part.missed for part in parts)
    worst = max((float(truth.value_error.max()) for truth in truths), default=0.0)
    note = (
        f"responses with a probability of at most {missed:.2g} in any state were not enumerated and count as "
        f"unrecognised actions; no true value is off by more than {worst:.2g}"
    )
    return Findings(truths, note, _cosines([part.products for part in parts], len(credits), len(truths)))


def _check_settings(config: Config) -> None:
    """Refuse runs whose prompts do not show the state alone, or whose responses cannot be enumerated."""
    reasons = {
        "--rollout.context is transcript, so that prompts depend on the past": config.rollout.context == "transcript",
        "--rollout.history_length is not 0, so that prompts depend on the past": config.rollout.history_length != 0,
        "--rollout.think is set, so that responses cannot be enumerated": config.rollout.think,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(
                f"--truth has no exact values for this run: {reason}; estimate them with --continuations, or train "
                "with --rollout.context window, --rollout.history_length 0 and --rollout.no_think"
            )


def _environment(config: Config) -> TextEnv:
    try:
        for plugin in config.env.plugin:
            registry.load_plugin(plugin)
        return registry.make(config.env.name, **env_options(config))
    except (EnvError, ValueError) as error:
        raise ConfigError(str(error).rstrip(".")) from error


def _rules(config: Config, env: TextEnv) -> Rules:
    model = env.model()
    if model is None:
        raise ConfigError(
            f"environment {config.env.name} offers no rules to compute exact values with; estimate them with "
            "--continuations, or take an environment whose model() returns rules"
        )
    return Rules(model, env.max_steps)


def _part(
    run: RunFolder,
    config: Config,
    rules: Rules,
    steps: Steps,
    credits: Sequence[Credit],
    gammas: Sequence[float],
    model: Path | None,
) -> _Part:
    played = read_played(run, steps)
    policy = load_policy(run, config, played.iteration, model)
    rows = played.rows
    policy.check_played(rows, f"iteration {played.iteration} of {run.path}")
    nodes = replay(played, rules)
    explored = explore(rules, nodes, _Player(config, policy, rules).answer)
    truths = [_truth(explored.solve(gamma), nodes, played) for gamma in gammas]
    # Estimators that keep the same steps share the columns of the truth, and each costs a backward pass.
    distinct, column = np.unique(_weights(credits, truths), axis=1, return_inverse=True)
    products = policy.gradients(rows, distinct)[np.ix_(column, column)]
    return _Part(truths, products, explored.largest_miss)


def _truth(values: ExactValues, nodes: Sequence[Node], played: Played) -> Truth:
    here = np.array([values.state_value(node) for node in nodes])
    better = np.array([values.advantage(node, step.action) for node, step in zip(nodes, played.steps, strict=True)])
    return Truth(values.gamma, here[:, 0], better[:, 0], here[:, 1], better[:, 1])


class _Player:
    """Answers nodes by the run's prompts and the policy's distribution over responses; every prompt is read once."""

    def __init__(self, config: Config, policy: LoadedPolicy, rules: Rules) -> None:
        settings = rollout_settings(config)
        self._prompts: PromptBuilder = prompt_builder(settings, policy.tokenizer)
        self._reader = ReplyReader(
            model=policy.model,
            tokenizer=policy.tokenizer,
            eos_ids=policy.eos_ids,
            max_new_tokens=config.rollout.max_new_tokens,
            temperature=policy.temperature,
            action_tags=config.rollout.action_tags,
            hopeless=rules.model.hopeless,
            context=policy.autocast,
            tag_names=tag_names(settings),
        )
        self._known: dict[tuple[int, ...], Replies] = {}

    def answer(self, shown: Sequence[tuple[Node, View]]) -> list[Replies]:
        """Return the policy's replies to what is shown at each node."""
        prompts = [
            self._prompts.build(view.task, [], view.observation, view.admissible_actions, node.step)
            for node, view in shown
        ]
        keys = [tuple(prompt.token_ids) for prompt in prompts]
        fresh: dict[tuple[int, ...], int] = {}
        listed: dict[tuple[int, ...], dict[str, None]] = {}
        for position, (key, (_, view)) in enumerate(zip(keys, shown, strict=True)):
            if key not in self._known:
                fresh.setdefault(key, position)
                listed.setdefault(key, {}).update(dict.fromkeys(view.admissible_actions))
        read = self._reader.read([prompts[position] for position in fresh.values()], [listed[key] for key in fresh])
        self._known.update(zip(fresh, read, strict=True))
        return [self._known[key] for key in keys]


def _weights(credits: Sequence[Credit], truths: Sequence[Truth]) -> Floats:
    """Return (N, C * (1 + G)) advantages: of each estimator, then of each truth over the steps that it keeps."""
    columns: list[Floats] = []
    for credit in credits:
        columns.append(np.where(credit.keep, credit.values["advantage"], 0.0))
        columns += [np.where(credit.keep, truth.advantage, 0.0) for truth in truths]
    return np.stack(columns, axis=1)


def _cosines(products: Sequence[Floats], credits: int, truths: int) -> list[list[float | None]]:
    """Return the cosine per truth and credit, from the inner products of the columns of ``_weights``."""
    firsts = [place * (1 + truths) for place in range(credits)]
    return [[_mean_cosine(products, first, first + 1 + number) for first in firsts] for number in range(truths)]


def _mean_cosine(products: Sequence[Floats], first: int, second: int) -> float | None:
    """Return the cosine of two columns' gradients, averaged over iterations in which neither is 0."""
    lengths = [float(np.sqrt(found[first, first] * found[second, second])) for found in products]
    cosines = [found[first, second] / length for found, length in zip(products, lengths, strict=True) if length > 0]
    return float(np.mean(cosines)) if cosines else None


def _cut(credit: Credit, chosen: slice) -> Credit:
    values: Mapping[str, Floats] = {name: column[chosen] for name, column in credit.values.items()}
    return Credit(credit.estimator, credit.options, values, credit.keep[chosen], credit.diagnostics)


def _joined(truths: Sequence[Truth]) -> Truth:
    return Truth(
        truths[0].gamma,
        *(
            np.concatenate([getattr(truth, name) for truth in truths])
            for name in ("value", "advantage", "value_error", "advantage_error")
        ),
    )
