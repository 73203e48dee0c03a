"""``gagpo env openenv``: an environment as an OpenEnv server."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from agent_envs import serving
from openrlhf_gagpo.cli.env_access import refusals
from openrlhf_gagpo.errors import ConfigError

__all__ = ["serve_openenv"]


def serve_openenv(name: str, options: Mapping[str, Any], host: str, port: int, sessions: int) -> None:
    """Serve environment ``name`` until Ctrl-C; port 0 takes any free one.

    Raises ``ConfigError`` if the environment cannot be made, the port is taken, or a package is missing.
    """
    try:
        import uvicorn  # noqa: F401
        import websockets  # noqa: F401  # without it uvicorn refuses every session

        from agent_envs.adapters.openenv_server import make_app
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the server needs {error.name}, which is not installed; install openrlhf-gagpo[openenv]"
        ) from error

    def ready(address: str) -> None:
        sys.stdout.write(f"{address} serves {name} to OpenEnv clients; Ctrl-C stops it\n")
        sys.stdout.flush()

    with refusals():
        serving.serve(make_app(name, options, sessions), host, port, ready)
