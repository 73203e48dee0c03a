"""``gagpo env openenv``: an environment as an OpenEnv server."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from typing import Any

from openrlhf_gagpo.cli.env_access import refusals
from openrlhf_gagpo.errors import ConfigError

__all__ = ["serve_openenv"]


def serve_openenv(name: str, options: Mapping[str, Any], host: str, port: int, sessions: int) -> None:
    """Serve environment ``name`` until Ctrl-C; port 0 takes any free one.

    Raises ``ConfigError`` if the environment cannot be made, the port is taken, or a package is missing.
    """
    try:
        import uvicorn
        import websockets  # noqa: F401  # without it uvicorn refuses every session

        from agent_envs.adapters.openenv_server import make_app
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the server needs {error.name}, which is not installed; install openrlhf-gagpo[openenv]"
        ) from error
    with refusals():
        app = make_app(name, options, sessions)
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise ConfigError(f"{host}:{port} cannot be used ({error.strerror}); name another --host or --port") from error
    listening.listen()
    sys.stdout.write(f"http://{host}:{listening.getsockname()[1]} serves {name} to OpenEnv clients; Ctrl-C stops it\n")
    sys.stdout.flush()
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])
