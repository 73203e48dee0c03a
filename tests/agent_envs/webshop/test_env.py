"""The WebShop environment on generated catalogues."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest

from agent_envs.base import EnvError, UnknownTask
from agent_envs.testing import check_env
from agent_envs.webshop import WebShopEnv, nouns
from agent_envs.webshop import catalogue as catalogue_module
from agent_envs.webshop.catalogue import load_catalogue
from agent_envs.webshop.generator import generate
from agent_envs.webshop.reward import options_met
from agent_envs.webshop.session import parse_action
from agent_envs.webshop.vocabulary import CHOICES
from support.noun_rules import title_words
from support.paths import REPOSITORY

FILES = ("items_shuffle.json", "items_ins_v2.json", "items_human_ins.json")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("webshop")
    generate(folder, products=400, seed=0)
    return folder


@pytest.fixture(scope="module")
def make(root):
    def make(**options) -> WebShopEnv:
        settings = {"data_dir": root, "cache_dir": root / "cache", "nouns": "words", "test_goals": 100}
        return WebShopEnv(**{**settings, **options})

    return make


def play_expert(env, task):
    env.reset(task, seed=0)
    expert, results = env.expert(), []
    while not results or not (results[-1].terminated or results[-1].truncated):
        results.append(env.step(expert()))
    return results


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"human_goals": True, "observation": "text_rich", "state_key": "page_options", "reward": "score"},
        {"mode": "clean"},
        {"mode": "clean", "human_goals": True, "max_steps": 10},
    ],
)
def test_it_keeps_the_contract_of_environments(make, options):
    for split in make(**options).splits:
        check_env(lambda: make(**options), split, sample=3)


@pytest.mark.parametrize("human", [True, False])
def test_the_expert_buys_what_was_asked_for(make, human):
    env = make(human_goals=human)
    results = [play_expert(env, task) for task in env.tasks("test")]
    assert all(result.admissible for steps in results for result in steps)
    assert all(steps[-1].success for steps in results)
    assert {tuple(step.reward for step in steps[:-1]) for steps in results} <= {(0.0,) * n for n in range(15)}
    assert {steps[-1].reward for steps in results} == {10.0}


def test_reward_by_score_and_breakdown(make):
    for reward, paid in (("success", 0.0), ("score", None)):
        env = make(reward=reward, human_goals=True)
        start = env.reset("train-0", seed=0)
        env.step("search[a product]")
        listed = env.step("search[gift]").admissible_actions
        env.step(next(a for a in listed if a.startswith("click[b0") and start.info["asin"].lower() not in a))
        result = env.step("click[buy now]")
        assert result.terminated
        assert not result.success
        assert 0.0 <= result.score < 1.0
        assert result.reward == (result.score if paid is None else paid)
        assert result.info["r_type"] <= 1.0
        assert result.admissible_actions == ()
        with pytest.raises(EnvError, match="call reset"):
            env.step("click[buy now]")


def test_pages_are_shown_without_the_instruction(make):
    env = make(human_goals=True)
    start = env.reset("train-0", seed=0)
    assert start.observation == start.state_key == "'Search'"
    assert start.admissible_actions == ("search[<your query>]", "click[search]")
    assert start.category in {"beauty", "electronics", "fashion", "garden", "grocery"}
    for result in play_expert(env, "train-0"):
        assert start.task not in result.observation


def test_state_keys_tell_options_only_when_asked(make):
    for state_key, distinct in (("page", 1), ("page_options", 2)):
        env = make(state_key=state_key)
        task = next(t for t in env.tasks("train") if " with " in env.reset(t, 0).task)
        env.reset(task, 0)
        expert = env.expert()
        keys = []
        while True:
            action = expert()
            if action == "click[buy now]":
                break
            keys.append(env.step(action).state_key)
        assert len(set(keys[-2:])) == distinct


def test_compatible_goals_depend_on_the_seed_and_clean_ones_do_not(make):
    def texts(**options):
        env = make(**options)
        return [env.reset(task, 0).task for task in env.tasks("test")[:50]]

    assert texts(seed=1) == texts(seed=1) != texts(seed=2)
    assert texts(mode="clean", seed=1) == texts(mode="clean", seed=2)


def test_clean_splits_share_no_product_and_outlive_growth(make, tmp_path):
    generate(tmp_path, products=600, seed=0)
    small, large = make(mode="clean"), make(mode="clean", data_dir=tmp_path)

    def products(env, split):
        starts = [env.reset(task, 0) for task in env.tasks(split)]
        return {(start.info["asin"], start.task) for start in starts}

    found = {split: products(small, split) for split in small.splits}
    assert all(found.values())
    assert sum(len({asin for asin, _ in pairs}) for pairs in found.values()) == len(
        {asin for pairs in found.values() for asin, _ in pairs}
    )
    assert all(pairs <= products(large, split) for split, pairs in found.items())


def test_click_search_is_offered_in_compatible_mode_only(make):
    env = make(mode="clean")
    assert env.reset(env.tasks("train")[0], 0).admissible_actions == ("search[<your query>]",)
    with pytest.raises(UnknownTask, match="no split 'valid'"):
        make().tasks("valid")


@pytest.mark.parametrize(
    "task", ["", "train", "train-", "train-01", "train--1", "train-99999999", "valid-0", "test-\u0661"]
)
def test_unknown_tasks(make, task):
    with pytest.raises(UnknownTask, match="no task"):
        make().reset(task, 0)


def test_random_products_follow_the_seed_of_the_episode(make):
    env = make()

    def drawn(seed):
        env.reset("train-0", seed)
        return env.step("search[<r>]").observation

    assert drawn(1) == drawn(1) != drawn(2)


def test_crashes_of_the_original_change_nothing(make):
    env = make(max_steps=100)
    start = env.reset("train-0", 0)
    # More different words than Lucene takes in one query.
    many = " ".join(f"word{number}" for number in range(1025))
    for action in ("search[<a> cotton]", "search[<c>]", f"search[{many}]", f"search[{'x' * 10_000_000}]"):
        result = env.step(action)
        assert not result.admissible
        assert result.observation == start.observation


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"mode": "exact"}, "mode .* compatible or clean"),
        ({"observation": "html"}, "text or text_rich"),
        ({"state_key": "url"}, "page or page_options"),
        ({"reward": "dense"}, "success or score"),
        ({"files": "all"}, "auto, small or full"),
        ({"max_steps": 0}, "max_steps"),
        ({"num_products": 0}, "num_products"),
        ({"test_goals": 10_000_000}, "test_goals"),
        ({"nouns": "nltk"}, "auto, spacy, words or module:function"),
        ({"nouns": "os:nothing"}, "auto, spacy, words or module:function"),
        ({"nouns": ":"}, "auto, spacy, words or module:function"),
    ],
)
def test_options_out_of_range(make, option, message):
    with pytest.raises(EnvError, match=message):
        make(**option)


def test_missing_files_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)
    with pytest.raises(EnvError, match=r"gagpo env generate webshop.*WEBSHOP_DATA"):
        WebShopEnv()
    monkeypatch.setenv("WEBSHOP_DATA", str(tmp_path))
    with pytest.raises(EnvError, match=r"no items_shuffle\.json and no items_ins_v2\.json.*gagpo env generate"):
        WebShopEnv()


def test_human_goals_need_their_file(root, tmp_path):
    for name in FILES[:2]:
        shutil.copy(root / name, tmp_path)
    WebShopEnv(tmp_path, cache_dir=tmp_path / "cache", nouns="words")
    with pytest.raises(EnvError, match=r"no human goals.*items_human_ins"):
        WebShopEnv(tmp_path, human_goals=True, cache_dir=tmp_path / "cache", nouns="words")


def test_small_files_are_preferred_unless_told_otherwise(root, tmp_path):
    generate(tmp_path, products=10, seed=5)
    for name in FILES[:2]:
        shutil.copy(root / name, tmp_path / name.replace(".json", "_1000.json"))
    assert [len(load_catalogue(tmp_path, files, None, tmp_path / "c")) for files in ("auto", "small", "full")] == [
        400,
        400,
        10,
    ]


def test_the_catalogue_can_be_cut_short(root, tmp_path):
    catalogue = load_catalogue(root, num_products=50, cache_dir=tmp_path)
    assert len(catalogue) == 50
    assert set(catalogue.search("gift travel home", 50)) <= set(range(50))


def test_changed_files_and_damaged_caches_are_packed_again(tmp_path):
    cache = tmp_path / "cache"
    generate(tmp_path, products=20, seed=0)
    first = load_catalogue(tmp_path, cache_dir=cache)
    assert load_catalogue(tmp_path, cache_dir=cache) is first
    generate(tmp_path, products=20, seed=1)
    second = load_catalogue(tmp_path, cache_dir=cache)
    assert second.fingerprint != first.fingerprint
    assert second.product(0) != first.product(0)

    card, damaged = second.card(0), cache / second.fingerprint / "cards.bin"
    for damage in (b"", b"x" * 1000):
        catalogue_module._open.cache_clear()
        # A new file: shortening one that is mapped would break the catalogue that is still open.
        damaged.unlink()
        damaged.write_bytes(damage)
        assert load_catalogue(tmp_path, cache_dir=cache).card(0) == card


def test_what_killed_builders_left_is_cleared_away(root, tmp_path):
    kept = tmp_path / load_catalogue(root, cache_dir=tmp_path).fingerprint
    left = kept.with_name(f"{kept.name}.killed")
    shutil.move(kept, left)
    catalogue_module._open.cache_clear()
    load_catalogue(root, cache_dir=tmp_path)
    assert kept.is_dir()
    assert not left.exists()


_LOAD = """
import resource, sys
from agent_envs.base import EnvError
from agent_envs.webshop.catalogue import load_catalogue

if len(sys.argv) > 3:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    print(load_catalogue(sys.argv[1], cache_dir=sys.argv[2]).card(0))
except EnvError as error:
    print(error)
"""


def load_elsewhere(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _LOAD, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@pytest.mark.parametrize("most_bytes", [1_000, 40_000, 150_000])
def test_a_full_disk_is_named_and_leaves_nothing_behind(root, tmp_path, most_bytes):
    """At the first large file, and at later ones."""
    said, _ = load_elsewhere(root, tmp_path, most_bytes).communicate()
    assert re.fullmatch(r"the WebShop cache \S+ cannot be written \(.*\); set cache_dir to .*\n", said)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    load_catalogue(root, cache_dir=tmp_path)


def test_processes_that_pack_at_once_make_one_copy(root, tmp_path):
    processes = [load_elsewhere(root, tmp_path) for _ in range(3)]
    said = [process.communicate()[0] for process in processes]
    assert said == [f"{load_catalogue(root, cache_dir=tmp_path).card(0)}\n"] * 3
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_long_texts_are_packed_small_and_come_back(root, tmp_path):
    catalogue = load_catalogue(root, cache_dir=tmp_path)
    packed = tmp_path / catalogue.fingerprint
    entries = json.loads((root / FILES[0]).read_text(encoding="utf-8"))
    for number, entry in enumerate(entries):
        product = catalogue.product(number)
        assert (product.description, list(product.bullets)) == (entry["full_description"], entry["small_description"])
    long = sum(len(json.dumps([entry["full_description"], entry["small_description"]])) for entry in entries)
    assert (packed / "texts.bin").stat().st_size < 0.6 * long


def test_an_unwritable_cache_is_named(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvError, match="set cache_dir"):
        load_catalogue(root, cache_dir=tmp_path / "file" / "cache")


def test_task_names_take_no_room(make):
    tasks = make().tasks("train")
    packed = pickle.dumps(tasks)
    assert len(packed) < 200
    assert list(pickle.loads(packed)) == list(tasks)


def test_generated_files_are_a_function_of_seed_and_number(tmp_path):
    for name, count, seed in (("a", 30, 3), ("b", 30, 3), ("c", 60, 3), ("d", 30, 4)):
        generate(tmp_path / name, count, seed)
    a, b, c, d = (json.loads((tmp_path / name / FILES[0]).read_text(encoding="utf-8")) for name in "abcd")
    assert a == b == c[:30]
    assert a != d
    assert len({item["asin"] for item in c}) == 60
    assert all(len(item["asin"]) == 10 for item in c)
    with pytest.raises(EnvError, match="number of products"):
        generate(tmp_path, 0, 0)


def test_every_option_of_generated_products_can_satisfy_a_wish_for_it():
    for values in CHOICES.values():
        for value in (value.lower().replace("/", " | ") for value in values):
            assert options_met([value], [("an option", value)]) == 1
            assert options_met([value], [value]) == 1


@pytest.mark.parametrize(
    ("action", "parsed"),
    [
        ("click[Buy Now] thanks", ("click", "Buy Now")),
        ("search[a [b] c]", ("search[a ", "b] c")),
        ("search[]", None),
        ("[x]", None),
        ("search[a\nb]", None),
        ("search[a]\nclick[b]", ("search", "a")),
        ("search[[]", ("search", "[")),
        ("search[x]]", ("search", "x]")),
        ("", None),
    ],
)
def test_action_form(action, parsed):
    assert parse_action(action) == parsed


_POOL = """
import asyncio, sys
from agent_envs import make
from agent_envs.workers import EnvPool

options = {"data_dir": sys.argv[1], "cache_dir": sys.argv[2], "test_goals": 100}
if sys.argv[3] == "made before":
    make("webshop", **options)

async def play():
    async with EnvPool("webshop", options, size=3) as pool:
        for session in [await pool.open() for _ in range(3)]:
            await session.reset("train-0", 0)

if __name__ == "__main__":
    asyncio.run(play())
"""


@pytest.mark.skipif(nouns._tagger() is not None, reason="spaCy's model is installed, so that nobody is warned")
@pytest.mark.parametrize("before", ["made before", "workers only"])
def test_a_pool_of_workers_says_once_that_a_word_list_finds_nouns(root, tmp_path, before):
    script = tmp_path / "pool.py"
    script.write_text(_POOL)
    kept = {name: value for name, value in os.environ.items() if name != nouns._TOLD}
    done = subprocess.run(
        [sys.executable, str(script), str(root), str(tmp_path / "cache"), before],
        capture_output=True, text=True, check=True, env=kept | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (done.stdout + done.stderr).count("word list") == 1


def test_the_noun_rule_is_recorded_and_its_fallback_warns_once(make, caplog, monkeypatch):
    assert make().record["nouns"] == "word list"
    assert make(nouns=title_words).reset("train-0", 0).info["nouns"] == "title_words"
    assert make(nouns="support.noun_rules:title_words").record["nouns"] == "title_words"
    monkeypatch.setattr(nouns, "_tagger", lambda: None)
    monkeypatch.setenv(nouns._TOLD, "")  # and taken back after the test
    nouns._default.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert nouns.find_nouns("auto") is nouns.find_nouns("auto") is nouns.rule_nouns
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    nouns._default.cache_clear()
    with pytest.raises(EnvError, match="not installed"):
        make(nouns="spacy")
    assert nouns.rule_nouns("The Deluxe Red Coffee Pods, for Home") == ["coffee", "pods", "home"]
