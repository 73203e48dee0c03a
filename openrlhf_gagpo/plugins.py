"""Loading of estimators and policy losses from files or modules named with ``--algo.plugin``."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from agent_envs.importing import import_file
from openrlhf_gagpo.errors import PluginError

__all__ = ["load_algo_plugin", "load_algo_plugins"]


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

    is_file = source.endswith(".py")
    path = Path(source).expanduser().resolve()
    if is_file and not path.is_file():
        raise PluginError(f"there is no plugin file {source}; give the path of a .py file or a module name")
    name = f"gagpo_plugin_{hashlib.sha1(str(path).encode()).hexdigest()[:12]}" if is_file else source
    if is_file and name in sys.modules:
        return
    before = estimators.snapshot(), losses.snapshot()
    try:
        import_file(name, path) if is_file else importlib.import_module(name)
        problem: BaseException | None = None
    # SystemExit too: a script that ends when it is imported must not end this program.
    except (Exception, SystemExit) as error:
        problem = error
    after = estimators.snapshot(), losses.snapshot()
    # A module may have been imported before, so what it registered is looked for by its name.
    functions = [entry.compute for entries in after for entry in entries.values()]
    if problem is None and (after != before or any(function.__module__ == name for function in functions)):
        return
    estimators.restore(before[0])
    losses.restore(before[1])
    if is_file:
        sys.modules.pop(name, None)
    if problem is not None:
        raise PluginError(f"plugin {source} failed on import: {type(problem).__name__}: {problem}") from problem
    raise PluginError(
        f"plugin {source} registers no estimator and no policy loss; decorate a function with "
        "openrlhf_gagpo.credit.register or openrlhf_gagpo.losses.register"
    )
