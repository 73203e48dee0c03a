"""The client of retrieval servers, against a real server process and against servers that misbehave."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent_envs import EnvError
from agent_envs.search_qa.env import SearchQAEnv
from agent_envs.search_qa.retrieval import http
from agent_envs.search_qa.retrieval.http import HttpRetriever, shown_url
from agent_envs.search_qa.retrieval.tantivy import open_index
from agent_envs.testing import check_env
from agent_envs.workers import EnvFault, EnvPool
from support.lakeside import write_lakeside
from support.paths import REPOSITORY
from support.scripted_endpoint import Endpoint, Reply, serve

QUERIES = ["ana voss", "who founded gannet press?", "zzz", "\ud800 tide", ""]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lakeside(tmp_path_factory.mktemp("lakeside"))


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[str]:
    """The address of a real server process."""
    command = [
        sys.executable,
        "-m",
        "openrlhf_gagpo.cli.env",
        "serve",
        "search_qa",
        "--data_dir",
        str(root),
        "--port",
        "0",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=root) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_WAITS_S", (0.01, 0.02, 0.04))


def good(body: dict[str, Any], **document: Any) -> dict[str, Any]:
    item = {"document": {"id": 7, "contents": '"T"\nx', **document}, "score": 2.5}
    return {"result": [[item] for _ in body["queries"]]}


def scripted(*replies: Reply) -> Callable[[int, dict[str, Any]], Reply]:
    """Give the replies in turn, then good ones."""
    return lambda number, body: replies[number] if number < len(replies) else Reply(json.dumps(good(body)))


def test_the_server_finds_what_the_index_does(root: Path, server: str) -> None:
    embedded = open_index(root / "corpus.jsonl", root / "index")
    remote = HttpRetriever(server)
    for topk in (1, 3, 30):
        assert remote.search(QUERIES, topk) == embedded.search(QUERIES, topk)
    assert asyncio.run(remote.asearch(QUERIES[:2], 3)) == embedded.search(QUERIES[:2], 3)
    one_text = HttpRetriever(server, query_field="query")
    assert one_text.search(QUERIES[:2], 3) == embedded.search(QUERIES[:2], 3)
    assert HttpRetriever(server.removesuffix("/retrieve")).search(["tide"], 3) == embedded.search(["tide"], 3)


def test_what_the_server_answers_besides(server: str) -> None:
    with httpx.Client(trust_env=False) as client:
        assert client.get(server.replace("/retrieve", "/health")).json() == {"status": "ok", "passages": 20}
        (documents,) = client.post(server, json={"queries": ["gannet"], "topk": 1}).json()["result"]
        assert documents[0].keys() == {"id", "contents"}
        for body, said in (
            (b"{", "not JSON"),
            (b"[]", "not a JSON object"),
            (b'{"queries": 3}', "must be a list of texts"),
            (b'{"queries": ["x"], "topk": 0}', "must be a whole number from 1"),
            (b'{"queries": ["x"], "topk": true}', "must be a whole number from 1"),
        ):
            reply = client.post(server, content=body)
            assert reply.status_code == 400
            assert said in reply.json()["error"]


def test_the_environment_plays_over_a_server(root: Path, server: str) -> None:
    options = {"data_dir": root, "retriever": "http", "url": server}
    check_env(lambda: SearchQAEnv(**options), "test", sample=1)
    remote, embedded = SearchQAEnv(**options), SearchQAEnv(root)
    for env in (remote, embedded):
        env.reset("test-0", 0)
    assert remote.step("search ana voss") == embedded.step("search ana voss")
    assert asyncio.run(remote.astep("search tide")) == embedded.step("search tide")
    assert remote.waits
    assert not embedded.waits


def test_failures_that_may_pass_are_tried_again() -> None:
    broken = Reply("<html>one moment</html>", status=500)
    with serve(scripted(broken, Reply("", status=503), broken)) as endpoint:
        (hits,) = HttpRetriever(endpoint.url).search(["x"], 3)
    assert hits == [("7", 2.5, '"T"\nx')]
    assert endpoint.bodies == [{"queries": ["x"], "topk": 3, "return_scores": True}] * 4
    with (
        serve(scripted(*[broken] * 9)) as endpoint,
        pytest.raises(EnvError, match="answered HTTP 500: <html>one moment</html>"),
    ):
        HttpRetriever(endpoint.url).search(["x"], 3)
    assert len(endpoint.bodies) == 4


def test_a_server_that_hangs_is_left() -> None:
    started = time.monotonic()
    with serve(scripted(Reply("{}", delay=1.5), Reply(json.dumps({"result": []}), drip=0.1))) as endpoint:
        (hits,) = HttpRetriever(endpoint.url, timeout=0.3).search(["x"], 3)
    assert len(hits) == 1
    assert len(endpoint.bodies) == 3
    assert time.monotonic() - started < 10
    with pytest.raises(EnvError, match=r"the retriever http://127.0.0.1:9/x cannot be reached: "):
        HttpRetriever("http://127.0.0.1:9/x", timeout=1).search(["x"], 3)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply("nothing here", status=404), "answered HTTP 404: nothing here"),
        (Reply("y" * 1000, status=422), f"answered HTTP 422: {'y' * 200}$"),
        (Reply("<html>welcome</html>"), "something that is not JSON: <html>welcome</html>"),
        (Reply("[]"), "without lists of passages under 'result'"),
        (Reply('{"result": [{}]}'), "without lists of passages"),
        (Reply('{"result": []}'), "0 lists of passages to 1 queries"),
        (Reply('{"result": [[], []]}'), "2 lists of passages to 1 queries"),
        (Reply('{"result": [["text"]]}'), "a passage that is not an object"),
        (Reply('{"result": [[{"document": "text"}]]}'), "a document that is not an object"),
        (Reply('{"result": [[{"id": "a"}]]}'), "a passage without contents"),
        (Reply('{"result": [[{"id": [], "contents": "x"}]]}'), "an id that is neither text nor a number"),
        (Reply('{"result": [[{"contents": "x", "score": NaN}]]}'), "a score that is not a finite number"),
        (Reply('{"result": [[{"contents": "x", "score": "1"}]]}'), "a score that is not a finite number"),
        (Reply('{"result": [[{"contents": "x", "score": 1' + "0" * 400 + "}]]}"), "a score that is not a finite"),
    ],
)
def test_other_failures_are_told_at_once(reply: Reply, said: str) -> None:
    with serve(scripted(reply)) as endpoint, pytest.raises(EnvError, match=said):
        HttpRetriever(endpoint.url).search(["x"], 3)
    assert len(endpoint.bodies) == 1


def test_the_forms_that_passages_may_have() -> None:
    items = [
        {"contents": "no id", "score": 1},
        {"document": {"title": "T", "text": "x", "id": "a"}, "score": 3.0},
        {"document": {"contents": '"U"\ny', "id": 5}, "score": 3.0},
        {"document": {"contents": "too many"}, "score": 9},
    ]
    with serve(
        scripted(Reply(json.dumps({"result": [items]})), Reply(json.dumps({"result": [[{"contents": "z"}]]})))
    ) as to:
        (hits,) = HttpRetriever(to.url).search(["x"], 3)
        (plain,) = HttpRetriever(to.url).search(["x"], 3)
    assert [tuple(hit) for hit in hits] == [
        ("5", 3.0, '"U"\ny'),
        ("a", 3.0, '"T"\nx'),
        (hashlib.sha256(b"no id").hexdigest()[:16], 1.0, "no id"),
    ]
    assert [hit.contents for hit in plain] == ["z"]


def test_credentials_are_sent_and_not_shown(root: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        return Reply("denied", status=403)

    with serve(answer) as endpoint:
        url = endpoint.url.replace("http://", "http://user:secret@") + "?key=hidden"
        env = SearchQAEnv(root, retriever="http", url=url)
        env.reset("test-0", 0)
        with pytest.raises(EnvError) as caught:
            env.step("search x")
    assert endpoint.keys[0] is not None
    assert endpoint.keys[0].startswith("Basic ")
    assert env.record["url"] == endpoint.url
    assert "secret" not in f"{caught.value}{env.record}"
    assert "hidden" not in f"{caught.value}{env.record}"
    assert shown_url("http://a:b@h/x?y#z") == "http://h/x"


def test_proxies_are_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    http._line.cache_clear()
    with serve(scripted()) as endpoint:
        assert HttpRetriever(endpoint.url).search(["x"], 3)
    http._line.cache_clear()


def test_one_slow_search_does_not_stop_the_other_episodes_of_its_worker(root: Path) -> None:
    def answer(number: int, body: dict[str, Any]) -> Reply:
        return Reply(json.dumps(good(body)), delay=3.0 if "slow" in body["queries"][0] else 0.0)

    async def body(endpoint: Endpoint) -> None:
        options = {"data_dir": str(root), "retriever": "http", "url": endpoint.url}
        async with EnvPool("search_qa", options, size=1, max_steps=50) as pool:
            slow, fast = await pool.open(), await pool.open()
            for session in (slow, fast):
                await session.reset("test-0", 0)
            waiting = asyncio.ensure_future(slow.step("search slow"))
            for number in range(20):
                assert (await fast.step(f"search {number}")).info["ids"] == ["7"]
            assert not waiting.done()
            assert (await waiting).info["ids"] == ["7"]

    with serve(answer) as endpoint:
        asyncio.run(body(endpoint))


def test_a_retriever_that_fails_costs_one_episode(root: Path) -> None:
    async def body(endpoint: Endpoint) -> None:
        options = {"data_dir": str(root), "retriever": "http", "url": endpoint.url}
        async with EnvPool("search_qa", options, size=1) as pool:
            sessions = [await pool.open() for _ in range(2)]
            for session in sessions:
                await session.reset("test-0", 0)
            with pytest.raises(EnvFault, match="answered HTTP 400: no") as caught:
                await sessions[0].step("search x")
            assert caught.value.refused
            assert (await sessions[1].step("search x")).info["ids"] == ["7"]

    with serve(scripted(Reply("no", status=400))) as endpoint:
        asyncio.run(body(endpoint))
