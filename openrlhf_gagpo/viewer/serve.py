"""The server of ``gagpo view``."""

from __future__ import annotations

from collections.abc import Callable

from agent_envs import serving
from agent_envs.errors import EnvError
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.viewer.app import make_app
from openrlhf_gagpo.viewer.store import Store

__all__ = ["serve"]


def serve(store: Store, port: int, ready: Callable[[str], None]) -> None:
    """Serve the pages of ``store`` on loopback until Ctrl-C.

    Args:
        port: 0 takes any free one.
        ready: called with the address once it answers.

    Raises:
        ConfigError: the port is taken.
    """
    try:
        serving.serve(make_app(store), serving.LOOPBACK, port, lambda address: ready(f"{address}/"))
    except EnvError as error:
        raise ConfigError(f"the pages cannot be served: {error}") from error
