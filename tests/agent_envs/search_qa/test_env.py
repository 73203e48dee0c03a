"""The environment on a hand-made world: contract, rewards, state keys, symbols, and what it says about bad options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_envs import EnvError, UnknownTask
from agent_envs.search_qa.env import NOT_UNDERSTOOD, NOTHING_FOUND, SearchQAEnv
from agent_envs.testing import check_env
from agent_envs.workers import EnvPool
from support.lakeside import TITLES, write_lakeside

Make = Callable[..., SearchQAEnv]

TASK = "test-0"  # Where was the author of Salt Harbour born?


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lakeside(tmp_path_factory.mktemp("lakeside"))


@pytest.fixture(scope="module")
def make(root: Path) -> Make:
    return lambda **options: SearchQAEnv(**{"data_dir": root, **options})


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world without what only generated data has."""
    folder = write_lakeside(tmp_path_factory.mktemp("official"))
    for name in ("manifest.json", "mentions.json", "train.jsonl", "valid.jsonl"):
        (folder / name).unlink()
    rows = [
        {"id": "a", "question": "Who wrote Salt Harbour?", "golden_answers": ["Ana Voss"], "data_source": "nq"},
        {"id": "b", "question": "Who wrote The Long Tide?", "golden_answers": ["M. Brandt"], "data_source": "popqa"},
    ]
    (folder / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    "options",
    [{}, {"topk": 1, "names": "symbols"}, {"state_key": "observation"}, {"state_key": "queries", "reward": "f1"}],
)
def test_it_keeps_the_contract_of_environments(make: Make, options: dict[str, Any]) -> None:
    for split in ("train", "valid", "test"):
        check_env(lambda: make(**options), split, sample=2)


def test_official_data_keeps_the_contract(official: Path) -> None:
    check_env(lambda: SearchQAEnv(official), "test")
    env = SearchQAEnv(official)
    start = env.reset("test-nq-a", 0)
    assert (start.category, start.admissible_actions, env.expert()) == ("nq", (), None)
    assert env.record["questions"] == {"test": 2}
    for sources in ("popqa", ["popqa"], " popqa , nq"):
        assert len(SearchQAEnv(official, sources=sources).tasks("test")) == (2 if "nq" in sources else 1)
    with pytest.raises(EnvError, match="no questions of split 'train'"):
        env.tasks("train")


def test_an_episode(make: Make) -> None:
    env = make(topk=2)
    start = env.reset(TASK, 0)
    assert (start.observation, start.state_key) == ("", "")
    assert start.task == "Where was the author of Salt Harbour born?"
    assert start.info == {"answers": ["Port Alder"]}
    assert start.category == "chain-2"
    assert start.admissible_actions == ("search Salt Harbour", "answer Salt Harbour")
    first = env.step("<search>Salt Harbour novel</search>")
    ids = first.info["ids"]
    assert first.info["query"] == "Salt Harbour novel"
    assert ids[0] == str(TITLES.index("Salt Harbour"))
    assert first.state_key == "\n".join(sorted(ids))
    assert first.observation.startswith(
        "Doc 1(Title: Salt Harbour) Salt Harbour is a novel by Ana Voss. It came out in 1932.\n"
    )
    assert "search Ana Voss" in first.admissible_actions
    assert {"answer 1932", "answer Ana Voss"} <= set(first.admissible_actions)
    assert "search 1932" not in first.admissible_actions
    unread = env.step("look it up")
    assert (unread.observation, unread.admissible, unread.state_key) == (NOT_UNDERSTOOD, False, first.state_key)
    last = env.step("answer: the port  ALDER.")
    assert (last.terminated, last.success, last.score, last.reward) == (True, True, 1.0, 1.0)
    assert last.admissible_actions == ()
    assert last.state_key.startswith(first.state_key)
    assert last.state_key != first.state_key
    with pytest.raises(EnvError, match="call reset"):
        env.step("search x")


@pytest.mark.parametrize(
    ("reward", "answer", "paid", "success", "score"),
    [
        ("em", "Port Alder town", 0.0, False, 0.8),
        ("f1", "Port Alder town", 4.0, False, 0.8),
        ("cover", "Port Alder town", 5.0, False, 0.8),
        ("em", "port alder", 5.0, True, 1.0),
        ("cover", "Elm Cross", 0.0, False, 0.0),
    ],
)
def test_rewards(make: Make, reward: str, answer: str, paid: float, success: bool, score: float) -> None:
    env = make(reward=reward, success_reward=5.0)
    env.reset(TASK, 0)
    result = env.step(f"<answer>{answer}</answer>")
    assert (result.reward, result.success, result.score) == (pytest.approx(paid), success, pytest.approx(score))


def test_state_keys(make: Make) -> None:
    same = ("search Salt Harbour", "<search>harbour SALT?</search>")
    keys: dict[str, list[str]] = {}
    for kind in ("passages", "observation", "queries"):
        env = make(state_key=kind, topk=1)
        keys[kind] = []
        for actions in (same[:1], same[1:], same):
            env.reset(TASK, 0)
            for action in actions:
                result = env.step(action)
            keys[kind].append(result.state_key)
    assert len(set(keys["passages"])) == len(set(keys["observation"])) == 1
    assert keys["queries"] == ["salt harbour", "harbour salt", "salt harbour\nharbour salt"]


def test_nothing_found_and_long_observations(make: Make) -> None:
    env = make(max_observation_chars=30, passage_words=3)
    env.reset(TASK, 0)
    nothing = env.step("search zzz")
    assert (nothing.observation, nothing.info["ids"], nothing.admissible) == (NOTHING_FOUND, [], True)
    assert env.step("search gannet bird").observation == "Doc 1(Title: Gannet) A gannet"


def test_the_step_limit_pays_nothing(make: Make) -> None:
    env = make(max_steps=2)
    env.reset(TASK, 0)
    assert not env.step("search Salt Harbour").truncated
    result = env.step("search Ana Voss")
    assert (result.truncated, result.terminated, result.reward, result.success) == (True, False, 0.0, False)


def test_symbols_hide_names_from_the_player_only(make: Make, root: Path) -> None:
    env = make(names="symbols")
    start = env.reset(TASK, 3)
    assert "Salt Harbour" not in start.task
    assert env.reset(TASK, 3) == start
    assert len({env.reset(TASK, seed).task for seed in range(20)}) > 1
    start = env.reset(TASK, 3)
    (answer,) = start.info["answers"]
    expert = env.expert()
    assert expert is not None
    first = env.step(expert())
    assert first.info["ids"][0] == str(TITLES.index("Salt Harbour"))
    assert first.info["query"] == "Salt Harbour"
    assert "Voss" not in first.observation
    assert all(f"{word} e" in action for action in first.admissible_actions for word in [action.split()[0]])
    env.step(expert())
    assert expert() == f"answer {answer}"
    assert env.step(expert()).success


def test_a_level_says_how_it_is_played(tmp_path: Path) -> None:
    folder = write_lakeside(tmp_path, topk=1, max_steps=6, names="symbols")
    env = SearchQAEnv(folder)
    assert (env.max_steps, env.record["topk"], env.record["names"]) == (6, 1, "symbols")
    env = SearchQAEnv(folder, max_steps=3, topk=2, names="shown")
    assert (env.max_steps, env.record["topk"], env.record["names"]) == (3, 2, "shown")
    (folder / "manifest.json").write_text("{")
    with pytest.raises(EnvError, match=r"manifest.json cannot be read"):
        SearchQAEnv(folder)


def test_splits_can_be_shortened(make: Make) -> None:
    env = make(test_tasks=1)
    assert list(env.tasks("test")) == ["test-0"]
    assert len(env.tasks("valid")) == 2
    for task in ("test-1", "dev-0", "test", "valid-9"):
        with pytest.raises(UnknownTask, match="has no task"):
            env.reset(task, 0)


def test_what_a_run_records(make: Make) -> None:
    record = make().record
    assert record["retriever"] == "tantivy"
    assert record["passages"] == 20
    assert record["questions"] == {"train": 2, "valid": 2, "test": 2}
    assert len(str(record["corpus"])) == len(str(record["index"])) == 64
    json.dumps(dict(record))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"topk": 0}, "topk of question answering must be above 0"),
        ({"max_steps": 0}, "max_steps .* above 0"),
        ({"reward": "bleu"}, "reward .* em or f1 or cover, not 'bleu'"),
        ({"retriever": "dense"}, "retriever .* tantivy or http"),
        ({"retriever": "http"}, "needs the address of a server"),
        ({"retriever": "http", "url": "ftp://x"}, "must begin with http"),
        ({"names": "hidden"}, "names .* shown or symbols"),
        ({"data_dir": "/nowhere"}, "not a folder"),
        ({"train_tasks": -1}, "below 0"),
    ],
)
def test_options_that_cannot_be_used(make: Make, options: dict[str, Any], said: str) -> None:
    with pytest.raises(EnvError, match=said):
        make(**options)


def test_data_is_named_by_a_variable(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEARCH_QA_DATA", raising=False)
    with pytest.raises(EnvError, match="gagpo env generate search_qa"):
        SearchQAEnv()
    monkeypatch.setenv("SEARCH_QA_DATA", str(root))
    assert SearchQAEnv().tasks("test")
    lines = list(SearchQAEnv.find_data())
    assert lines[0] == f"{root} (variable SEARCH_QA_DATA)"
    assert any("train.jsonl" in line for line in lines)


def test_symbols_need_generated_data(official: Path) -> None:
    with pytest.raises(EnvError, match="names=shown"):
        SearchQAEnv(official, names="symbols")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            "{}{}{}".format,
            st.sampled_from(["search ", "<search>", "answer:", "<answer>", ""]),
            st.text(st.characters(), max_size=30) | st.sampled_from(["Ana Voss", "e3", "x" * 10_000, "\x00"]),
            st.sampled_from(["</search>", "</answer>", ""]),
        ),
        max_size=8,
    ),
    st.sampled_from(["shown", "symbols"]),
)
def test_any_actions_leave_a_working_session(make: Make, actions: list[str], names: str) -> None:
    env = make(names=names, max_steps=100)
    env.reset(TASK, 0)
    for action in actions:
        result = env.step(action)
        assert 0.0 <= result.score <= 1.0
        assert len(result.observation) <= 2400
        json.dumps(dict(result.info)).encode()
        if result.terminated:
            env.reset(TASK, 0)
    assert env.step("search Ana Voss").info["ids"]


@pytest.mark.parametrize(("think", "tags"), [(True, True), (False, True), (True, False), (False, False)])
def test_prompts(think: bool, tags: bool) -> None:
    engine = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    history = [{"step": 0, "observation": "", "action": "A0"}, {"step": 1, "observation": "O1", "action": "A1"}]
    shown = engine.from_string(SearchQAEnv.prompt.turn).render(
        task="Q?",
        observation="O2",
        history=history,
        admissible_actions=[],
        step=2,
        think=think,
        action_tags=tags,
    )
    if not think and not tags:
        assert shown == "Q?\naction : A0\nO1 action : A1\nO2 action :"
        return
    past = "A0\n<information>\nO1\n</information>\nA1\n<information>\nO2\n</information>\n\n"
    assert shown.startswith(f"Question: Q?\n\n{past}You answer")
    assert ("<think>" in shown) == think
    assert ("<search>words to search for</search>" in shown) == tags
    assert "\n\n\n" not in shown


async def _play_in_a_worker(root: Path) -> bool:
    async with EnvPool(SearchQAEnv.name, {"data_dir": str(root)}) as pool:
        session = await pool.open()
        await session.reset(TASK, 0)
        while not (result := await session.step(await session.expert_action())).terminated:
            pass
        return result.success


def test_workers_share_what_was_loaded_before_the_fork(root: Path) -> None:
    import asyncio

    assert asyncio.run(_play_in_a_worker(root))
