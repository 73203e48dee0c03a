"""Access to environments for the ``gagpo env`` commands, with failures turned into one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from agent_envs import registry
from agent_envs.base import TextEnv
from agent_envs.errors import EnvError
from openrlhf_gagpo.config.flag import Disposition, Flag
from openrlhf_gagpo.errors import ConfigError

__all__ = ["OPTIONS", "load_plugins", "made", "refusals"]

OPTIONS = Flag("env.options", dict, {}, Disposition.BOTH, "options of the environment: a JSON object, or key=value")


def load_plugins(plugins: Sequence[str]) -> None:
    """Load each plugin file or module. Raises ``ConfigError`` for one that cannot be used."""
    with refusals():
        for plugin in plugins:
            registry.load_plugin(plugin)


@contextmanager
def made(name: str, options: Mapping[str, Any]) -> Iterator[TextEnv]:
    """Make an instance and close it at the end. Raises ``ConfigError`` if it cannot be made."""
    with refusals():
        env = registry.make(name, **options)
    try:
        yield env
    finally:
        env.close()


@contextmanager
def refusals() -> Iterator[None]:
    """Turn the errors of registry, environments and generators about unusable input into ``ConfigError``."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be used: {error.strerror}; choose another path") from error
    except (EnvError, ValueError, TypeError) as error:
        raise ConfigError(str(error).rstrip(".")) from error
