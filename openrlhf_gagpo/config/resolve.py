"""Resolution of an argument list into a configuration that records where every value came from."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from openrlhf_gagpo import machine
from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.config import recipes
from openrlhf_gagpo.config.deprecated import translate
from openrlhf_gagpo.config.families import ESTIMATOR, Family, families, needs_critic
from openrlhf_gagpo.config.flag import Disposition, Flag
from openrlhf_gagpo.config.flags import all_flags
from openrlhf_gagpo.config.parser import parse, preparse
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.plugins import load_algo_plugins

__all__ = ["COMMAND_LINE", "DEFAULT", "Config", "resolve", "uses_critic"]

DEFAULT = "default"
COMMAND_LINE = "command line"
PLUGIN = "algo.plugin"
DERIVED, MACHINE = recipes.DERIVED_ORIGINS


class Config:
    """A resolved configuration. ``cfg.algo.kl.init_coef`` and ``cfg.get("algo.kl.init_coef")`` are the same value."""

    def __init__(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        self._values = dict(values)
        self._origins = dict(origins)
        self._root = _nest(self._values)

    def __getattr__(self, name: str) -> Any:
        # While pickle rebuilds the object, the underscored attributes do not exist yet.
        if name.startswith("_") or not hasattr(self._root, name):
            raise AttributeError(f"the configuration has no section {name!r}")
        return getattr(self._root, name)

    def get(self, name: str) -> Any:
        """Return the value of the flag ``name`` (dotted, no dashes). Raises ``KeyError`` if it is not a flag."""
        return self._values[name]

    @staticmethod
    def default(name: str) -> Any:
        """Return the default of the flag ``name``, in the form of a value."""
        return _copy(all_flags()[name].default)

    def origin(self, name: str) -> str:
        """Return where the value came from.

        One of "default", "estimator <name>", "policy loss <name>", a recipe's path, "command line", "derived" (from
        other values) and "machine".
        """
        return self._origins[name]

    def namespace(self) -> SimpleNamespace:
        """Return a new nested namespace of all values, with OpenRLHF's refused flags at their defaults.

        It has the form of OpenRLHF's own parsed arguments; changing it does not change the configuration.
        """
        return _nest(self._values)

    def names(self) -> list[str]:
        """Return the flags that have a meaning in this configuration, without refused ones and options of others."""
        foreign = {flag for family in families() for flag in _foreign(family, self.get(family.chooser))}
        return [
            name
            for name, flag in all_flags().items()
            if flag.disposition is not Disposition.REFUSED and not flag.deprecated and name not in foreign
        ]

    def unused(self) -> list[str]:
        """Return the flags set by a recipe that the chosen backend does not act on."""
        flags, one_process = all_flags(), BACKENDS[self.get("backend")].one_process
        return [
            name
            for name in self.names()
            if self.origin(name) not in (DEFAULT, DERIVED, MACHINE)
            and not flags[name].disposition.honoured_by(one_process)
        ]

    def options(self, family: Family) -> Any:
        """Return the options of the family's chosen algorithm. Raises ``ConfigError`` for a value it refuses."""
        return family.build(self.get(family.chooser), self._values)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return ``{"values": ..., "origins": ...}`` by dotted name, in plain YAML types and without secrets."""
        flags = all_flags()
        names = [name for name in self.names() if not (flags[name].command_line_only or flags[name].secret)]
        return {
            "values": {name: _copy(self.get(name)) for name in names},
            "origins": {name: self.origin(name) for name in names},
        }

    def command(self) -> list[str]:
        """Return this process's command line without the values of secret flags."""
        flags, words, hide = all_flags(), [], False
        for word in sys.argv:
            name, equals, _ = word.removeprefix("--").partition("=")
            secret = word.startswith("--") and name in flags and flags[name].secret
            words.append("***" if hide else f"--{name}=***" if secret and equals else word)
            hide = secret and not equals
        return words

    def save(self, path: str | Path) -> None:
        """Write ``to_dict`` as YAML; the file is a recipe that gives the same configuration again."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)
        Path(path).write_text(text, encoding="utf-8")


def resolve(argv: Sequence[str]) -> Config:
    """Resolve defaults, presets of the algorithms, recipes and the command line; later ones override earlier ones.

    Plugins of algorithms are loaded in the process, since they add flags.

    Raises:
        ConfigError: an unknown or refused flag, a wrong value, an option of another algorithm, or a broken plugin.
    """
    recipe, named = preparse(argv)
    chain = recipes.read(recipe) if recipe else []
    load_algo_plugins([*recipes.plugins(chain, all_flags()[PLUGIN]), *named])
    flags = all_flags()
    given = parse(argv)
    layers = [_Layer(DEFAULT, {name: _copy(flag.default) for name, flag in flags.items()})]
    layers += [_Layer(checked.origin, _set_values(checked.values)) for checked in recipes.check(chain, flags)]
    layers.append(_Layer(COMMAND_LINE, given))
    for layer in layers[1:]:
        _refuse(layer, flags)
    for family in families():
        layers = _with_choice(layers, family, flags)
    values, origins = _merge(layers)
    _translate(values, origins)
    _derive(values, origins)
    config = Config(values, origins)
    for family in families():
        config.options(family)
    return config


def uses_critic(config: Config) -> bool:
    """Return whether the run's estimator needs a critic's values."""
    return needs_critic(config.get(ESTIMATOR))


@dataclass
class _Layer:
    origin: str
    values: Mapping[str, Any]

    def name(self, flag: str) -> str:
        """Return the name of ``flag`` in this layer for an error message."""
        return f"--{flag}" if self.origin == COMMAND_LINE else f"{flag} in {self.origin}"


def _set_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``values`` without unset options of algorithms, which keep the default of the algorithm that is chosen."""
    options = {name for family in families() for name in family.options}
    return {name: value for name, value in values.items() if value is not None or name not in options}


def _refuse(layer: _Layer, flags: Mapping[str, Flag]) -> None:
    for name, value in layer.values.items():
        flag = flags[name]
        if flag.disposition is Disposition.REFUSED and value != _copy(flag.default):
            raise ConfigError(f"{layer.name(name)} is not supported: {flag.help}")


def _foreign(family: Family, name: str) -> set[str]:
    """Return the options of the family that its algorithm ``name`` does not have."""
    return {flag for flag, owners in family.owners.items() if name not in owners}


def _with_choice(layers: list[_Layer], family: Family, flags: Mapping[str, Flag]) -> list[_Layer]:
    """Return ``layers`` with the presets of the family's chosen algorithm inserted above the defaults.

    An option that the algorithm does not have is an error if it was set together with the choice or after it, and is
    left out if the choice was made afterwards.
    """
    chosen = max(index for index, layer in enumerate(layers) if family.chooser in layer.values)
    name = layers[chosen].values[family.chooser]
    foreign = _foreign(family, name)
    for layer in layers[chosen or 1 :]:
        for flag, value in layer.values.items():
            # A value that equals the default is harmless, as in the saved configuration of a run.
            if flag in foreign and value != layers[0].values[flag]:
                owners = ", ".join(family.owners[flag])
                raise ConfigError(
                    f"{layer.name(flag)} is not an option of {name} ({family.chooser}); it belongs to {owners}"
                )
    kept = [_Layer(layer.origin, {k: v for k, v in layer.values.items() if k not in foreign}) for layer in layers[1:]]
    origin = family.origin(name)
    preset = {
        flag: flags[flag].coerce(value, f"{flag} preset by {origin}")
        for flag, value in {**family.defaults(name), **family.presets.get(name, {})}.items()
    }
    return [layers[0], _Layer(origin, preset), *kept]


def _merge(layers: Sequence[_Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        # Options belong to one environment, so they are dropped when a later layer chooses another.
        if values.get("env.name") not in (None, layer.values.get("env.name", values.get("env.name"))):
            values["env.options"], origins["env.options"] = {}, DEFAULT
        for name, value in layer.values.items():
            if name == "env.options" and name in values:
                value = {**values[name], **value}
            elif name in (PLUGIN, "env.plugin") and name in values:
                # Each layer's plugins are loaded, so none is forgotten.
                value = list(dict.fromkeys([*values[name], *value]))
            values[name], origins[name] = value, layer.origin
    return values, origins


def _nobody(values: Mapping[str, Any]) -> set[str]:
    """Return the origins of values that neither a recipe nor the command line gave."""
    return {DEFAULT, *(family.origin(values[family.chooser]) for family in families())}


def _translate(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Replace deprecated flags by the values they stand for, with a warning for each."""
    flags = all_flags()
    for name, meaning in translate(values).items():
        sys.stderr.write(f"gagpo: warning: {name} ({origins[name]}) is deprecated; use {flags[name].deprecated}\n")
        for flag, value in meaning.items():
            if flag != flags[name].replaces and origins[flag] not in _nobody(values):
                raise ConfigError(f"{name} and {flag} contradict each other; remove {name}, which will go")
            values[flag], origins[flag] = value, origins[name]


def _derive(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Fill in values that follow from other values or from the machine, unless they were set."""

    nobody = _nobody(values)

    def fill(name: str, value: Any, origin: str = DERIVED) -> None:
        if origins[name] in nobody and value is not None:
            values[name], origins[name] = value, origin

    episodes = values["rollout.batch_size"] * values["rollout.n_samples_per_prompt"]
    fill("run_dir", f"runs/{values['env.name']}-{values[ESTIMATOR]}-seed{values['train.seed']}")
    fill("ckpt.path", str(Path(values["run_dir"]) / "checkpoints"))
    fill("ckpt.output_dir", str(Path(values["run_dir"]) / "model"))
    fill("logger.wandb.run_name", Path(values["run_dir"]).name)
    # A loss has its own pair of bounds, unless the user gave one bound for both sides.
    if origins["actor.eps_clip"] not in (DEFAULT, origins["actor.eps_clip_low_high"]):
        fill("actor.eps_clip_low_high", [values["actor.eps_clip"]] * 2)
    if values["actor.eps_clip_low_high"] is None:
        # OpenRLHF's workers build its loss as well and need a pair, also where the run's own loss does not clip.
        values["actor.eps_clip_low_high"], origins["actor.eps_clip_low_high"] = [values["actor.eps_clip"]] * 2, DERIVED
    fill("rollout.concurrency", episodes)
    fill("env.workers", max(1, min(machine.cores(), values["rollout.concurrency"])), MACHINE)
    # A submitted job joins the cluster it was submitted to, which may have devices that this machine lacks.
    if not BACKENDS[values["backend"]].one_process:
        fill("ray.address", os.environ.get("RAY_ADDRESS") or None, MACHINE)
    if BACKENDS[values["backend"]].one_process and not _on_cuda(values):
        # On a CPU, bfloat16 is slower than float32 by a factor of two and rounds log-probabilities to 2e-3.
        fill("ds.param_dtype", "fp32", MACHINE)
    if values["ds.param_dtype"] == "fp32":
        fill("ds.attn_implementation", "sdpa")  # flash-attn has no fp32
    if not machine.has_flash_attention() and not values["ray.address"]:
        fill("ds.attn_implementation", "sdpa", MACHINE)
    if not machine.has_cuda() and not values["ray.address"]:
        # On a CPU, vLLM reads this as a share of main memory, most of which the models need.
        fill("vllm.gpu_memory_utilization", 0.2, MACHINE)
    if values["train.colocate_all"] or values["train.colocate_actor_ref"]:
        fill("ref.num_nodes", values["actor.num_nodes"])
        fill("ref.num_gpus_per_node", values["actor.num_gpus_per_node"])
    if needs_critic(values[ESTIMATOR]):
        fill("critic.model_name_or_path", values["actor.model_name_or_path"])
        if _same_folder(values["critic.model_name_or_path"], values["actor.model_name_or_path"]):
            # Both backends tell by equal names that the critic starts from the policy's weights and lacks a head.
            values["critic.model_name_or_path"] = values["actor.model_name_or_path"]
        if values["train.colocate_all"]:
            fill("critic.num_nodes", values["actor.num_nodes"])
            fill("critic.num_gpus_per_node", values["actor.num_gpus_per_node"])
    if values["train.dynamic_batch_enable"]:
        fill("rollout.max_tokens_per_gpu", values["train.max_tokens_per_gpu"])
    if values["train.dynamic_batch_enable"] or values["ds.ring_attn_size"] > 1:
        fill("ds.packing_samples", True)


def _same_folder(first: str | None, second: str | None) -> bool:
    return (
        first is not None
        and second is not None
        and os.path.isdir(first)
        and os.path.isdir(second)
        and os.path.samefile(first, second)
    )


def _on_cuda(values: Mapping[str, Any]) -> bool:
    wanted = values["train.device"]
    return machine.has_cuda() if wanted == "auto" else wanted == "cuda"


def _nest(values: Mapping[str, Any]) -> SimpleNamespace:
    """Turn dotted names into nested namespaces; a mapping that is a value stays a mapping."""
    root = SimpleNamespace()
    for name, value in values.items():
        node = root
        *sections, last = name.split(".")
        for section in sections:
            if not hasattr(node, section):
                setattr(node, section, SimpleNamespace())
            node = getattr(node, section)
        setattr(node, last, _copy(value))
    return root


def _copy(value: Any) -> Any:
    """Return a copy of a flag's value, with sequences as lists."""
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, (list, tuple)) else value
