"""The rules: each is a pure function of a run's history and facts that returns one piece of advice, or None."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from openrlhf_gagpo.stats import wilson_interval
from openrlhf_gagpo.training.regime.history import Advice, Facts, History, Row

__all__ = ["RULES", "Rule", "advise"]

Rule = Callable[[History, Facts], Advice | None]

WINDOW = 3
"""Iterations that a share has to hold over: one with few tasks may be bad luck, and waiting longer costs the user."""
NEARLY_ALL = 0.95
"""Share that counts as all: what is left would move the policy too rarely to see an effect."""
NEARLY_NONE = 0.05
MOST_ACTIONS = 0.9
"""Share of useless actions from which hardly an episode can do anything, however long it is."""
MANY_EPISODES = 0.25
"""Share of lost episodes from which what is learned no longer stands for the tasks."""
LONE_HISTORY = 0.6
"""Share of lone states, in a run whose states never rejoin, from which most credit has no comparison behind it."""
REJOINED = 0.01
"""States that contain the past are never rejoined; the small share leaves room for a truncated past."""
PENALTY_SHARE = 0.5
"""Share of penalty-only groups among the groups that teach anything, from which they outweigh the rewards."""
UNKNOWN = 0.01
"""Share of prompts with an unknown token: a vocabulary that fits has none, and a rare word comes up less often."""
TASK_CORRELATION = 0.3
"""Assumed correlation of success between episodes of a task; it makes the intervals of rollouts honest."""
FALL = 2 / 3
"""A success below this share of the best one has fallen: less is the usual wobble of training at a fixed step."""
BLIND_WINDOW = 8
"""Iterations that a critic gets to predict something before its lack of skill is advice."""
BLIND = 0.02


def no_update(history: History, facts: Facts) -> Advice | None:
    """Say why the latest iteration did not move the policy."""
    row = history.last
    if row is None:
        return None
    if row.iteration <= facts.critic_warmup:
        return Advice(
            "critic_warmup",
            f"iteration {row.iteration} did not update the policy",
            f"the first {facts.critic_warmup} iterations train the critic alone",
            "lower --critic.freezing_steps if that is too many",
        )
    if row["policy/rows_trained"] > 0:
        return None
    return next(found for cause in _NO_UPDATE if (found := cause(row, facts)) is not None)


def _no_rows_kept(row: Row, facts: Facts) -> Advice | None:
    if "credit/rows_dropped" not in row.values:
        return None
    if row["credit/reward_free_group_share"] == 1.0:
        return Advice(
            "no_update_reward_free",
            f"iteration {row.iteration} had no update because no episode of any group earned a reward",
            "groups without reward are left out of training, and these were all",
            "start from a model that sometimes succeeds (gagpo warmstart), choose easier tasks, or raise "
            "--rollout.batch_size",
        )
    return Advice(
        "no_update_estimator",
        f"iteration {row.iteration} had no update because the estimator {facts.estimator} kept none of "
        f"{row['rollout/steps']:.0f} steps",
        "there was nothing to train on",
        "look at credit/* in metrics.jsonl, or choose another --algo.advantage.estimator",
    )


def _all_filtered(row: Row, facts: Facts) -> Advice | None:
    if row.values.get("rollout/groups_kept", 1.0) > 0:
        return None
    return Advice(
        "no_update_filtered",
        f"iteration {row.iteration} had no update because the filter kept none of "
        f"{row['rollout/groups_drawn']:.0f} groups (success {row['rollout/success']:.2f})",
        "no group had the spread of scores that the rule asks for",
        "check --algo.dynamic_filtering_range against the rewards, raise --algo.dynamic_filtering_max_rounds, or "
        "choose harder or easier tasks",
    )


def _too_few_episodes(row: Row, facts: Facts) -> Advice | None:
    lost = f"{row['rollout/faulted_episodes']:.0f} faulted, {row['rollout/prompts_too_long']:.0f} without room"
    return Advice(
        "no_update_lost",
        f"iteration {row.iteration} had no update because no group had enough episodes left "
        f"({lost}, of {row['rollout/episodes']:.0f})",
        "what the environment failed in or what the prompt had no room for is not trained on",
        "read gagpo show RUN --faults, and raise --data.max_len if prompts did not fit",
    )


_NO_UPDATE: Sequence[Callable[[Row, Facts], Advice | None]] = (_no_rows_kept, _all_filtered, _too_few_episodes)


def no_differences(history: History, facts: Facts) -> Advice | None:
    """Find runs in which the episodes of nearly every group earn the same."""
    equal, success = (
        history.recent("rollout/equal_return_group_share", WINDOW),
        history.recent("rollout/success", WINDOW),
    )
    if equal is None or success is None or equal < NEARLY_ALL:
        return None
    seen = f"in {equal:.0%} of the groups of the last {WINDOW} iterations all episodes earned the same"
    if success <= NEARLY_NONE:
        capped = history.recent("rollout/truncated_share", WINDOW) or 0.0
        limit = ", or raise --env.max_steps, which nearly every episode reached" if capped >= NEARLY_ALL else ""
        return Advice(
            "all_fail",
            f"{seen} (success {success:.2f})",
            "the start is too weak for these tasks, and failures alone do not show what is better",
            "start from a better model (gagpo warmstart with more --episodes or --steps), choose easier tasks"
            f"{limit}, or draw until groups differ with --algo.dynamic_filtering_enable",
        )
    if success >= 1 - NEARLY_NONE:
        return Advice(
            "all_succeed",
            f"{seen} (success {success:.2f})",
            "there is nothing left to learn here but to be faster",
            "choose harder tasks with --env.options, lower --env.max_steps, or stop",
        )
    if not facts.compares:
        return None
    return Advice(
        "equal_returns",
        f"{seen} although not all fail or succeed (success {success:.2f})",
        "the episodes of a task do not differ, so comparing them teaches nothing",
        "raise --rollout.temperature or --rollout.n_samples_per_prompt",
    )


def history_keys(history: History, facts: Facts) -> Advice | None:
    """Find states that contain the past: shared at the start of the episodes, then never again once these part."""
    lone = history.recent("credit/singleton_share", WINDOW)
    rejoined = history.recent("credit/rejoined_share", WINDOW)
    start = history.recent("credit/lone_start_share", WINDOW)
    if facts.lone_states is None or lone is None or rejoined is None or start is None:
        return None
    if lone < LONE_HISTORY or rejoined > REJOINED or start >= NEARLY_ALL:
        return None
    return Advice(
        "history_keys",
        f"{lone:.0%} of the steps are in states that no other step of the group visited, although {1 - start:.0%} of "
        "the episodes begin in a shared one, and states are never rejoined",
        f"the environment's state_key probably contains the past, so {_lone_effect(facts)}",
        _lone_remedy(facts, "let state_key hold only the present situation (docs/environments.md)"),
    )


def distinct_states(history: History, facts: Facts) -> Advice | None:
    """Find runs in which the visits of states cannot be compared because nearly all states are visited once."""
    lone = history.recent("credit/singleton_share", WINDOW)
    if facts.lone_states is None or lone is None or lone < NEARLY_ALL:
        return None
    start = history.recent("credit/lone_start_share", WINDOW)
    if history_keys(history, facts) is not None:
        return None
    own = " and even first states differ" if start is not None and start >= NEARLY_ALL else ""
    return Advice(
        "distinct_states",
        f"{lone:.0%} of the steps are in states that no other step of the group visited{own}",
        f"{facts.estimator} compares the visits of a state, so {_lone_effect(facts)}",
        _lone_remedy(
            facts, "leave numbers, times and wordings that differ between episodes out of the environment's state_key"
        ),
    )


def _lone_effect(facts: Facts) -> str:
    left = facts.lone_states.left if facts.lone_states else ""
    return f"only {left} is left there" if left else "such steps get no credit, or a biased one"


def _lone_remedy(facts: Facts, first: str) -> str:
    option = facts.lone_states.option if facts.lone_states else ""
    others = f"choose --algo.advantage.estimator {' or '.join(facts.stateless)}"
    return ", ".join([first, *([f"set {option}"] if option else []), f"or {others}"])


def penalty_only(history: History, facts: Facts) -> Advice | None:
    """Find runs that learn mostly from groups in which only penalties make a difference."""
    only = history.recent("credit/penalty_only_group_share", WINDOW)
    idle = history.recent("credit/degenerate_group_share", WINDOW)
    if not (facts.compares and facts.penalises) or only is None or idle is None or idle >= 1.0:
        return None
    share = only / (1.0 - idle)
    if share < PENALTY_SHARE:
        return None
    return Advice(
        "penalty_only",
        f"{share:.0%} of the groups that taught anything in the last {WINDOW} iterations had no reward and differed "
        "only in penalties",
        "an estimator that divides by the spread makes them as loud as successes, which can drive success to 0",
        "set --algo.advantage.drop_reward_free_groups, or lower --algo.advantage.invalid_penalty and "
        "--algo.advantage.inadmissible_penalty",
    )


def unknown_tokens(history: History, facts: Facts) -> Advice | None:
    """Find prompts with words that the tokenizer does not have."""
    share = history.recent("rollout/unknown_token_share", 1)
    if share is None or share < UNKNOWN:
        return None
    return Advice(
        "unknown_tokens",
        f"{share:.0%} of the prompts contain a token that the tokenizer does not know",
        "the model cannot tell the words apart that it replaces",
        "clone a start on this environment's own text (gagpo warmstart with the same --env.options), or choose another "
        "--actor.model_name_or_path",
    )


def useless_actions(history: History, facts: Facts) -> Advice | None:
    """Find runs in which nearly every response is malformed or nearly every action impossible."""
    malformed = history.recent("rollout/format_invalid_share", WINDOW)
    if malformed is not None and malformed >= MOST_ACTIONS:
        capped = history.recent("rollout/length_capped_share", WINDOW) or 0.0
        longer = f" (and --rollout.max_new_tokens, which {capped:.0%} reach)" if capped >= 1 - MOST_ACTIONS else ""
        return Advice(
            "malformed",
            f"{malformed:.0%} of the responses of the last {WINDOW} iterations did not have the form that the prompt "
            "asks for",
            "no action of the model's reaches the environment",
            f"check --rollout.think, --rollout.action_tags and --rollout.chat_template against prompt.txt{longer}, or "
            "start from a model that was shown the form",
        )
    impossible = history.recent("rollout/inadmissible_share", WINDOW)
    if impossible is not None and impossible >= MOST_ACTIONS:
        return Advice(
            "inadmissible",
            f"the environment did not recognise {impossible:.0%} of the actions of the last {WINDOW} iterations",
            "hardly an episode can do anything",
            "show the possible actions with --rollout.list_actions, or start from a model that knows them "
            "(gagpo warmstart)",
        )
    return None


def lost_episodes(history: History, facts: Facts) -> Advice | None:
    """Find runs that lose many episodes to failures of the environment or to prompts that do not fit."""
    row = history.last
    if row is None or not row["rollout/episodes"]:
        return None
    faulted = row["rollout/faulted_episodes"] / row["rollout/episodes"]
    if faulted >= MANY_EPISODES:
        return Advice(
            "faults",
            f"the environment failed in {faulted:.0%} of the episodes of iteration {row.iteration}",
            "they are left out of training, and so are groups that they leave too small",
            "read gagpo show RUN --faults, and raise --env.step_timeout if they are timeouts",
        )
    cut = row["rollout/prompts_too_long"] / row["rollout/episodes"]
    if cut >= MANY_EPISODES:
        return Advice(
            "prompts_too_long",
            f"{cut:.0%} of the episodes of iteration {row.iteration} ended because their prompt did not fit",
            "they count as failures whatever was done in them",
            "raise --data.max_len or lower --rollout.history_length",
        )
    return None


def collapse(history: History, facts: Facts) -> Advice | None:
    """Find a success that fell far below an earlier one, by intervals that do not overlap."""
    evaluations = history.evaluations
    alike = [row for row in evaluations if row.labels == evaluations[-1].labels and "eval/success" in row.values]
    fall = _fall([_evaluated(row) for row in alike])
    source = "evaluated"
    if fall is None:
        fall, source = _fall(_windows(history.iterations, facts.group_size)), "rollout"
    if fall is None:
        return None
    best, now = fall
    lr = history.recent("policy/lr", 1)
    return Advice(
        "collapse",
        f"{source} success fell from {best[0]:.2f} to {now[0]:.2f}, which is more than chance{_entropy(history)}",
        "the updates destroy what the policy could do",
        f"lower --actor.adam.lr{f' (now {lr:g})' if lr else ''} or raise --algo.kl.init_coef, unless other advice "
        "explains it, and go back to an earlier checkpoint",
    )


_Level = tuple[float, float, float]
"""A success rate and its 95 % interval."""


def _fall(levels: Sequence[_Level]) -> tuple[_Level, _Level] | None:
    """Return the best earlier level and the last one if the latter lies clearly below."""
    if len(levels) < 2:
        return None
    best, now = max(levels[:-1], key=lambda level: level[1]), levels[-1]
    return (best, now) if now[2] < best[1] and now[0] < FALL * best[0] else None


def _evaluated(row: Row) -> _Level:
    success = row["eval/success"]
    return success, row.values.get("eval/success_low", success), row.values.get("eval/success_high", success)


def _windows(rows: Sequence[Row], group_size: int) -> list[_Level]:
    """Return the rollout success of consecutive windows of iterations, counted back from the last one."""
    found: list[_Level] = []
    for end in range(len(rows), WINDOW - 1, -WINDOW):
        window = [row for row in rows[end - WINDOW : end] if "rollout/success" in row.values]
        episodes = sum(row["rollout/episodes"] for row in window)
        # Episodes of one task succeed and fail together, so they count as fewer.
        count = math.floor(episodes / (1 + (group_size - 1) * TASK_CORRELATION))
        if count:
            success = sum(row["rollout/success"] * row["rollout/episodes"] for row in window) / episodes
            found.append((success, *wilson_interval(round(success * count), count)))
    return found[::-1]


def _entropy(history: History) -> str:
    """Return what the entropy did meanwhile, if it was measured."""
    known = [row.values["policy/entropy"] for row in history.iterations if "policy/entropy" in row.values]
    return f" (entropy {known[0]:.2g} at first, {known[-1]:.2g} now)" if len(known) > 1 else ""


def not_finite(history: History, facts: Facts) -> Advice | None:
    """Find a gradient that overflowed."""
    row = history.last
    if row is None or "policy/grad_norm" not in row.not_finite:
        return None
    return Advice(
        "not_finite",
        f"the gradient of iteration {row.iteration} was not finite",
        "the weights may be damaged from here on",
        "lower --actor.adam.lr, set --ds.param_dtype bf16 or fp32, and go back to an earlier checkpoint",
    )


def blind_critic(history: History, facts: Facts) -> Advice | None:
    """Find a critic that predicts nothing after many iterations."""
    share = history.recent("critic/explained_variance", BLIND_WINDOW)
    if share is None or share > BLIND:
        return None
    return Advice(
        "blind_critic",
        f"the critic explained {share:.0%} of the variance of its targets over the last {BLIND_WINDOW} iterations",
        "advantages are little more than returns minus a constant",
        "raise --critic.adam.lr, warm it up with --critic.freezing_steps, or show it what the outcome depends on",
    )


RULES: tuple[Rule, ...] = (
    no_update,
    useless_actions,
    unknown_tokens,
    lost_episodes,
    no_differences,
    history_keys,
    distinct_states,
    penalty_only,
    collapse,
    not_finite,
    blind_critic,
)
"""All rules, causes before effects."""


def advise(history: History, facts: Facts) -> list[Advice]:
    """Return what the rules find in a run as it is now."""
    return [found for rule in RULES if (found := rule(history, facts)) is not None]
