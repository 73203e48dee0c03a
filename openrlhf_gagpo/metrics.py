"""The names of all logged numbers and what they mean; ``docs/metrics.md`` is generated from this module.

A name is ``group/name``. A name whose last part is in angle brackets stands for several metrics, such as
``eval/success/<category>`` for one per task category of the environment and ``credit/state_group_size_share/<bin>`` for
one per range of group sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["GROUPS", "METRICS", "ROW_KEYS", "Metric", "describe", "glossary_markdown", "is_documented", "undocumented"]


@dataclass(frozen=True)
class Metric:
    """One logged number."""

    name: str
    """``group/name``."""
    description: str
    unit: str
    """"share" is a fraction in [0, 1], "count" a whole number, "1" a plain number."""

    @property
    def group(self) -> str:
        """The part before the first slash."""
        return self.name.split("/", 1)[0]


ROW_KEYS: dict[str, str] = {
    "iteration": "Training iteration that the row belongs to, from 1; 0 is the evaluation before training.",
    "split": "Split of tasks that was evaluated (`eval.jsonl` only).",
}
"""Keys of a row that identify it and are not metrics."""

GROUPS: dict[str, str] = {
    "rollout": "Episodes played for training in this iteration, before anything is left out.",
    "credit": "Advantages of the environment steps, and the groups they were computed in.",
    "policy": "The policy update, over all optimizer steps of the iteration.",
    "critic": "The critic and its update, in runs whose estimator needs one.",
    "eval": "Evaluation on held-out tasks; rows of `eval.jsonl`.",
    "time": "Seconds that each phase of the iteration took.",
    "env": "Work of the environment processes in this iteration.",
    "machine": "Memory at the end of the iteration.",
}

_TABLE: tuple[tuple[str, str, str], ...] = (
    ("rollout/success", "Share of episodes that solved their task, faulted ones left out.", "share"),
    ("rollout/return", "Mean undiscounted sum of environment rewards of an episode.", "reward"),
    (
        "rollout/score",
        "Mean task score of an episode; equals success if there is no partial credit.",
        "score in [0, 1]",
    ),
    ("rollout/episode_length", "Mean number of environment steps of an episode.", "steps"),
    ("rollout/episodes", "Episodes played, faulted ones included.", "count"),
    ("rollout/steps", "Environment steps in all episodes.", "count"),
    (
        "rollout/staleness",
        "Updates of the policy between the weights that began the rollout and those that the update begins with.",
        "count",
    ),
    ("rollout/faulted_episodes", "Episodes ended by a failure of the environment and left out of training.", "count"),
    (
        "rollout/skipped_groups",
        "Groups left with too few usable episodes for the estimator, and therefore not trained on.",
        "count",
    ),
    ("rollout/groups_drawn", "Groups played, in a run that filters groups.", "count"),
    ("rollout/groups_kept", "Groups that the filter kept for training.", "count"),
    ("rollout/draws", "Times that tasks were drawn until enough groups were kept or the limit was reached.", "count"),
    ("rollout/truncated_share", "Share of episodes ended by the step limit.", "share"),
    ("rollout/format_invalid_share", "Share of responses without the required form.", "share"),
    ("rollout/inadmissible_share", "Share of actions the environment did not recognise as possible.", "share"),
    (
        "rollout/equal_return_group_share",
        "Share of groups whose episodes all earned the same undiscounted reward, of those with two or more.",
        "share",
    ),
    (
        "rollout/unknown_token_share",
        "Share of prompts with a token that the tokenizer does not know, if it has an unknown token.",
        "share",
    ),
    ("rollout/prompt_tokens", "Mean length of a prompt.", "tokens"),
    ("rollout/response_tokens", "Mean length of a sampled response.", "tokens"),
    (
        "rollout/prefix_cache_share",
        "Share of the prompts' tokens that the engine had in its prefix cache; distributed backend.",
        "share",
    ),
    ("rollout/prompts_cut", "Prompts from which history was dropped to make them fit.", "count"),
    (
        "rollout/prompts_too_long",
        "Episodes ended because a prompt (even the first) did not fit without history, or a transcript with all of "
        "its turns; they count as failures.",
        "count",
    ),
    (
        "rollout/sequences",
        "Token sequences that hold the steps: as many as steps, or with transcripts one per episode and one more each "
        "time that its oldest turns were dropped.",
        "count",
    ),
    ("rollout/length_capped_share", "Share of responses stopped by the token limit.", "share"),
    ("credit/singleton_share", "Share of steps whose state no other step of the group visited.", "share"),
    ("credit/state_group_size_mean", "Mean number of steps that share a state within a rollout group.", "steps"),
    ("credit/lone_start_share", "Share of episodes whose first state no other step of the group visited.", "share"),
    (
        "credit/rejoined_share",
        "Share of steps in states that were reached from different states; 0 where states contain their past.",
        "share",
    ),
    (
        "credit/state_group_size_share/<bin>",
        "Share of steps whose state this many steps of the group share: 1, 2, 3 to 4, and so on.",
        "share",
    ),
    ("credit/advantage_iqr", "Distance between the 25th and the 75th percentile of the advantages.", "1"),
    ("credit/advantage_abs_gt1_share", "Share of steps whose advantage is above 1 or below -1.", "share"),
    ("credit/advantage_min", "Smallest advantage.", "1"),
    ("credit/advantage_max", "Largest advantage.", "1"),
    ("credit/advantage_std", "Standard deviation of the advantages.", "1"),
    ("credit/degenerate_group_share", "Share of groups whose advantages are all 0 and so teach nothing.", "share"),
    ("credit/reward_free_group_share", "Share of groups in which no episode earned any reward.", "share"),
    (
        "credit/penalty_only_group_share",
        "Share of groups without any reward whose advantages differ all the same; in estimators that compare the"
        " episodes of a group only penalties can do that.",
        "share",
    ),
    ("credit/rows_dropped", "Steps that the estimator left out of the update.", "count"),
    (
        "credit/clip_scale_mean",
        "Mean factor of the clip bounds over the trained steps, if the estimator sets one.",
        "1",
    ),
    ("credit/clip_scale_std", "Standard deviation of that factor.", "1"),
    ("credit/ig_share", "Steps with an information gain, where the estimator reads it.", "share"),
    ("credit/ig_mean", "Mean information gain over these steps.", "nats per token (ig_type log_prob)"),
    ("credit/ig_mean/<step>", "The same over the first, second, third and fourth steps of episodes.", "as above"),
    ("credit/ig_std", "Standard deviation of the information gains.", "as above"),
    ("credit/ig_positive_share", "Steps whose information gain is above 0, of those that have one.", "share"),
    ("policy/loss", "Mean over optimizer steps of the loss that was minimised, KL and entropy terms included.", "1"),
    ("policy/policy_loss", "The same without the KL and entropy terms.", "1"),
    ("policy/clip_share", "Share of probability ratios in the clipped part of the objective.", "share"),
    ("policy/kl_ref", "KL divergence from the reference model, by the configured estimator.", "nats per token"),
    (
        "policy/entropy",
        "Entropy of the next-token distribution over response tokens; only with `actor.entropy_coef`, 0 or more.",
        "nats per token",
    ),
    (
        "policy/approx_kl",
        "Estimated KL divergence between the policy before the update and the one trained.",
        "nats per token",
    ),
    ("policy/grad_norm", "Mean over optimizer steps of the gradient norm before clipping.", "1"),
    ("policy/lr", "Learning rate at the last optimizer step.", "1"),
    ("policy/ratio_mean", "Mean probability ratio between trained and old policy.", "1"),
    (
        "policy/sampling_logprob_diff_mean",
        "Mean absolute difference between the log-probabilities of the sampler and of the training forward pass, "
        "for the same tokens; their weights are the same but for `rollout/staleness`. Left out where training takes "
        "the sampler's numbers over, so that there is nothing to compare (the local backend in fp32 with "
        "`rollout.top_p` 1).",
        "nats",
    ),
    ("policy/sampling_logprob_diff_max", "Largest such difference of the iteration.", "nats"),
    (
        "policy/correction_share",
        "Share of tokens that the sampler correction dropped or clipped, alone or with their action.",
        "share",
    ),
    ("policy/correction_weight_mean", "Mean weight that the sampler correction gave a token.", "1"),
    ("policy/optimizer_steps", "Optimizer steps taken.", "count"),
    (
        "policy/skipped_steps",
        "Optimizer steps skipped because the gradient was not finite; their rows are in none of these numbers.",
        "count",
    ),
    ("policy/rows_trained", "Environment steps that entered the update.", "count"),
    ("policy/tokens_trained", "Response tokens that entered the update.", "tokens"),
    (
        "critic/explained_variance",
        "Share of the variance of its targets (returns that use its values where lambda cuts them off) that the critic"
        " predicts, on episodes that it has not been trained on: those of the iteration before its update, or in"
        " `eval.jsonl` those of the evaluation.",
        "share, at most 1",
    ),
    (
        "critic/return_explained_variance",
        "The same of the returns alone, which do not depend on the critic; the harder measure.",
        "share, at most 1",
    ),
    ("critic/loss", "Mean over optimizer steps of the value loss: half the squared error, with the value clip.", "1"),
    ("critic/value_mean", "Mean value at the trained positions during the update.", "reward"),
    ("critic/target_mean", "Mean target of the critic.", "reward"),
    ("critic/clip_share", "Share of values that moved beyond the value clip.", "share"),
    ("critic/grad_norm", "Mean over optimizer steps of the gradient norm before clipping.", "1"),
    ("critic/skipped_steps", "Optimizer steps skipped because the gradient was not finite.", "count"),
    ("critic/lr", "Learning rate at the last optimizer step.", "1"),
    ("eval/success", "Share of evaluated tasks that were solved.", "share"),
    ("eval/success_low", "Lower end of the 95 % Wilson interval of the success rate.", "share"),
    ("eval/success_high", "Upper end of the 95 % Wilson interval of the success rate.", "share"),
    ("eval/return", "Mean undiscounted sum of environment rewards.", "reward"),
    ("eval/score", "Mean task score.", "score in [0, 1]"),
    ("eval/episode_length", "Mean number of environment steps.", "steps"),
    ("eval/tasks", "Tasks with an episode that counts in the averages.", "count"),
    ("eval/episodes", "Episodes that count in the averages: all but the faulted ones.", "count"),
    ("eval/faulted", "Episodes ended by a failure of the environment and left out of the averages.", "count"),
    (
        "eval/greedy_success",
        "Share of evaluated tasks that were solved in one episode at temperature 0, in evaluations with `eval.greedy`.",
        "share",
    ),
    ("eval/greedy_success_low", "Lower end of its 95 % Wilson interval.", "share"),
    ("eval/greedy_success_high", "Upper end of its 95 % Wilson interval.", "share"),
    ("eval/greedy_return", "Mean undiscounted sum of environment rewards of the greedy episodes.", "reward"),
    ("eval/greedy_episode_length", "Mean number of environment steps of the greedy episodes.", "steps"),
    ("eval/greedy_tasks", "Tasks with a greedy episode that counts in the averages.", "count"),
    ("eval/greedy_faulted", "Greedy episodes ended by a failure of the environment.", "count"),
    ("eval/success/<category>", "Success rate on the tasks of one category.", "share"),
    ("eval/success_low/<category>", "Lower end of its 95 % interval.", "share"),
    ("eval/success_high/<category>", "Upper end of its 95 % interval.", "share"),
    ("eval/greedy_success/<category>", "Success rate of the greedy episodes on the tasks of one category.", "share"),
    ("eval/tasks/<category>", "Tasks of one category with an episode that counts in its success rate.", "count"),
    ("time/rollout", "Playing the episodes, from first reset to last step.", "s"),
    ("time/ahead", "The part of time/rollout that passed in the iteration before.", "s"),
    ("time/waiting", "Waiting, after the update, for the next rollout, which runs beside it.", "s"),
    ("time/columns", "Computing the columns that credit needs from a model.", "s"),
    ("time/credit", "Computing advantages.", "s"),
    ("time/forward", "Old and reference log-probabilities.", "s"),
    ("time/update", "Optimizer steps of the policy.", "s"),
    ("time/critic", "Optimizer steps of the critic.", "s"),
    ("time/sync", "Sending the new weights to the sampler.", "s"),
    ("time/checkpoint", "Writing the checkpoint after the previous iteration.", "s"),
    ("time/eval", "Evaluation.", "s"),
    ("time/iteration", "The whole iteration; the phases above are part of it, but for time/ahead.", "s"),
    ("time/generation_s", "Waiting for the model, summed over concurrent episodes.", "s"),
    ("time/environment_s", "Waiting for environments, summed over concurrent episodes.", "s"),
    ("env/resets", "Episodes started in environment processes.", "count"),
    ("env/steps", "Actions carried out by environment processes.", "count"),
    ("env/faults", "Environments that episodes lost for any reason, those of episodes played again included.", "count"),
    ("env/timeouts", "Calls abandoned because the environment did not answer in time.", "count"),
    ("env/restarts", "Environment processes, and hosts of them on other nodes, that died and are replaced.", "count"),
    (
        "env/servers",
        "Servers from which environment processes come, and hosts of them on other nodes, that died or hung and are"
        " replaced; their episodes are played again.",
        "count",
    ),
    ("env/engine_restarts", "Rollout engines that died or hung and were started again; distributed backend.", "count"),
    (
        "machine/memory_used_gib",
        "Main memory taken on the machine (in the container, where one is limited) on which the run was started, by all"
        " processes.",
        "GiB",
    ),
    (
        "machine/process_memory_peak_gib",
        "Most main memory that the run's own process has held so far, without the processes that it started.",
        "GiB",
    ),
    (
        "machine/gpu_memory_peak_gib",
        "Most GPU memory that PyTorch has held so far in this process; local backend on a GPU.",
        "GiB",
    ),
)

METRICS: dict[str, Metric] = {name: Metric(name, description, unit) for name, description, unit in _TABLE}
"""All documented metrics by name, in the order of the glossary."""

_FAMILIES = {name.rpartition("/")[0]: metric for name, metric in METRICS.items() if name.endswith(">")}


def describe(name: str) -> Metric | None:
    """Return the glossary entry of a logged name (``eval/success/<category>`` for ``eval/success/heat``), or None."""
    if name in METRICS:
        return METRICS[name]
    head, _, member = name.rpartition("/")
    return _FAMILIES.get(head) if member else None


def is_documented(name: str) -> bool:
    """Return whether a key of a metrics row is in the glossary or identifies the row."""
    return name in ROW_KEYS or describe(name) is not None


def undocumented(rows: Iterable[Mapping[str, object]]) -> set[str]:
    """Return the keys of ``rows`` that the glossary lacks; there are none in a run that this package writes."""
    return {name for row in rows for name in row if not is_documented(name)}


def glossary_markdown() -> str:
    """Return the text of ``docs/metrics.md``. Write it with ``python -m openrlhf_gagpo.metrics docs/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "Generated from `openrlhf_gagpo/metrics.py`; update it with"
        " `python -m openrlhf_gagpo.metrics docs/metrics.md`.",
        "",
        "A run appends one JSON object per iteration to `metrics.jsonl` and one per evaluation to `eval.jsonl`."
        " A number that is not finite (a gradient that overflowed, a mean over nothing) is written as `null`."
        " Not every run logs every metric.",
        "",
        "| key | meaning |",
        "| --- | --- |",
        *(f"| `{key}` | {text} |" for key, text in ROW_KEYS.items()),
    ]
    for group, text in GROUPS.items():
        lines += ["", f"## {group}", "", text, "", "| metric | meaning | unit |", "| --- | --- | --- |"]
        lines += [f"| `{m.name}` | {m.description} | {m.unit} |" for m in METRICS.values() if m.group == group]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys
    from pathlib import Path

    Path(sys.argv[1]).write_text(glossary_markdown(), encoding="utf-8")
