"""Loading of what users register themselves from files or modules, such as those named with ``--algo.plugin``."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agent_envs.importing import import_file
from openrlhf_gagpo.errors import PluginError

__all__ = ["load_algo_plugin", "load_algo_plugins", "load_player_plugin"]


def load_algo_plugins(sources: Iterable[str]) -> None:
    """Load each of ``sources``; see ``load_algo_plugin``."""
    for source in sources:
        load_algo_plugin(source)


def load_algo_plugin(source: str) -> None:
    """Import a file (``path/to/file.py``) or module (``package.module``) that registers estimators or losses.

    Loading the same one again does nothing; one that fails leaves nothing registered.

    Raises:
        PluginError: it does not exist, fails on import, or registers nothing.
    """
    from openrlhf_gagpo.credit import registry as estimators
    from openrlhf_gagpo.losses import registry as losses

    _load(
        source,
        (
            _Plugged(estimators.snapshot, estimators.restore, lambda entry: entry.compute),
            _Plugged(losses.snapshot, losses.restore, lambda entry: entry.compute),
        ),
        "no estimator and no policy loss; decorate a function with openrlhf_gagpo.credit.register or "
        "openrlhf_gagpo.losses.register",
    )


def load_player_plugin(source: str) -> None:
    """Import a file or module that registers agents or policies, with the rules of ``load_algo_plugin``."""
    from openrlhf_gagpo.agents import registry as agents
    from openrlhf_gagpo.policies import registry as policies

    _load(
        source,
        (
            _Plugged(agents.snapshot, agents.restore, lambda entry: entry.make),
            _Plugged(policies.snapshot, policies.restore, lambda entry: entry.make),
        ),
        "no agent and no policy; decorate a class with openrlhf_gagpo.agents.register or "
        "openrlhf_gagpo.policies.register",
    )


class _Plugged(NamedTuple):
    """A registry that a plugin may fill."""

    snapshot: Callable[[], Mapping[str, Any]]
    restore: Callable[[Mapping[str, Any]], None]
    thing: Callable[[Any], Any]
    """Returns the function or class of an entry."""


def _load(source: str, registries: Sequence[_Plugged], nothing: str) -> None:
    """Import ``source``, which has to fill one of ``registries``; ``nothing`` ends the error if it does not."""
    is_file = source.endswith(".py")
    path = Path(os.path.expanduser(source)).resolve()
    if is_file and not path.is_file():
        raise PluginError(f"there is no plugin file {source}; give the path of a .py file or a module name")
    name = f"gagpo_plugin_{hashlib.sha1(str(path).encode()).hexdigest()[:12]}" if is_file else source
    if is_file and name in sys.modules:
        return
    before = [registry.snapshot() for registry in registries]
    try:
        import_file(name, path) if is_file else importlib.import_module(name)
        problem: BaseException | None = None
    # SystemExit too: a script that ends when it is imported must not end this program.
    except (Exception, SystemExit) as error:
        problem = error
    after = [registry.snapshot() for registry in registries]
    # A module may have been imported before, so what it registered is looked for by its name.
    things = [
        registry.thing(entry) for registry, entries in zip(registries, after, strict=True) for entry in entries.values()
    ]
    if problem is None and (after != before or any(thing.__module__ == name for thing in things)):
        return
    for registry, entries in zip(registries, before, strict=True):
        registry.restore(entries)
    if is_file:
        sys.modules.pop(name, None)
    if problem is not None:
        raise PluginError(f"plugin {source} failed on import: {type(problem).__name__}: {problem}") from problem
    raise PluginError(f"plugin {source} registers {nothing}")
