"""This tool's own flags, what it presets differently from OpenRLHF, and the flags of the estimators' options."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from openrlhf_gagpo.config.flag import Disposition, Flag
from openrlhf_gagpo.config.openrlhf_flags import OPENRLHF_FLAGS

__all__ = ["ESTIMATOR", "OPTION_PREFIX", "Estimators", "all_flags", "estimators"]

ESTIMATOR = "algo.advantage.estimator"
OPTION_PREFIX = "algo.advantage."

_B = Disposition.BOTH
_D = Disposition.DISTRIBUTED
_L = Disposition.LOCAL

_INVALID_RULES = ("format", "action", "either")

OWN_FLAGS: tuple[Flag, ...] = (
    Flag("config", str, None, _B, "recipe to start from (YAML)", command_line_only=True),
    Flag("dry_run", bool, False, _B, "show the configuration and the placement, then stop", command_line_only=True),
    Flag("backend", str, "distributed", _B, "what runs the model", choices=("distributed", "local")),
    Flag("run_dir", str, None, _B, "folder of the run; default runs/<environment>-<estimator>-seed<seed>"),
    Flag("eval_only", bool, False, _B, "evaluate the model and stop"),
    Flag("report", bool, True, _B, "write an HTML report at the end"),
    Flag("env.name", str, None, _B, "environment to play"),
    Flag("env.split", str, "train", _B, "split that training tasks come from"),
    Flag("env.eval_split", str, None, _B, "split that evaluation plays; unset: no evaluation"),
    Flag("env.options", dict, {}, _B, "options of the environment: a JSON object, or key=value as often as needed"),
    Flag("env.plugin", str, [], _B, "file or module that registers environments; may be repeated", repeatable=True),
    Flag("env.max_steps", int, None, _B, "steps of an episode; unset: the environment's own limit"),
    Flag("env.workers", int, None, _B, "environment processes; unset: one per core, not more than episodes"),
    Flag("env.reset_timeout", float, 120.0, _B, "seconds that a reset may take"),
    Flag("env.step_timeout", float, 60.0, _B, "seconds that a step may take"),
    Flag("rollout.history_length", int, 2, _B, "earlier turns shown in the prompt"),
    Flag("rollout.think", bool, True, _B, "ask for reasoning before the action"),
    Flag("rollout.action_tags", bool, True, _B, "ask for the action in tags"),
    Flag("rollout.list_actions", bool, True, _B, "list the admissible actions in the prompt"),
    Flag("rollout.chat_template", str, "auto", _B, "whether prompts use the chat template", choices=("auto", "none")),
    Flag("rollout.concurrency", int, None, _B, "episodes in flight; unset: all of an iteration"),
    Flag("rollout.record", str, "all", _B, "episodes written to the run folder", choices=("all", "none")),
    Flag("algo.advantage.invalid_rule", str, "format", _B, "what makes a step invalid", choices=_INVALID_RULES),
    Flag("algo.advantage.inadmissible_penalty", float, None, _B, "reward units taken off for a well-formed action that "
         "the environment did not recognise; unset: as invalid_rule says"),
    Flag("train.num_iterations", int, 160, _B, "iterations: one rollout and the updates from it"),
    Flag("train.device", str, "auto", _L, "device of the local backend", choices=("auto", "cpu", "cuda")),
    Flag("train.threads", int, None, _L, "torch threads of the local backend; unset: torch's choice"),
    Flag("eval.tasks", int, None, _B, "evaluate on so many tasks, evenly spaced over the split; unset: all"),
    Flag("eval.before_train", bool, True, _B, "evaluate before the first iteration"),
    Flag("eval.after_train", bool, True, _B, "evaluate after the last iteration"),
    Flag("ray.address", str, None, _D, "running Ray cluster to join; unset: start one here"),
    Flag("ray.num_gpus", int, None, _D, "logical GPUs that Ray counts on a machine without any; unset: as needed"),
)  # fmt: skip

_PRESETS: dict[str, dict[str, Any]] = {
    # Group estimators need several episodes of a task; OpenRLHF's 1 would make every advantage zero.
    "rollout.n_samples_per_prompt": {"default": 8},
    "rollout.max_new_tokens": {"default": 512},
    # Every evaluation task once, unless asked for more.
    "eval.n_samples_per_prompt": {"default": 1},
    # One advantage per action leaves no per-token reward to subtract a KL from, so the KL is a loss term.
    "algo.kl.use_loss": {"default": True},
    "algo.kl.estimator": {"default": "k3"},
    "ds.param_dtype": {"choices": ("bf16", "fp16", "fp32")},
    "logger.wandb.project": {"default": "openrlhf_gagpo"},
    "logger.wandb.run_name": {"default": None, "clock_default": False},
}
"""What differs from OpenRLHF's parser: new defaults, wider choices."""


@dataclass(frozen=True)
class Estimators:
    """The registered estimators, seen as flags."""

    specs: Mapping[str, Any]
    """Name -> entry of ``credit.registry``, with ``options_cls`` and ``defaults``."""
    options: Mapping[str, Flag]
    """Flag name -> flag, for the union of all option dataclasses."""
    owners: Mapping[str, tuple[str, ...]]
    """Flag name -> estimators that have the option."""

    def preset(self, name: str) -> dict[str, Any]:
        """Flag values that choosing estimator ``name`` implies: its options' defaults, then its ``defaults``."""
        cls = self.specs[name].options_cls
        values = {OPTION_PREFIX + field.name: _default_of(field) for field in fields(cls)}
        return values | dict(self.specs[name].defaults)


@cache
def estimators() -> Estimators:
    """All registered estimators and the flags of their options.

    Raises:
        TypeError: two estimators disagree on an option's type, or an option has a type no flag can carry.
    """
    from openrlhf_gagpo.credit import registry

    specs = {name: registry.get(name) for name in registry.names()}
    options: dict[str, Flag] = {}
    owners: dict[str, tuple[str, ...]] = {}
    for name, spec in specs.items():
        hints = get_type_hints(spec.options_cls)
        for field in fields(spec.options_cls):
            flag = _option_flag(field, hints[field.name])
            known = options.setdefault(flag.name, flag)
            if known.kind is not flag.kind:
                raise TypeError(
                    f"{name}: option {field.name} is {flag.kind.__name__} here, {known.kind.__name__} elsewhere"
                )
            owners[flag.name] = (*owners.get(flag.name, ()), name)
    return Estimators(specs, options, owners)


@cache
def all_flags() -> dict[str, Flag]:
    """Every flag by name: OpenRLHF's with our presets, our own, and the estimators' options."""
    flags = {flag.name: replace(flag, **_PRESETS.get(flag.name, {})) for flag in (*OPENRLHF_FLAGS, *OWN_FLAGS)}
    table = estimators()
    flags[ESTIMATOR] = replace(flags[ESTIMATOR], default="gagpo", choices=tuple(table.specs))
    for name, flag in table.options.items():
        flags.setdefault(name, flag)
    return flags


def _option_flag(field: Any, hint: Any) -> Flag:
    choices = field.metadata.get("choices")
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = [part for part in get_args(hint) if part is not type(None)]
    if get_origin(hint) is Literal:
        choices = choices or get_args(hint)
        hint = type(choices[0])
    if hint not in (bool, int, float, str):
        raise TypeError(f"estimator option {field.name} has type {hint}, which no flag can carry")
    text = field.metadata.get("help", "")
    # Unset until an estimator that has the option is chosen.
    return Flag(OPTION_PREFIX + field.name, hint, None, _B, text, choices=tuple(choices) if choices else None)


def _default_of(field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    return field.default_factory()
