"""Plays between OpenEnv and us, both ways; `make test-interop` runs it where OpenEnv is installed."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import httpx
import uvicorn
from openenv.core import GenericEnvClient
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State

import agent_envs
from agent_envs.adapters import from_openenv
from agent_envs.adapters.openenv_server import make_app
from agent_envs.testing import check_env

VAULT = {"size": 2, "keys": 1, "train_tasks": 6, "valid_tasks": 2, "test_tasks": 2}
LEVELS = {"train": 4, "test": 2}


class Climb(Action):
    way: str


class Landing(Observation):
    floor: int = 0
    top: int = 0


class Tower(Environment):
    """Climb to the top floor of a tower, which is as high as the task's place says."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self) -> None:
        super().__init__()
        self._floor = self._top = self._steps = 0

    def list_splits(self) -> list[str]:
        return list(LEVELS)

    def num_tasks(self, split: str) -> int:
        return LEVELS[split]

    def reset(self, seed: int | None = None, episode_id: str | None = None, **place: Any) -> Landing:
        self._floor = self._steps = 0
        self._top = 2 + int(place.get("index", seed or 0))
        return Landing(top=self._top)

    def step(self, action: Climb, timeout_s: float | None = None, **_: Any) -> Landing:
        self._steps += 1
        if action.way == "break":
            raise RuntimeError("the stairs broke")
        self._floor += action.way == "up"
        done = self._floor == self._top
        return Landing(floor=self._floor, top=self._top, reward=float(done), done=done)

    @property
    def state(self) -> State:
        return State(step_count=self._steps)


@contextmanager
def served(app: Any) -> Iterator[str]:
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


def refusal(call: Callable[[], object]) -> str:
    """Return what the error says that ``call`` has to raise."""
    try:
        call()
    except (RuntimeError, agent_envs.EnvError) as error:
        return str(error)
    raise AssertionError("nothing was refused")


def check_their_client() -> None:
    """OpenEnv's client plays the expert's episode on our server."""
    mirror = agent_envs.make("vault", **VAULT)
    start = mirror.reset("vault-train-2", 5)
    expert = mirror.expert()
    assert expert is not None
    with served(make_app("vault", VAULT)) as url:
        assert httpx.get(f"{url}/health", trust_env=False).json() == {"status": "healthy"}
        assert httpx.get(f"{url}/schema", trust_env=False).json()["action"]["required"] == ["text"]
        with GenericEnvClient(base_url=url).sync() as client:
            result = client.reset(split="train", index=2, seed=5, episode_id="mine")
            assert result.observation["text"] == start.observation
            while not result.done:
                action = expert()
                ours = mirror.step(action)
                result = client.step({"text": action})
                assert result.observation["text"] == ours.observation
                assert result.observation["admissible_actions"] == list(ours.admissible_actions)
                assert result.reward == ours.reward
            assert result.reward == 1.0
            assert result.observation["success"] is True
            state = client.state()
            assert (state["episode_id"], state["task"], state["seed"]) == ("mine", "vault-train-2", 5)
            assert "call reset" in refusal(lambda: client.step({"text": "go north"}))


def check_their_server() -> None:
    """Our client plays on OpenEnv's server, by its task API and by numbers of tasks, and keeps our contract."""
    app = create_fastapi_app(Tower, Climb, Landing, 16, env_name="tower")
    with served(app) as url:
        listed = agent_envs.register("tower")(from_openenv(url, max_steps=8, action=lambda text: {"way": text}))
        counted = agent_envs.register("counted-tower")(
            from_openenv(
                url,
                tasks={"train": 3},
                text=lambda at: f"floor {at.observation['floor']} of {at.observation['top']}",
                max_steps=8,
            )
        )
        check_env(listed, "test", sample=2)
        check_env(counted, "train", sample=2)
        env = counted()
        assert env.reset("train-1", 0).observation == "floor 0 of 3"
        results = [env.step("up") for _ in range(3)]
        assert [result.observation for result in results] == [f"floor {n} of 3" for n in (1, 2, 3)]
        assert (results[-1].success, results[-1].reward, results[-1].terminated) == (True, 1.0, True)
        env.reset("train-1", 0)
        assert "the stairs broke" in refusal(lambda: env.step("break"))
        assert env.reset("train-0", 0).observation == "floor 0 of 2"
        env.close()


def check_their_http() -> None:
    """Over plain HTTP, their server makes a new environment for every request, which is why we use sessions."""
    with served(create_fastapi_app(Tower, Climb, Landing, 1)) as url, httpx.Client(trust_env=False) as client:
        floors = [
            client.post(f"{url}/step", json={"action": {"way": "up"}}).json()["observation"]["floor"] for _ in range(2)
        ]
    assert floors == [1, 1]


if __name__ == "__main__":
    check_their_client()
    check_their_server()
    check_their_http()
    sys.stdout.write("openenv: 3 passed, 0 failed\n")
