"""WebShop under arbitrary actions and arbitrary catalogue files: a clear error or no effect, never a crash."""

from __future__ import annotations

import json
import random
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_envs.base import EnvError
from agent_envs.webshop import WebShopEnv
from agent_envs.webshop.generator import generate
from agent_envs.webshop.jsonstream import stream_list
from agent_envs.webshop.session import parse_action
from agent_envs.webshop.text import analyze

FILES = ("items_shuffle.json", "items_ins_v2.json", "items_human_ins.json")
NAMES = ("buy now", "back to search", "< prev", "next >", "description", "features", "reviews", "attributes", "search")

anything = st.text(st.characters(), max_size=40)
words = st.sampled_from(["coffee", "shoes", "<r>", "<q>", "<c>", "<a>", "fashion", "search_results", "item_page", " "])
arguments = st.one_of(anything, st.sampled_from(NAMES), st.lists(words, min_size=1, max_size=4).map(" ".join))
actions = st.one_of(
    anything,
    st.builds("{}[{}]{}".format, st.sampled_from(["search", "click", "Search", " click", ""]), arguments, anything),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), anything)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(anything, inner, max_size=3))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    generate(folder, products=120, seed=0)
    return folder


@pytest.fixture(scope="module")
def env(root):
    return WebShopEnv(root, cache_dir=root / "cache", nouns="words", test_goals=50, max_steps=1000)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(actions, st.integers(0, 10_000)), max_size=25))
def test_any_actions_leave_a_working_session(env, steps):
    result = env.reset("train-0", 0)
    for step in steps:
        offered = result.admissible_actions
        # Numbers stand for offered actions, so that deep pages are reached.
        action = offered[step % len(offered)] if isinstance(step, int) else step
        before = result
        result = env.step(action)
        assert 0.0 <= result.score <= 1.0
        if not result.admissible:
            assert (result.observation, result.admissible_actions) == (before.observation, before.admissible_actions)
        if result.terminated:
            result = env.reset("train-0", 0)


@given(st.text(st.sampled_from("search[]ab \n"), max_size=30) | anything)
def test_action_form_is_that_of_the_original_expression(action):
    match = re.match(r"(.+)\[(.+)\]", action)
    assert parse_action(action) == (match.groups() if match else None)


@given(st.text(st.characters(), max_size=300))
def test_any_text_can_be_analysed(text):
    terms = analyze(text)
    assert all(0 < len(term) <= 255 for term in terms)
    assert len(terms) <= len(text)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_files_with_any_field_replaced(root, data):
    """One value somewhere in the files becomes something else, or disappears."""
    contents = [json.loads((root / name).read_text(encoding="utf-8")) for name in FILES]
    asins = [item["asin"] for item in contents[0][:5]]
    contents = [contents[0][:5], *({a: part[a] for a in asins if a in part} for part in contents[1:])]
    spot = contents
    while True:
        keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
        if spot is contents:
            key = data.draw(st.sampled_from(keys))
        else:
            key = data.draw(st.sampled_from(keys)) if keys else None
        if key is None:
            break
        if isinstance(spot[key], dict | list) and spot[key] and data.draw(st.integers(0, 3)):
            spot = spot[key]
            continue
        if spot is not contents and data.draw(st.booleans()):
            del spot[key]
        else:
            spot[key] = data.draw(values)
        break
    play_or_refuse([json.dumps(content) for content in contents])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_files_cut_or_overwritten_anywhere(root, data):
    texts = [(root / name).read_text(encoding="utf-8") for name in FILES]
    number = data.draw(st.integers(0, 2))
    at = data.draw(st.integers(0, len(texts[number])))
    junk = data.draw(anything)
    texts[number] = texts[number][:at] + junk + (texts[number][at + len(junk) :] if data.draw(st.booleans()) else "")
    play_or_refuse(texts)


@pytest.mark.parametrize(
    "items",
    ["", " ", "[", "[]", "{}", "null", "[1]", "[null]", "[[]]", "[{}]", "[" * 100_000, '[{"asin": 1}]', "\ufeff[]"],
)
def test_unusable_items_are_named(items):
    with pytest.raises(EnvError, match="items_shuffle"):
        play([items, "{}", "{}"])


@pytest.mark.parametrize("content", ["[]", "null", "{", "\x00"])
def test_unusable_attributes_are_named(root, content):
    with pytest.raises(EnvError, match="items_ins_v2"):
        play([(root / FILES[0]).read_text(encoding="utf-8"), content, "{}"])


@given(st.lists(values, max_size=5), st.sampled_from([None, 1, 4]))
def test_streaming_reads_what_json_reads(content, indent):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list.json"
        path.write_text(json.dumps(content, indent=indent))
        assert repr(list(stream_list(path))) == repr(json.loads(path.read_text()))


def play_or_refuse(texts: list[str]) -> None:
    message = "played"
    try:
        play(texts)
    except EnvError as error:
        message = str(error)
    assert message
    assert "\n" not in message


def play(texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, text in zip(FILES, texts, strict=True):
            (Path(folder) / name).write_bytes(text.encode("utf-8", "surrogatepass"))
        env = WebShopEnv(folder, cache_dir=Path(folder) / "cache", nouns="words", test_goals=1)
        rng = random.Random(0)
        for task in env.tasks("train")[:3]:
            result = env.reset(task, 0)
            for action in ("search[gift for family]", None, None, None, "click[buy now]"):
                result = env.step(action or rng.choice(result.admissible_actions))
                if result.terminated:
                    break
