"""A server that answers every message of an OpenEnv session as a test says."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

__all__ = ["observation", "scripted", "serving"]


def observation(reward: Any = None, done: Any = False, **fields: Any) -> str:
    """One observation as OpenEnv words it."""
    return json.dumps({"type": "observation", "data": {"observation": fields, "reward": reward, "done": done}})


def scripted(
    answer: Callable[[dict[str, Any]], str | None],
    splits: Response | None = None,
    required: Sequence[str] = ("message",),
) -> Starlette:
    """Return a server whose sessions send ``answer(message)``, and close if that is None."""

    async def session(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while (reply := answer(json.loads(await websocket.receive_text()))) is not None:
                await websocket.send_text(reply)
        except WebSocketDisconnect:
            return
        await websocket.close()

    def list_splits(_: Request) -> Response:
        return splits or JSONResponse({"detail": "not supported"}, 501)

    schema = {"action": {"title": "Act", "required": list(required)}}
    routes = [
        Route("/list_environments", lambda _: JSONResponse(["made-up"])),
        Route("/made-up/splits", list_splits),
        Route("/schema", lambda _: JSONResponse(schema)),
        WebSocketRoute("/ws", session),
    ]
    return Starlette(routes=routes)


@contextmanager
def serving(app: Starlette) -> Iterator[str]:
    """Serve ``app`` on a free port of loopback and give the address."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
