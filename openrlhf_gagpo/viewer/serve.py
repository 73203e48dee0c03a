"""The server of ``gagpo view``."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.viewer.app import make_app
from openrlhf_gagpo.viewer.store import Store

__all__ = ["serve"]

_LOOPBACK = "127.0.0.1"


def serve(store: Store, port: int, ready: Callable[[str], None]) -> None:
    """Serve the pages of ``store`` on loopback until Ctrl-C.

    Args:
        port: 0 takes any free one.
        ready: called with the address once it answers.

    Raises:
        ConfigError: the port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((_LOOPBACK, port))
    except OSError as error:
        listening.close()
        raise ConfigError(f"port {port} cannot be used ({error.strerror}); name another with --port") from error
    listening.listen()
    ready(f"http://{_LOOPBACK}:{listening.getsockname()[1]}/")
    config = uvicorn.Config(make_app(store), log_level="warning", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])
