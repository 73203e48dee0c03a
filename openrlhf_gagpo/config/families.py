"""The registered estimators and policy losses as flags: which one is chosen, its options, and its presets."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from openrlhf_gagpo import losses
from openrlhf_gagpo.config.flag import Disposition, Flag, between
from openrlhf_gagpo.config.openrlhf_flags import CRITIC_FLAGS
from openrlhf_gagpo.credit import CRITIC_COLUMNS
from openrlhf_gagpo.credit import registry as estimators
from openrlhf_gagpo.errors import ConfigError, PluginError
from openrlhf_gagpo.options import Options

__all__ = ["ESTIMATOR", "LOSS", "Family", "families", "needs_critic", "option_family"]

ESTIMATOR = "algo.advantage.estimator"
LOSS = "actor.policy_loss_type"


@dataclass(frozen=True, eq=False)
class Family:
    """All algorithms of one kind; a run uses one of them."""

    kind: str
    """What they are, in words."""
    chooser: str
    """Flag that names the one that is used."""
    prefix: str
    """Prefix of the flags of its options."""
    options_cls: Mapping[str, type[Options]]
    """Name -> its options."""
    presets: Mapping[str, Mapping[str, object]]
    """Name -> run-level flags that choosing it presets."""
    options: Mapping[str, Flag]
    """Flag name -> flag, for the union of all options."""
    owners: Mapping[str, tuple[str, ...]]
    """Flag name -> the algorithms that have the option, or for which a flag of the run has a meaning."""

    def origin(self, name: str) -> str:
        """Return how values are marked that choosing ``name`` presets."""
        return f"{self.kind} {name}"

    def defaults(self, name: str) -> dict[str, Any]:
        """Return the default flag values of the options of ``name``."""
        return {self.prefix + item.name: _default_of(item) for item in fields(self.options_cls[name])}

    def build(self, name: str, values: Mapping[str, Any]) -> Options:
        """Build the options of ``name`` from flag values. Raises ``ConfigError`` for values that it refuses."""
        cls = self.options_cls[name]
        given = {item.name: values[self.prefix + item.name] for item in fields(cls)}
        try:
            return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
        except ValueError as error:
            raise ConfigError(f"{self.prefix}{error}") from None


def needs_critic(estimator: str) -> bool:
    """Return whether the estimator asks for a critic's values."""
    return bool(estimators.get(estimator).needs & CRITIC_COLUMNS)


def families() -> tuple[Family, Family]:
    """Return the estimators and the policy losses that are registered now.

    Raises:
        PluginError: two algorithms disagree on an option's type, or a flag cannot hold an option's type.
    """
    # Cached by the option classes too: a plugin that failed may come back under the same name.
    return _families(
        tuple((name, estimators.get(name).options_cls) for name in estimators.names()),
        tuple((name, losses.get(name).options_cls) for name in losses.names()),
    )


def option_family(kind: str, chooser: str, prefix: str, options_cls: Mapping[str, type[Options]]) -> Family:
    """Return things of another kind, with their options as flags.

    Raises:
        PluginError: two of them disagree on an option, or a flag cannot hold an option's type.
    """
    return _family(kind, chooser, prefix, options_cls, {}, {})


@lru_cache(maxsize=8)
def _families(
    estimator_options: tuple[tuple[str, type[Options]], ...], loss_options: tuple[tuple[str, type[Options]], ...]
) -> tuple[Family, Family]:
    presets = {name: estimators.get(name).presets for name, _ in estimator_options}
    critics = tuple(name for name, _ in estimator_options if needs_critic(name))
    return (
        _family(
            "estimator",
            ESTIMATOR,
            "algo.advantage.",
            dict(estimator_options),
            presets,
            dict.fromkeys(CRITIC_FLAGS, critics),
        ),
        _family("policy loss", LOSS, "actor.", dict(loss_options), {}, {}),
    )


def _family(
    kind: str,
    chooser: str,
    prefix: str,
    options_cls: Mapping[str, type[Options]],
    presets: Mapping[str, Mapping[str, object]],
    run_flags: Mapping[str, tuple[str, ...]],
) -> Family:
    options: dict[str, Flag] = {}
    owners = dict(run_flags)
    for name, cls in options_cls.items():
        hints = get_type_hints(cls)
        for item in fields(cls):
            flag = _option_flag(prefix, item, hints[item.name])
            known = options.setdefault(flag.name, flag)
            if known != flag:
                raise PluginError(
                    f"option {item.name} of {name} is described differently than that of {owners[flag.name][0]}; "
                    "rename it, or describe it the same way"
                )
            owners[flag.name] = (*owners.get(flag.name, ()), name)
    return Family(kind, chooser, prefix, options_cls, presets, options, owners)


def _option_flag(prefix: str, item: Field[Any], hint: Any) -> Flag:
    choices = item.metadata.get("choices")
    nargs = None
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [part for part in get_args(hint) if part is not type(None)]
        hint = kinds[0] if len(kinds) == 1 else hint
    if get_origin(hint) is Literal:
        choices = choices or get_args(hint)
        hint = type(choices[0])
    if get_origin(hint) is tuple and len(set(get_args(hint))) == 1:
        nargs, hint = len(get_args(hint)), get_args(hint)[0]
    if hint not in (bool, int, float, str):
        raise PluginError(f"option {item.name} has the type {hint}, which a flag cannot hold; use a plain one")
    limits = item.metadata.get("range")
    # Not set until an algorithm that has the option is chosen.
    return Flag(
        prefix + item.name,
        hint,
        None,
        Disposition.BOTH,
        item.metadata.get("help", ""),
        choices=tuple(choices) if choices else None,
        nargs=nargs,
        bound=between(*limits) if limits else None,
    )


def _default_of(item: Field[Any]) -> Any:
    if item.default_factory is not MISSING:
        return item.default_factory()
    return list(item.default) if isinstance(item.default, tuple) else item.default
