"""Serving of an ASGI application, for everything here that answers HTTP."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from agent_envs.errors import EnvError

__all__ = ["LOOPBACK", "serve"]

LOOPBACK = "127.0.0.1"


def serve(app: Any, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve ``app`` until Ctrl-C.

    Args:
        port: 0 takes any free one.
        ready: called with the address, such as ``http://127.0.0.1:8000``, once it listens.

    Raises:
        EnvError: the address cannot be used.
        ModuleNotFoundError: uvicorn is not installed.
    """
    import uvicorn

    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(kind, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise EnvError(f"{host}:{port} cannot be used ({error.strerror}); choose another port or host") from error
        listening.listen(128)
        shown = f"[{host}]" if kind == socket.AF_INET6 else host
        ready(f"http://{shown}:{listening.getsockname()[1]}")
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")
        uvicorn.Server(config).run(sockets=[listening])
