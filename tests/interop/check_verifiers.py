"""Plays our environments in verifiers itself; `make test-interop` runs it where that is installed."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

import verifiers.v1 as vf  # noqa: E402

import agent_envs  # noqa: E402
from agent_envs_verifiers import load_environment  # noqa: E402

VAULT = {"size": 2, "keys": 1, "train_tasks": 6, "valid_tasks": 2, "test_tasks": 2}


@contextmanager
def model(reply: Callable[[list[dict[str, str]]], str]) -> Iterator[str]:
    """An OpenAI-compatible endpoint that answers a conversation with ``reply``; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = {"role": "assistant", "content": reply(body["messages"])}
            answer = {
                "id": "reply",
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
            }
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def play(env: vf.Env, number: int, url: str) -> vf.Trace:
    """Play task ``number`` once and return what happened."""

    async def run() -> vf.Episode:
        context = vf.ModelContext(model="made-up", client=vf.EvalClientConfig(base_url=url, api_key_var="NO_SUCH_KEY"))
        async with env.serving():
            return await env.run_episode(list(env.taskset)[number], context)

    episode = asyncio.run(run())
    assert episode.ok, [error.message for error in episode.errors]
    (trace,) = episode.traces
    assert trace.ok, trace.errors
    return trace


def check_expert() -> None:
    """The expert's replies solve the task, and its conversation is the one that was worded."""
    env = load_environment("vault", options=VAULT)
    assert [task.data.task for task in env.taskset] == [f"vault-train-{n}" for n in range(6)]
    mirror = agent_envs.make("vault", **VAULT)
    start = mirror.reset("vault-train-2", 0)
    expert = mirror.expert()
    assert expert is not None
    said: list[str] = []

    def reply(messages: list[dict[str, str]]) -> str:
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
        said.append(messages[-1]["content"])
        action = expert()
        mirror.step(action)
        return f"I go on.\n<action>{action}</action>"

    with model(reply) as url:
        trace = play(env, 2, url)
    assert start.observation in said[0]
    assert "<action>" in said[0]
    assert "<action>" not in said[1]
    assert trace.rewards["env_reward"].score == 1.0
    assert trace.metrics == {"success": 1.0, "score": 1.0, "steps": float(len(said)), "inadmissible": 0.0}


def check_limits() -> None:
    """Replies without sense cost steps, and a limit of verifiers ends the conversation without a failure."""
    settings = {"options": VAULT, "split": "valid"}
    with model(lambda messages: "no idea") as url:
        trace = play(load_environment("vault", **settings), 1, url)
        assert trace.metrics == {"success": 0.0, "score": 0.0, "steps": 14.0, "inadmissible": 14.0}
        player = vf.AgentConfig(runtime=vf.SubprocessConfig(), max_turns=3)
        trace = play(load_environment("vault", player=player, **settings), 1, url)
    assert trace.metrics["steps"] == 3.0
    assert trace.rewards["env_reward"].score == 0.0


def check_by_id() -> None:
    """The commands of verifiers find everything by the name of the package."""
    raw = {"taskset": {"id": "agent-envs-verifiers", "env": "vault", "options": VAULT, "split": "test"}}
    env = vf.load_environment(vf.resolve_env_config(raw))
    assert type(env).__name__ == "TextEnvEnv"
    assert [task.data.id for task in env.taskset.take(1)] == ["vault-test-0"]
    assert vf.default_harness_id("agent-envs-verifiers") == "agent-envs-verifiers"


if __name__ == "__main__":
    check_expert()
    check_limits()
    check_by_id()
    sys.stdout.write("verifiers: 3 passed, 0 failed\n")
