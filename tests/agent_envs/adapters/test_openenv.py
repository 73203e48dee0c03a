"""OpenEnv: our client on our server, and on servers that fail."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.testclient import TestClient

import agent_envs
from agent_envs import EnvError, Reset, StepResult, TextEnv
from agent_envs.adapters import from_openenv
from agent_envs.adapters.openenv_server import make_app
from agent_envs.testing import check_env
from agent_envs.vault import VaultEnv
from support.openenv_sessions import observation, scripted, serving

VAULT = {"size": 2, "keys": 1, "train_tasks": 6, "valid_tasks": 2, "test_tasks": 0}


@pytest.fixture(scope="module")
def vault() -> Iterator[str]:
    """Address of a server of vaults."""
    with serving(make_app("vault", VAULT)) as url:
        yield url


def far(url: str, **words: Any) -> TextEnv:
    cls = from_openenv(**words)
    cls.name = "far"
    return cls(url=url, timeout=10.0)  # type: ignore[call-arg]


def test_our_client_on_our_server_keeps_the_contract(vault: str) -> None:
    check_env(lambda: far(vault, max_steps=5), "train", sample=1)


def test_an_episode_is_that_of_the_environment(vault: str) -> None:
    near = agent_envs.make("vault", **VAULT)
    env = far(vault)
    assert env.splits == ("train", "valid", "test")
    assert [len(env.tasks(split)) for split in env.splits] == [6, 2, 0]
    start, there = env.reset("valid-1", 7), near.reset("vault-valid-1", 7)
    expert = near.expert()
    assert expert is not None
    assert (start.observation, start.admissible_actions) == (there.observation, there.admissible_actions)
    result: StepResult | None = None
    while result is None or not result.terminated:
        action = expert()
        expected = near.step(action)
        result = env.step(action)
        for name in ("observation", "reward", "terminated", "truncated", "admissible", "success", "score"):
            assert getattr(result, name) == getattr(expected, name), name
    assert result.success
    env.close()


def test_states_are_compared_by_the_servers_keys_which_do_not_show_them(vault: str) -> None:
    env = far(vault)
    start = env.reset("train-0", 0)
    assert start.state_key != start.observation
    wrong = env.step("jump")
    assert (wrong.admissible, wrong.state_key) == (False, start.state_key)


def test_the_tasks_are_listed_with_their_payload(vault: str) -> None:
    with httpx.Client(base_url=vault, trust_env=False) as client:
        assert client.get("/health").json() == {"status": "healthy"}
        assert client.get("/metadata").json()["name"] == "vault"
        assert client.get("/list_environments").json() == ["vault"]
        splits = client.get("/vault/splits").json()
        assert splits == [{"name": n, "type": t} for n, t in zip(
            ("train", "valid", "test"), ("train", "validation", "test"), strict=True
        )]  # fmt: skip
        one = {"id": "vault-train-1", "index": 1}
        assert client.post("/vault/task", json={"split": "train", "index": 1}).json() == {"task": one}
        listed = client.post("/vault/tasks", json={"split": "train"}).json()
        assert (len(listed["tasks"]), listed["tasks"][1], listed["env_name"]) == (6, one, "vault")
        part = client.post("/vault/task_range", json={"split": "train", "start": -2, "stop": None}).json()
        assert [task["index"] for task in part["tasks"]] == [4, 5]
        assert client.post("/vault/task", json={"split": "train", "index": 6}).status_code == 400
        assert client.post("/vault/task_range", json={"split": "train", "start": "a"}).status_code == 400
        assert client.post("/vault/num_tasks", json={"split": "mine"}).status_code == 400
        assert client.post("/vault/num_tasks", content=b"{").status_code == 400
        assert client.get("/attic/splits").status_code == 404


def conversation(*messages: object, **settings: Any) -> list[dict[str, Any]]:
    """What our server answers to messages of one session."""
    app = make_app("vault", VAULT | settings)
    with TestClient(app) as client, client.websocket_connect("/ws") as session:
        answers = []
        for message in messages:
            session.send_text(message if isinstance(message, str) else json.dumps(message))
            answers.append(session.receive_json())
    return answers


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "INVALID_JSON"),
        ("[]", "UNKNOWN_TYPE"),
        ({"type": "fly"}, "UNKNOWN_TYPE"),
        ({"type": "reset", "data": 3}, "VALIDATION_ERROR"),
        ({"type": "reset", "data": {"seed": "x"}}, "VALIDATION_ERROR"),
        ({"type": "reset", "data": {"split": "attic"}}, "VALIDATION_ERROR"),
        ({"type": "reset", "data": {"split": "train", "index": 6}}, "VALIDATION_ERROR"),
        ({"type": "reset", "data": {"task": "vault-train-6"}}, "EXECUTION_ERROR"),
        ({"type": "step", "data": {"text": "go north"}}, "EXECUTION_ERROR"),
        ({"type": "step", "data": {"message": "go north"}}, "VALIDATION_ERROR"),
    ],
)
def test_the_server_refuses_what_it_cannot_answer_and_goes_on(message: object, code: str) -> None:
    refusal, state, start = conversation(message, {"type": "state"}, {"type": "reset", "data": {"seed": 8}})
    assert (refusal["type"], refusal["data"]["code"]) == ("error", code)
    assert state == {"type": "state", "data": {"episode_id": None, "step_count": 0}}
    assert start["data"]["observation"]["text"] == VaultEnv(**VAULT).reset("vault-train-2", 8).observation


def test_the_server_hides_what_may_hold_the_solution() -> None:
    @agent_envs.register("oracle")
    class Oracle(VaultEnv):
        def reset(self, task: str, seed: int) -> Reset:
            start = super().reset(task, seed)
            return Reset(start.observation, "the secret is 7", info={"answer": "the secret is 7"})

    app = make_app("oracle", VAULT)
    with TestClient(app) as client, client.websocket_connect("/ws") as session:
        session.send_json({"type": "reset"})
        assert "secret" not in session.receive_text()


def test_an_environment_that_raises_is_replaced() -> None:
    @agent_envs.register("fragile")
    class Fragile(VaultEnv):
        def step(self, action: str) -> StepResult:
            raise SystemExit("out of order")

    app = make_app("fragile", VAULT)
    with TestClient(app) as client, client.websocket_connect("/ws") as session:
        for _ in range(2):
            session.send_json({"type": "reset"})
            assert session.receive_json()["type"] == "observation"
            session.send_json({"type": "step", "data": {"text": "go north"}})
            refusal = session.receive_json()["data"]
            assert (refusal["code"], "out of order" in refusal["message"]) == ("EXECUTION_ERROR", True)
        session.send_json({"type": "close"})


def test_sessions_have_environments_of_their_own_up_to_a_number() -> None:
    app = make_app("vault", VAULT, sessions=2)
    with TestClient(app) as client:
        with client.websocket_connect("/ws") as first, client.websocket_connect("/ws") as second:
            for session in (first, second):
                session.send_json({"type": "reset", "data": {"task": "vault-train-0"}})
                assert session.receive_json()["type"] == "observation"
            with client.websocket_connect("/ws") as third:
                assert third.receive_json()["data"]["code"] == "CAPACITY_REACHED"
            first.send_json({"type": "step", "data": {"text": "wait"}})
            first.receive_json()
            second.send_json({"type": "state"})
            assert second.receive_json()["data"]["step_count"] == 0
        with client.websocket_connect("/ws") as again:
            again.send_json({"type": "state"})
            assert again.receive_json()["type"] == "state"


def test_words_for_other_peoples_servers() -> None:
    received: list[dict[str, Any]] = []

    def answer(message: dict[str, Any]) -> str:
        received.append(message)
        if message["type"] == "reset":
            return observation(board="empty")
        return observation(reward=2, done=message["data"]["column"] == 3, board="full")

    words: dict[str, Any] = {
        "tasks": {"train": 2, "valid": 1},
        "action": lambda text: {"column": int(text)} if text.isdecimal() else None,
        "instruction": "Fill it.",
        "possible": lambda at: ("1", "3"),
        "score": lambda at: at.reward / 4,
    }
    with serving(scripted(answer)) as url:
        env = far(url, **words)
        start = env.reset("valid-0", 5)
        assert (start.task, start.observation, start.admissible_actions) == (
            "Fill it.",
            '{"board": "empty"}',
            ("1", "3"),
        )
        unread = env.step("three")
        assert (unread.admissible, unread.observation) == (False, start.observation)
        result = env.step("1")
        assert (result.observation, result.reward, result.success, result.score) == (
            '{"board": "full"}',
            2.0,
            False,
            0.5,
        )
        last = env.step("3")
        assert (last.terminated, last.success) == (True, True)
        env.close()
    steps = [{"type": "step", "data": {"column": column}} for column in (1, 3)]
    assert received == [{"type": "reset", "data": {"seed": 2}}, *steps]


def test_the_only_required_field_takes_the_action() -> None:
    received: list[dict[str, Any]] = []

    def answer(message: dict[str, Any]) -> str:
        received.append(message["data"])
        return observation(text="here")

    with serving(scripted(answer)) as url:
        env = far(url, tasks={"train": 1})
        env.reset("train-0", 0)
        env.step("hello")
        assert received[-1] == {"message": "hello"}
    with serving(scripted(answer, required=("x", "y"))) as url:
        env = far(url, tasks={"train": 1})
        env.reset("train-0", 0)
        with pytest.raises(
            EnvError, match=r"required fields \['x', 'y'\], not one; give from_openenv a function action"
        ):
            env.step("hello")


def unless_reset(reply: str | None) -> Callable[[dict[str, Any]], str | None]:
    return lambda message: observation(text="here") if message["type"] == "reset" else reply


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ("no json", "sent something else than an observation: 'no json'"),
        ("[]", "something else than an observation"),
        (json.dumps({"type": "state", "data": {}}), "something else than an observation"),
        (json.dumps({"type": "observation", "data": {"observation": "text"}}), "something else than an observation"),
        (observation(reward="much"), "something else than an observation"),
        (observation(done="yes"), "something else than an observation"),
        (json.dumps({"type": "error", "data": {"message": "out of order."}}), "refused: out of order.$"),
        (None, "the session with the OpenEnv server .* failed"),
    ],
)
def test_a_bad_answer_ends_the_episode_and_the_next_one_connects_again(reply: str | None, said: str) -> None:
    with serving(scripted(unless_reset(reply))) as url:
        env = far(url, tasks={"train": 1})
        for _ in range(2):
            env.reset("train-0", 0)
            with pytest.raises(EnvError, match=said):
                env.step("hello")
            with pytest.raises(EnvError, match="no episode is running"):
                env.step("hello")
        env.close()


def test_a_server_that_does_not_answer_is_given_up() -> None:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    with listening:
        cls = from_openenv(f"http://127.0.0.1:{listening.getsockname()[1]}", tasks={"train": 1})
        cls.name = "far"
        env = cls(timeout=0.2)  # type: ignore[call-arg]
        with pytest.raises(EnvError, match=r"gave no answer in 0\.2 s"):
            env.reset("train-0", 0)


def test_a_server_that_is_down_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(EnvError, match=f"the OpenEnv server {url} cannot be reached .*; is it running"):
            far(url)
        env = far(url, tasks={"train": 1})
        with pytest.raises(EnvError, match=f"the session with the OpenEnv server {url} failed"):
            env.reset("train-0", 0)


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (None, "lists no tasks; give from_openenv the argument tasks"),
        (JSONResponse([]), "lists no tasks"),
        (JSONResponse({"detail": "no"}, 500), "with status 500"),
        (PlainTextResponse("hello"), "with something else than JSON"),
        (JSONResponse("hello"), "instead of a list; is it an OpenEnv server"),
    ],
)
def test_a_server_without_tasks_is_named(splits: Any, said: str) -> None:
    with serving(scripted(unless_reset(None), splits)) as url, pytest.raises(EnvError, match=said):
        far(url)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://somewhere"])
def test_an_address_is_needed(url: str) -> None:
    with pytest.raises(ValueError, match="give the address of an OpenEnv server"):
        far(url, tasks={"train": 1})
