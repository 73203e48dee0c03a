"""Our environments as an OpenEnv server (protocol of openenv 0.10), without that package.

Each session is a WebSocket with an environment of its own. Tasks are listed over HTTP. A server of OpenEnv makes a new
environment for every other HTTP request, which is of no use to an episode, so ``/reset`` and ``/step`` do not exist.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from agent_envs import registry
from agent_envs.base import Reset, StepResult, TextEnv
from agent_envs.errors import EnvError

__all__ = ["make_app"]

_MOST_LISTED = 1000
"""Tasks that one request lists."""

_SPLIT_TYPES = {"train": "train", "test": "test"}
"""OpenEnv's types of splits; any other is "validation"."""

_Result = TypeVar("_Result")


def _object(title: str, required: Sequence[str], **properties: str) -> dict[str, Any]:
    types: dict[str, dict[str, Any]] = {name: {"type": kind} for name, kind in properties.items()}
    return {"title": title, "type": "object", "properties": types, "required": list(required)}


_ACTION = _object("TextAction", ["text"], text="string", metadata="object")
_OBSERVATION = _object(
    "TextObservation",
    ["text"],
    text="string",
    task="string",
    admissible_actions="array",
    admissible="boolean",
    terminated="boolean",
    truncated="boolean",
    success="boolean",
    score="number",
    metadata="object",
)
_STATE = _object("EpisodeState", [], episode_id="string", step_count="integer", task="string", seed="integer")


class _Refused(Exception):
    """A message that cannot be answered; ``code`` is OpenEnv's name for the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def make_app(name: str, options: Mapping[str, Any], sessions: int = 64) -> Starlette:
    """Return the server of environment ``name`` with these options, for at most that many ``sessions`` at a time.

    Observations have neither ``info`` nor what a task's payload holds, since either may contain the solution, and state
    keys are digests. Raises ``RegistryError`` or ``ValueError`` if no instance can be made.
    """
    catalogue = _Catalogue(name, registry.make(name, **options))
    hall = _Hall(name, options, catalogue, sessions)
    routes = [
        Route("/health", lambda _: JSONResponse({"status": "healthy"})),
        Route("/metadata", catalogue.metadata),
        Route(
            "/schema",
            lambda _: JSONResponse({"action": _ACTION, "observation": _OBSERVATION, "state": _STATE}),
        ),
        Route("/list_environments", lambda _: JSONResponse([name])),
        Route("/{env}/splits", catalogue.splits),
        Route("/{env}/tasks", catalogue.list_tasks, methods=["POST"]),
        Route("/{env}/num_tasks", catalogue.num_tasks, methods=["POST"]),
        Route("/{env}/task", catalogue.get_task, methods=["POST"]),
        Route("/{env}/task_range", catalogue.get_task_range, methods=["POST"]),
        WebSocketRoute("/ws", hall.serve),
    ]
    return Starlette(routes=routes)


class _Catalogue:
    """The tasks, from one instance that plays none of them."""

    def __init__(self, name: str, env: TextEnv) -> None:
        self._name = name
        self._env = env
        self.ids = {split: env.tasks(split) for split in env.splits}

    def metadata(self, _: Request) -> Response:
        about = (registry.get(self._name).__doc__ or self._name).strip().splitlines()[0]
        return JSONResponse({"name": self._name, "description": about})

    def splits(self, request: Request) -> Response:
        self._check_name(request)
        return JSONResponse([{"name": name, "type": _SPLIT_TYPES.get(name, "validation")} for name in self.ids])

    async def num_tasks(self, request: Request) -> Response:
        _, ids = await self._asked(request)
        return JSONResponse({"num_tasks": len(ids)})

    async def list_tasks(self, request: Request) -> Response:
        _, ids = await self._asked(request)
        return JSONResponse({"tasks": self._described(ids, 0, _MOST_LISTED), "env_name": self._name})

    async def get_task(self, request: Request) -> Response:
        body, ids = await self._asked(request)
        index = body.get("index")
        if not isinstance(index, int) or not 0 <= index < len(ids):
            raise HTTPException(400, "Invalid task index")
        return JSONResponse({"task": self._described(ids, index, index + 1)[0]})

    async def get_task_range(self, request: Request) -> Response:
        body, ids = await self._asked(request)
        bounds = [body.get("start"), body.get("stop")]
        if any(not isinstance(bound, int | None) for bound in bounds):
            raise HTTPException(400, "start and stop must be whole numbers")
        start, stop, _ = slice(*bounds).indices(len(ids))
        return JSONResponse({"tasks": self._described(ids, start, min(stop, start + _MOST_LISTED))})

    def find(self, data: Mapping[str, Any]) -> str:
        """Return the task that the data of a reset ask for. Raises ``_Refused``.

        It is named by ``task``, or by ``split`` and ``index``. Without them, ``seed`` picks one of the first split.
        """
        if isinstance(data.get("task"), str):
            return str(data["task"])
        split = data.get("split", next((name for name, ids in self.ids.items() if len(ids)), ""))
        ids = self.ids.get(split, ()) if isinstance(split, str) else ()
        if not len(ids):
            raise _Refused("VALIDATION_ERROR", f"there is no split {split!r} with tasks; splits: {', '.join(self.ids)}")
        index = data.get("index", _seed(data) % len(ids))
        if not isinstance(index, int) or not 0 <= index < len(ids):
            raise _Refused("VALIDATION_ERROR", f"index is {index!r}; split {split!r} has {len(ids)} tasks, from 0")
        return ids[index]

    def _described(self, ids: Sequence[str], start: int, stop: int) -> list[dict[str, Any]]:
        places = range(start, min(stop, len(ids)))
        return [{**self._env.task_payload(ids[place]), "id": ids[place], "index": place} for place in places]

    async def _asked(self, request: Request) -> tuple[Mapping[str, Any], Sequence[str]]:
        """Return the body of a request, and the tasks of the split that it names."""
        self._check_name(request)
        try:
            body = await request.json()
        except ValueError:
            raise HTTPException(400, "the body is not JSON") from None
        split = body.get("split") if isinstance(body, dict) else None
        if not isinstance(split, str) or split not in self.ids:
            raise HTTPException(400, f"there is no split {split!r}; splits: {', '.join(self.ids)}")
        return body, self.ids[split]

    def _check_name(self, request: Request) -> None:
        wanted = request.path_params["env"]
        if wanted.lower() != self._name.lower():
            raise HTTPException(404, f"unknown environment {wanted!r}")


class _Hall:
    """Lets each session in, gives it an environment and a thread, and takes both away at its end."""

    def __init__(self, name: str, options: Mapping[str, Any], catalogue: _Catalogue, most: int) -> None:
        self._name = name
        self._options = options
        self._catalogue = catalogue
        self._most = most
        self._inside = 0

    async def serve(self, socket: WebSocket) -> None:
        await socket.accept()
        if self._inside >= self._most:
            await _send_error(socket, _Refused("CAPACITY_REACHED", f"all {self._most} sessions are taken; try later"))
            await socket.close()
            return
        self._inside += 1
        # An environment may only be used by one thread.
        thread = ThreadPoolExecutor(1)
        session = _Session(partial(registry.make, self._name, **self._options), self._catalogue)
        try:
            await _talk(socket, session, thread)
        except WebSocketDisconnect:
            pass
        finally:
            self._inside -= 1
            thread.submit(session.close)
            thread.shutdown(wait=False)


async def _talk(socket: WebSocket, session: _Session, thread: ThreadPoolExecutor) -> None:
    """Answer messages until the client says that it is done. Raises ``WebSocketDisconnect`` if it just leaves."""
    while True:
        text = await socket.receive_text()
        try:
            message = _message(text)
            if message["type"] == "close":
                await socket.close()
                return
            reply = await _in(thread, partial(session.answer, message))
        except _Refused as error:
            await _send_error(socket, error)
        else:
            await socket.send_text(json.dumps(reply))


async def _in(thread: ThreadPoolExecutor, call: Callable[[], _Result]) -> _Result:
    return await asyncio.get_running_loop().run_in_executor(thread, call)


async def _send_error(socket: WebSocket, error: _Refused) -> None:
    await socket.send_text(json.dumps({"type": "error", "data": {"message": str(error), "code": error.code}}))


def _message(text: str) -> dict[str, Any]:
    try:
        message = json.loads(text)
    except ValueError as error:
        raise _Refused("INVALID_JSON", f"Invalid JSON: {error}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise _Refused("UNKNOWN_TYPE", "a message is an object with a type")
    if not isinstance(message.setdefault("data", {}), dict):
        raise _Refused("VALIDATION_ERROR", "the data of a message are an object")
    return message


def _seed(data: Mapping[str, Any]) -> int:
    seed = data.get("seed")
    if not isinstance(seed, int | None):
        raise _Refused("VALIDATION_ERROR", f"seed is {seed!r}; it must be a whole number")
    return seed or 0


@dataclass
class _Session:
    """One environment and its episode; everything but making it happens in one thread."""

    make: Callable[[], TextEnv]
    catalogue: _Catalogue
    env: TextEnv | None = None
    state: dict[str, Any] = field(default_factory=lambda: {"episode_id": None, "step_count": 0})
    instruction: str = ""

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Return the reply to a message. Raises ``_Refused``."""
        kinds = {"reset": self._reset, "step": self._step, "state": self._state}
        kind = kinds.get(message["type"])
        if kind is None:
            raise _Refused("UNKNOWN_TYPE", f"Unknown message type: {message['type']}")
        try:
            return kind(message["data"])
        except EnvError as error:
            raise _Refused("EXECUTION_ERROR", str(error)) from error
        # SystemExit too: engines written as programs call sys.exit.
        except (Exception, SystemExit) as error:
            if isinstance(error, _Refused):
                raise
            self.close()
            raise _Refused("EXECUTION_ERROR", f"the environment failed: {type(error).__name__}: {error}") from error

    def close(self) -> None:
        env, self.env = self.env, None
        if env is not None:
            env.close()

    def _reset(self, data: Mapping[str, Any]) -> dict[str, Any]:
        task, seed = self.catalogue.find(data), _seed(data)
        if self.env is None:
            self.env = self.make()
        start = self.env.reset(task, seed)
        self.state = {"episode_id": data.get("episode_id"), "step_count": 0, "task": task, "seed": seed}
        self.instruction = start.task
        return self._observation(start, None, False, {"category": start.category} if start.category else {})

    def _step(self, data: Mapping[str, Any]) -> dict[str, Any]:
        action = data.get("text")
        if not isinstance(action, str):
            raise _Refused("VALIDATION_ERROR", 'an action is an object with a "text" of type string')
        if self.env is None:
            raise _Refused("EXECUTION_ERROR", "no episode is running; reset first")
        result = self.env.step(action)
        self.state["step_count"] += 1
        return self._observation(result, float(result.reward), bool(result.terminated or result.truncated), {})

    def _state(self, data: Mapping[str, Any]) -> dict[str, Any]:
        return {"type": "state", "data": self.state}

    def _observation(
        self, answer: Reset | StepResult, reward: float | None, done: bool, metadata: dict[str, Any]
    ) -> dict[str, Any]:
        digest = hashlib.sha256(answer.state_key.encode(errors="surrogatepass")).hexdigest()[:32]
        about = {**metadata, "state_key": digest}
        seen = {
            "text": answer.observation,
            "task": self.instruction,
            "admissible_actions": list(answer.admissible_actions),
            **(_outcome(answer) if isinstance(answer, StepResult) else {}),
            "metadata": about,
        }
        return {"type": "observation", "data": {"observation": seen, "reward": reward, "done": done, "metadata": about}}


def _outcome(result: StepResult) -> dict[str, bool | float]:
    # NumPy's numbers are not JSON.
    switches = ("admissible", "terminated", "truncated", "success")
    return {**{name: bool(getattr(result, name)) for name in switches}, "score": float(result.score)}
