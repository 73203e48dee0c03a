"""This tool's own flags, its presets that differ from OpenRLHF, and the flags of registered algorithms."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.config.deprecated import DEPRECATED_FLAGS
from openrlhf_gagpo.config.families import ESTIMATOR, Family, families
from openrlhf_gagpo.config.flag import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, Disposition, Flag
from openrlhf_gagpo.config.openrlhf_flags import OPENRLHF_FLAGS
from openrlhf_gagpo.errors import PluginError
from openrlhf_gagpo.rollout.filtering import RULES

__all__ = ["DEFAULT_ESTIMATOR", "all_flags"]

DEFAULT_ESTIMATOR = "gagpo"
_OURS = "openrlhf_gagpo."

_B = Disposition.BOTH
_D = Disposition.DISTRIBUTED
_L = Disposition.LOCAL

OWN_FLAGS: tuple[Flag, ...] = (
    Flag("config", str, None, _B, "recipe to start from (YAML)", command_line_only=True),
    Flag("algo.plugin", str, [], _B, "file or module that registers estimators or policy losses; may be repeated",
         repeatable=True),
    Flag("dry_run", bool, False, _B, "show the configuration, the placement and an estimate of memory, then stop",
         command_line_only=True),
    Flag("backend", str, "distributed", _B, "what runs the model", choices=tuple(BACKENDS)),
    Flag("run_dir", str, None, _B, "folder of the run; default runs/<environment>-<estimator>-seed<seed>"),
    Flag("eval_only", bool, False, _B, "evaluate the model and stop"),
    Flag("report", bool, True, _B, "write an HTML report at the end"),
    Flag("console", str, "stages", _B,
         "what the console shows: the stages and results of a run, or also everything that the libraries write",
         choices=("stages", "all")),
    Flag("env.name", str, None, _B, "environment to play"),
    Flag("env.split", str, "train", _B, "split that training tasks come from"),
    Flag("env.eval_split", str, None, _B, "split that evaluation plays; unset: no evaluation"),
    Flag("env.options", dict, {}, _B, "options of the environment: a JSON object, or key=value as often as needed"),
    Flag("env.plugin", str, [], _B, "file or module that registers environments; may be repeated", repeatable=True),
    Flag("env.max_steps", int, None, _B, "steps of an episode; unset: the environment's own limit", bound=AT_LEAST_ONE),
    Flag("env.workers", int, None, _B, "environment processes of a node; unset: one per core, at most one per episode",
         bound=AT_LEAST_ONE),
    Flag("env.placement", str, "local", _D,
         "where environment processes are: on the engines' nodes, or on the nodes of the Ray cluster without GPUs (on "
         "all, if each has some)", choices=("local", "ray")),
    Flag("env.reset_timeout", float, 120.0, _B, "seconds that a reset may take", bound=POSITIVE),
    Flag("env.step_timeout", float, 60.0, _B, "seconds that a step may take", bound=POSITIVE),
    Flag("rollout.history_length", int, 2, _B, "earlier turns shown in the prompt", bound=NOT_NEGATIVE),
    Flag("rollout.think", bool, True, _B, "ask for reasoning before the action"),
    Flag("rollout.action_tags", bool, True, _B, "ask for the action in tags"),
    Flag("rollout.list_actions", bool, True, _B, "list the admissible actions in the prompt"),
    Flag("rollout.chat_template", str, "auto", _B, "whether prompts use the chat template", choices=("auto", "none")),
    Flag("rollout.context", str, "window", _B,
         "prompts: each turn worded anew with the latest turns, or one growing conversation per episode",
         choices=("window", "transcript")),
    Flag("rollout.transcript_overflow", str, "end", _B,
         "a transcript that reaches data.max_len: the episode ends, or its oldest turns are dropped",
         choices=("end", "drop")),
    Flag("rollout.concurrency", int, None, _B, "episodes in flight; unset: all of an iteration", bound=AT_LEAST_ONE),
    Flag("rollout.stall_timeout", float, 3600.0, _D,
         "seconds without a finished group after which an engine counts as hung and is started again; 0: never",
         bound=NOT_NEGATIVE),
    Flag("rollout.record", str, "all", _B, "episodes written to the run folder", choices=("all", "none")),
    Flag("algo.dynamic_filtering_rule", str, "range", _B,
         "groups kept: mean score inside the range, or scores that are not all equal", choices=tuple(RULES)),
    Flag("algo.dynamic_filtering_max_rounds", int, 4, _B,
         "times that tasks are drawn in an iteration until enough groups are kept", bound=AT_LEAST_ONE),
    Flag("train.num_iterations", int, 160, _B, "iterations: one rollout and the updates from it",
         bound=AT_LEAST_ONE),
    Flag("train.max_bad_steps", int, 5, _B,
         "optimizer steps in a row that may be skipped for a gradient that is not finite before the run ends; 0: any "
         "number", bound=NOT_NEGATIVE),
    Flag("train.logit_chunk", int, 0, _B,
         "response positions whose logits exist at a time, made again in the backward pass; 0: all of a pass",
         bound=NOT_NEGATIVE),
    Flag("train.overlap", str, "none", _D,
         "rollout beside the update: none, or that of the next iteration, with the weights of before the update",
         choices=("none", "one_step")),
    Flag("train.worker_timeout", float, 7200.0, _D,
         "seconds that workers may take for one call, such as an iteration's update, before the run ends",
         bound=POSITIVE),
    Flag("train.device", str, "auto", _L, "device of the local backend", choices=("auto", "cpu", "cuda")),
    Flag("train.threads", int, None, _L, "torch threads of the local backend; unset: torch's choice",
         bound=AT_LEAST_ONE),
    Flag("eval.tasks", int, None, _B, "number of tasks to evaluate on, evenly spaced over the split; unset: all",
         bound=AT_LEAST_ONE),
    Flag("eval.tasks_between", int, 0, _B,
         "evaluations between start and end play at most this many of those tasks; 0: all of them", bound=NOT_NEGATIVE),
    Flag("eval.greedy", str, "never", _B,
         "evaluations that also play every task once at temperature 0: those at start and end, all, or none",
         choices=("ends", "always", "never")),
    Flag("eval.before_train", bool, True, _B, "evaluate before the first iteration"),
    Flag("eval.after_train", bool, True, _B, "evaluate after the last iteration"),
    Flag("ray.address", str, None, _D, "running Ray cluster to join; unset: start one here"),
    Flag("ray.num_gpus", int, None, _D, "logical GPUs that Ray counts on a machine without any; unset: as needed",
         bound=NOT_NEGATIVE),
)  # fmt: skip

_SCHEDULES = (
    "constant", "constant_with_warmup", "cosine", "cosine_with_min_lr", "cosine_with_restarts",
    "cosine_warmup_with_min_lr", "inverse_sqrt", "linear", "polynomial",
)  # fmt: skip

_PRESETS: dict[str, dict[str, Any]] = {
    # Group estimators need several episodes per task; OpenRLHF's 1 would make every advantage zero.
    "rollout.n_samples_per_prompt": {"default": 8},
    "rollout.max_new_tokens": {"default": 512},
    # Every evaluation task is played once by default.
    "eval.n_samples_per_prompt": {"default": 1},
    # One advantage per action leaves no per-token reward to subtract a KL from, so the KL is a loss term.
    "algo.kl.use_loss": {"default": True},
    "algo.kl.estimator": {"default": "k3"},
    # OpenRLHF compares the mean over an action's tokens; the product is the ratio of the whole action.
    "algo.advantage.is_correction_level": {
        "choices": ("off", "token", "seq", "seq-product"),
        "help": "correct for a sampler that differs from the training pass: per token, per action by the mean over its "
        "tokens, or by their product",
    },
    "actor.lr_scheduler": {"choices": _SCHEDULES},
    "critic.lr_scheduler": {"choices": _SCHEDULES},
    "ds.param_dtype": {"choices": ("bf16", "fp16", "fp32")},
    "logger.wandb.project": {"default": "openrlhf_gagpo"},
    "logger.wandb.run_name": {"default": None, "clock_default": False},
}  # fmt: skip
"""Differences from OpenRLHF's parser: new defaults and wider choices."""


def all_flags() -> dict[str, Flag]:
    """Return every flag by name: OpenRLHF's with our presets, our own, and the options of registered algorithms."""
    return dict(_all_flags(families()))


@lru_cache(maxsize=8)
def _all_flags(registered: tuple[Family, Family]) -> dict[str, Flag]:
    flags = {flag.name: replace(flag, **_PRESETS.get(flag.name, {})) for flag in (*OPENRLHF_FLAGS, *OWN_FLAGS)}
    for family in registered:
        chooser = flags[family.chooser]
        default = DEFAULT_ESTIMATOR if family.chooser == ESTIMATOR else chooser.default
        flags[family.chooser] = replace(chooser, default=default, choices=tuple(family.options_cls))
        for name, flag in family.options.items():
            ours = any(family.options_cls[owner].__module__.startswith(_OURS) for owner in family.owners[name])
            if name in flags and not ours:
                raise PluginError(
                    f"option {name.removeprefix(family.prefix)} of {family.owners[name][0]} would be the flag --{name} "
                    "of the run; rename it"
                )
            # OpenRLHF's flags of the loss and the estimator mean what the algorithm says.
            known = flags.get(name, flag)
            flags[name] = replace(known, help=flag.help, choices=flag.choices, bound=flag.bound)
    return flags | {flag.name: flag for flag in DEPRECATED_FLAGS}
