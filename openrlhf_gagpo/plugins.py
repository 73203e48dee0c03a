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
    if name in sys.modules:
        return
    before = estimators.snapshot(), losses.snapshot()
    try:
        import_file(name, path) if is_file else importlib.import_module(name)
    except Exception as error:
        estimators.restore(before[0])
        losses.restore(before[1])
        raise PluginError(f"plugin {source} failed on import: {type(error).__name__}: {error}") from error
    if (estimators.snapshot(), losses.snapshot()) == before:
        raise PluginError(
            f"plugin {source} registers no estimator and no policy loss; decorate a function with "
            "openrlhf_gagpo.credit.register or openrlhf_gagpo.losses.register"
        )
