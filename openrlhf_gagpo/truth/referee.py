"""The truth beside the credit of a run: values of the policy that played, and how close each estimator comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from agent_envs import registry
from agent_envs.base import TextEnv, View
from agent_envs.errors import EnvError
from openrlhf_gagpo.comparison.compute import Credit
from openrlhf_gagpo.comparison.steps import Source, Steps
from openrlhf_gagpo.config.checks import env_options
from openrlhf_gagpo.config.resolve import Config, resolve
from openrlhf_gagpo.config.settings import rollout_settings
from openrlhf_gagpo.credit.sets import Bools, Floats, Ints
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.rollout.player import prompt_builder
from openrlhf_gagpo.rollout.prompt import PromptBuilder
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.truth.exact import ExactValues, Node, Replies, Rules, explore
from openrlhf_gagpo.truth.played import Played, read_played, replay
from openrlhf_gagpo.truth.policy import LoadedPolicy, load_policy
from openrlhf_gagpo.truth.replies import ReplyReader
from openrlhf_gagpo.truth.scores import Score, Truth, score, state_group_sizes

__all__ = ["Verdict", "judge"]

_VALUE = "value"


@dataclass(frozen=True)
class Verdict:
    """The truth at all N steps of a source, and every estimator's distance to it."""

    truths: Sequence[Truth]
    """One per discount factor."""
    scores: Sequence[Score]
    note: str
    """How exact the truth is, as a sentence."""

    def lines(self, source: Source) -> list[dict[str, object]]:
        """Return JSON objects: the truth at every step under each discount factor, then one ``truth`` per score."""
        columns = ("value", "advantage", "value_error", "advantage_error")
        steps = [
            {**identity, "truth": "step", "gamma": truth.gamma}
            | {name: float(getattr(truth, name)[row]) for name in columns}
            for truth in self.truths
            for row, identity in enumerate(source.identity)
        ]
        return [*steps, *({"truth": "score", **asdict(found)} for found in self.scores)]


@dataclass(frozen=True)
class _Part:
    """One iteration: the truths at its steps, and the gradients under all columns of weights."""

    truths: Sequence[Truth]
    products: Floats
    missed: float


def judge(
    path: Path, source: Source, credits: Sequence[Credit], *, gammas: Sequence[float], model: Path | None
) -> Verdict:
    """Compute the truth for every step of a run's iterations, and compare each estimator's advantages with it.

    Args:
        path: the run folder that ``source`` was read from.
        gammas: discount factors to compute the truth for.
        model: folder of the weights that played the iteration; None finds them in the run.

    Raises:
        ConfigError: the run's settings have no exact truth, its environment offers no rules, or the weights are not
            those that played.
    """
    run = RunFolder.open(path)
    config = resolve(["--config", str(run.config_path)])
    _check_settings(config)
    if model is not None and len(source.parts) > 1:
        raise ConfigError("--model names the weights of one iteration; choose that one with --iteration")
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
    sizes = np.concatenate([state_group_sizes(part.columns["group"], part.columns["state"]) for part in source.parts])
    scores = _scores(source, credits, truths, sizes, [part.products for part in parts])
    missed = max(part.missed for part in parts)
    worst = max((float(truth.value_error.max()) for truth in truths), default=0.0)
    note = (
        f"responses with a probability of at most {missed:.2g} in any state were not enumerated and count as "
        f"unrecognised actions; no true value is off by more than {worst:.2g}"
    )
    return Verdict(truths, scores, note)


def _check_settings(config: Config) -> None:
    """Refuse runs whose prompts do not show the state alone, or whose responses cannot be enumerated."""
    reasons = {
        "--rollout.history_length is not 0, so that prompts depend on the past": config.rollout.history_length != 0,
        "--rollout.think is set, so that responses cannot be enumerated": config.rollout.think,
        "--rollout.top_p is below 1, so that probabilities are not the model's": config.rollout.top_p < 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ConfigError(
                f"--truth has no exact values for this run: {reason}; train with --rollout.history_length 0, "
                "--rollout.no_think and --rollout.top_p 1"
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
            f"environment {config.env.name} offers no rules to compute exact values with; --truth needs one whose "
            "model() returns them"
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
    weights = _weights(credits, truths)
    return _Part(truths, policy.gradients(rows, weights), explored.largest_miss)


def _truth(values: ExactValues, nodes: Sequence[Node], played: Played) -> Truth:
    here = np.array([values.state_value(node) for node in nodes])
    better = np.array([values.advantage(node, step.action) for node, step in zip(nodes, played.steps, strict=True)])
    return Truth(values.gamma, here[:, 0], better[:, 0], here[:, 1], better[:, 1])


class _Player:
    """Answers nodes by the run's prompts and the policy's distribution over responses; every prompt is read once."""

    def __init__(self, config: Config, policy: LoadedPolicy, rules: Rules) -> None:
        self._prompts: PromptBuilder = prompt_builder(rollout_settings(config), policy.tokenizer)
        self._reader = ReplyReader(
            model=policy.model,
            tokenizer=policy.tokenizer,
            eos_ids=policy.eos_ids,
            max_new_tokens=config.rollout.max_new_tokens,
            temperature=policy.temperature,
            action_tags=config.rollout.action_tags,
            hopeless=rules.model.hopeless,
            context=policy.autocast,
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


def _scores(
    source: Source, credits: Sequence[Credit], truths: Sequence[Truth], sizes: Ints, products: Sequence[Floats]
) -> list[Score]:
    scores = []
    for number, truth in enumerate(truths):
        for place, credit in enumerate(credits):
            first = place * (1 + len(truths))
            cosine = _mean_cosine(products, first, first + 1 + number)
            given, true, keep = credit.values["advantage"], truth.advantage, credit.keep
            scores.append(
                score(
                    credit.estimator,
                    truth.gamma,
                    given,
                    true,
                    truth.advantage_error,
                    keep,
                    sizes,
                    scaled=True,
                    cosine=cosine,
                )
            )
        if all(_VALUE in part.columns for part in source.parts):
            predicted = np.array([value for part in source.parts for value in part.columns[_VALUE]], dtype=np.float64)
            everything: Bools = np.ones(len(predicted), dtype=np.bool_)
            scores.append(
                score(
                    "critic's value",
                    truth.gamma,
                    predicted,
                    truth.value,
                    truth.value_error,
                    everything,
                    sizes,
                    scaled=False,
                )
            )
    return scores


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
