"""Estimated truths at some steps of a run, by playing on from their states with the weights that played."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agent_envs.errors import EnvError
from openrlhf_gagpo.backends.sampler import BatchSampler
from openrlhf_gagpo.comparison.compute import Credit
from openrlhf_gagpo.comparison.steps import Source
from openrlhf_gagpo.config.resolve import Config
from openrlhf_gagpo.config.settings import rollout_settings, sampling
from openrlhf_gagpo.credit.sets import Floats, Ints
from openrlhf_gagpo.errors import ConfigError, RunError
from openrlhf_gagpo.rollout.player import EpisodePlayer
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.truth.continuations import Budget, Outcome, Play, draw, play_on
from openrlhf_gagpo.truth.played import read_played
from openrlhf_gagpo.truth.policy import LoadedPolicy, load_policy, load_tokenizer
from openrlhf_gagpo.truth.scores import Findings, Truth

__all__ = ["truths_by_play"]

_MARGIN = 2.0
"""Standard errors by which an advantage has to differ from 0 for its sign to count."""


def truths_by_play(
    run: RunFolder,
    config: Config,
    source: Source,
    credits: Sequence[Credit],
    gammas: Sequence[float],
    model: Path | None,
    budget: Budget,
) -> Findings:
    """Estimate V and the advantage of drawn steps; only steps that some credit keeps are drawn.

    The other arguments are those of ``referee.judge``.

    Raises:
        ConfigError: there is no step to draw, the environment takes no snapshots, or the weights or the prompts are not
            those that played.
        RunError: the environment failed, or does not repeat what was recorded.
    """
    if (config.rollout.context, config.rollout.transcript_overflow) == ("transcript", "drop"):
        raise ConfigError(
            "--continuations cannot go on from transcripts whose oldest turns may be dropped, since the records do not "
            "say how these were worded; train with --rollout.transcript_overflow end"
        )
    kept = np.flatnonzero(np.any([credit.keep for credit in credits], axis=0))
    if not len(kept):
        raise ConfigError(
            f"no estimator keeps a step of {source.title}, so that none can be drawn; add one that does, or choose "
            "another --iteration"
        )
    rows = draw(kept, budget.states, budget.seed)
    try:
        outcomes = asyncio.run(_outcomes(run, config, source, rows, model, budget))
    except EnvError as error:
        raise RunError(str(error).rstrip(".")) from error
    truths = [_truth(gamma, outcomes, rows, len(source)) for gamma in gammas]
    return Findings(truths, _note(truths[0], rows, kept, budget))


async def _outcomes(
    run: RunFolder, config: Config, source: Source, rows: Ints, model: Path | None, budget: Budget
) -> list[Outcome]:
    player = EpisodePlayer(rollout_settings(config), load_tokenizer(config))
    try:
        if not await player.can_retrace():
            raise ConfigError(
                f"environment {config.env.name} takes no snapshots, so that its episodes cannot be played on; "
                "--continuations needs an environment with snapshot() and restore()"
            )
        outcomes = []
        start = 0
        for steps in source.parts:
            chosen = rows[(rows >= start) & (rows < start + len(steps))] - start
            start += len(steps)
            if len(chosen):
                played = read_played(run, steps)
                policy = load_policy(run, config, played.iteration, model)
                policy.check_played(played.rows, f"iteration {played.iteration} of {run.path}")
                outcomes += await play_on(player, _playing(player, policy, sampling(config)), played, chosen, budget)
        return outcomes
    finally:
        await player.aclose()


def _playing(player: EpisodePlayer, policy: LoadedPolicy, params: SamplingParams) -> Play:
    """Return what plays episodes with a loaded policy, as the local backend does."""
    sampler = BatchSampler(policy.model, policy.eos_ids, policy.tokenizer.pad_token_id)

    def done(episode: Episode) -> None:
        sampler.episode_done()

    async def play(requests: Sequence[EpisodeRequest]) -> list[Episode]:
        sampler.begin(len(requests), player.settings.concurrency)
        with policy.autocast:
            return await player.play(requests, sampler, params, done)

    return play


def _truth(gamma: float, outcomes: Sequence[Outcome], rows: Ints, steps: int) -> Truth:
    here = [outcome.state_value(gamma) for outcome in outcomes]
    better = [outcome.advantage(gamma) for outcome in outcomes]

    def column(numbers: Sequence[float]) -> Floats:
        full = np.full(steps, np.nan)
        full[rows] = numbers
        return full

    return Truth(
        gamma,
        value=column([found.value for found in here]),
        advantage=column([found.value for found in better]),
        value_error=column([found.error for found in here]),
        advantage_error=column([found.error for found in better]),
        margin=_MARGIN,
    )


def _note(truth: Truth, rows: Ints, kept: Ints, budget: Budget) -> str:
    typical = float(np.sqrt(np.mean(truth.advantage_error[rows] ** 2)))
    return (
        f"true values are means over {budget.continuations} continuations at {len(rows)} of {len(kept)} steps; the "
        f"standard error of an advantage is {typical:.2g} for gamma {truth.gamma:g} (root mean square), and a sign is "
        f"certain if the advantage is larger than {_MARGIN:g} of its own; gradients have no cosine, since the true one "
        "needs the advantage of every step"
    )
