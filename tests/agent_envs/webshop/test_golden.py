"""WebShop against recordings of the original program; skipped where they are not at hand."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import pytest

from agent_envs.webshop.catalogue import Catalogue, load_catalogue
from agent_envs.webshop.compat import TextShop
from agent_envs.webshop.env import page_without_instruction
from agent_envs.webshop.fuzzy import COLOURS, canonical_colour, token_set_ratio
from agent_envs.webshop.goals import GoalBook, compatible_book
from agent_envs.webshop.pages import segments
from agent_envs.webshop.reward import purchase_reward
from agent_envs.webshop.session import Session, Shop
from agent_envs.webshop.text import analyze
from support.paths import REPOSITORY

GOLDEN = REPOSITORY.parent / "shared" / "golden" / "webshop"
FILES = {
    "items.json": "items_shuffle.json",
    "attrs.json": "items_ins_v2.json",
    "human_ins.json": "items_human_ins.json",
}
KINDS = ("human", "synthetic")

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason="no recordings of the original WebShop here")


class Listed(random.Random):
    """Draws for "<r>" the products that were drawn in the recording; where none are known, any."""

    shown: Sequence[int] = ()
    page = 1

    def sample(self, population: Sequence[int], k: int, *, counts: Any = None) -> list[int]:  # type: ignore[override]
        rest = [number for number in population if number not in set(self.shown)]
        first = rest[: (self.page - 1) * 10]
        return [*first, *self.shown, *rest[len(first) :]][:k]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> Catalogue:
    root = tmp_path_factory.mktemp("recorded")
    for ours, official in FILES.items():
        (root / official).symlink_to(GOLDEN / ours)
    return load_catalogue(root, cache_dir=root / "cache")


@pytest.fixture(scope="module")
def books(catalogue) -> dict[str, GoalBook]:
    return {kind: compatible_book(catalogue, kind, random.Random(0), shuffle_seed=233) for kind in KINDS}


@cache
def read(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def lines(name: str) -> Iterator[dict[str, Any]]:
    with (GOLDEN / name).open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def nouns(title: str) -> list[str]:
    """The rule under which the recording was made."""
    excluded = read("word_lists.json")["non_noun_words_used_in_the_recording"]
    return [word for word in re.findall("[A-Za-z]+", title.lower()) if word not in excluded]


def state(session: Session) -> dict[str, Any]:
    return {
        "keywords": session.keywords,
        "page": session.page_number,
        "asin": session.product and session.product.asin,
        "asins": sorted(session.visited),
        "options": session.options,
    }


def prepare_random_products(rng: Listed, catalogue: Catalogue, step: dict[str, Any]) -> None:
    if (step["state"]["keywords"] or [""])[0] == "<r>" and "/search_results/" in step["url"]:
        found = [catalogue.number(name.upper()) for name in step["available_actions"]["clickables"]]
        rng.shown = [number for number in found if number is not None]
        rng.page = step["state"]["page"]


def replay(record: dict[str, Any], catalogue: Catalogue, shop: Shop, **history: int) -> None:
    rng = Listed()
    env = TextShop(shop, rng, record["mode"], **history)
    assert env.reset(record["goal_idx"]) == (record["reset_observation"], None)
    assert env.get_available_actions() == record["reset_available_actions"]
    for step in record["steps"]:
        prepare_random_products(rng, catalogue, step)
        observation, reward, done, _ = env.step(step["action"])
        assert observation == step["observation"]
        assert env.get_available_actions() == step["available_actions"]
        assert (reward, done) == (step["reward"], step["done"])
        assert env.session.url == step["url"]
        assert state(env.session) == {**step["state"], "asins": sorted(step["state"]["asins"])}
    assert env.session.breakdown == record["reward_info"]


@pytest.mark.parametrize("name", ["analyzer_tokens.json", "query_tokens.json"])
def test_tokens(name):
    for record in read(name):
        assert analyze(record["text"]) == record["tokens"]


def test_rankings(catalogue):
    for record in read("search_top50.json"):
        found = [catalogue.card(number)[0] for number in catalogue.search(record["query"], 50)]
        assert found == record["asins"], record["query"]


def test_products(catalogue):
    products = [catalogue.product(number) for number in range(len(catalogue))]
    for product, record in zip(products, read("loaded_products.json"), strict=True):
        assert product.asin == record["asin"]
        assert product.title == record["Title"]
        assert product.description == record["Description"]
        assert list(product.bullets) == record["BulletPoints"]
        assert product.price_tag == record["Price"]
        assert list(product.prices) == record["pricing"]
        assert [(name, list(values)) for name, values in product.options.items()] == list(record["options"].items())
        assert list(product.attributes) == record["Attributes"]
        assert (product.category, product.query) == (record["category"], record["query"])
        assert product.product_category == record["product_category"]


@pytest.mark.parametrize("kind", KINDS)
def test_goals_prices_and_draws(kind, catalogue, books):
    record, book = read("goals.json")[kind], books[kind]
    assert {catalogue.card(n)[0]: price for n, price in enumerate(book.prices)} == record["product_prices"]
    weights = book.weights()
    for index, wanted in enumerate(record["goals"]):
        goal = book[index]
        options = goal.goal_options if kind == "synthetic" else list(goal.goal_options)
        assert options == wanted["goal_options"]
        assert list(goal.attributes) == wanted["attributes"]
        assert weights[index] == wanted["weight"]
        for name in ("asin", "category", "query", "name", "product_category", "instruction_text", "price_upper"):
            assert getattr(goal, name) == wanted[name]
    assert len(book) == len(record["goals"])
    rng = random.Random(123)
    for name, index in record["unseeded_reset_sampling_after_random_seed_123"]:
        assert "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=10)) == name
        assert book.sample(rng) == index


def test_fuzzy_ratios():
    assert read("word_lists.json")["colour_names_in_order"] == COLOURS
    for record in read("fuzzy_pairs.json"):
        one, other = record["p"], record["g"]
        other = tuple(other) if isinstance(other, list) else other
        assert token_set_ratio(one, str(other)) == record["token_set_ratio"]
        one, other = canonical_colour(one), canonical_colour(other)
        assert one == record["p_normalized"]
        assert (list(other) if isinstance(other, tuple) else other) == record["g_normalized"]
        assert token_set_ratio(str(one), str(other)) == record["ratio_after_normalize"]


def test_rewards(catalogue, books):
    for record in lines("rewards.jsonl"):
        product = catalogue.product(catalogue.number(record["asin"]))
        goal = books[record["goal_set"]][record["goal_idx"]]
        result = purchase_reward(product, goal, record["price"], record["options"], nouns)
        assert result == (record["reward"], record["info"])


def test_transcripts(catalogue, books):
    for record in lines("transcripts.jsonl"):
        replay(record, catalogue, Shop(books[record["goal_set"]], nouns))


def test_variants(catalogue, books):
    histories = {"prev_obs1_act1": (1, 1), "prev_obs2_act3": (2, 3)}
    for record in lines("variants.jsonl"):
        variant = record["variant"]
        if variant != "html":
            pages, actions = histories.get(variant, (0, 0))
            shop = Shop(books[record["goal_set"]], nouns, show_attributes=variant.startswith("show_attrs"))
            replay(record, catalogue, shop, num_prev_obs=pages, num_prev_actions=actions)


def test_edge_cases(catalogue, books):
    records = read("edge_cases.json")
    env = TextShop(Shop(books["human"], nouns), random.Random(0))
    for record in records:
        action = record.get("action", "")
        start, _ = env.reset(3)
        if "exception" in record:
            assert env.step(action)[:3] == (start, 0.0, False)
            assert env.get_available_actions() == record["after"]
        elif action == "search[<r>]":
            observation, *_ = env.step(action)
            assert env.session.url == record["url"]
            assert len(env.get_available_actions()["clickables"]) == 12
            assert "Page 1 (Total results: 50)" in observation
        elif "observation" in record:
            observation, *_ = env.step(action)
            assert observation.endswith(record["observation"])
            assert env.session.url == record["url"]
            assert env.get_available_actions()["clickables"][: len(record["av"])] == record["av"]


def test_misrouting_by_words_in_the_url(books):
    later, earlier = (record for record in read("edge_cases.json") if ";" in record.get("action", ""))
    env = TextShop(Shop(books["human"], nouns), random.Random(0))
    env.reset(3)
    env.step("search[item_page coffee]")
    assert env.step("click[next >]")[0].startswith(later["obs"])
    env.reset(3)
    env.step("search[search_results coffee]")
    first = env.get_available_actions()["clickables"][2]
    env.step(f"click[{first}]")
    assert env.session.url == earlier["url"]
    assert env.step("click[< prev]")[0].startswith(earlier["obs"])
    assert env.session.url == earlier["url2"]


def test_after_a_purchase(books):
    observation, *outcomes = read("edge_cases.json")[-1]["post_done"]
    env = TextShop(Shop(books["human"], nouns), random.Random(0))
    env.reset(3)
    env.step("search[search_results coffee]")
    env.step(f"click[{env.get_available_actions()['clickables'][2]}]")
    assert env.step("click[buy now]")[:3] == (observation, *outcomes[0])
    assert list(env.step("click[back to search]")[1:3]) == outcomes[1]
    again = env.step("search[coffee]")
    assert again[0].startswith(outcomes[2])
    assert list(again[1:3]) == outcomes[3]


@pytest.mark.parametrize("record", list(lines("verl_agent.jsonl")) if GOLDEN.is_dir() else [])
def test_training_wrapper(record, catalogue):
    """Anchors, rewards and infos of verl-agent's workers.

    There a purchase starts a session with a random goal, and the wrapper still looks for the first task on its pages.
    Which goal it is hangs on random numbers that the recordings do not all hold, so it is read off the next page.
    """
    kind = "human" if record["human_goals"] else "synthetic"
    for place, task in enumerate(record["tasks"]):
        seed = record["seed"] + (place // record["group_n"] if record["is_train"] else place)
        book = compatible_book(catalogue, kind, random.Random(seed), shuffle_seed=seed)
        worker = TextShop(Shop(book, nouns), random.Random())
        worker.reset(record["reset_goal_idx"][place // record["group_n"]])
        assert worker.session.goal.instruction_text == task
        assert page_without_instruction(worker.session.page) == record["reset"]["anchor"][place]
        for step, later in zip(record["steps"], [*record["steps"][1:], None], strict=True):
            _, reward, done, _ = worker.step(step["projected"][place])
            page = worker.session.page
            first_task = done or worker.session.goal.instruction_text == task
            anchor = page_without_instruction(page) if first_task else segments((*page.head, *page.body))
            assert anchor == step["anchor"][place]
            if done:
                worker.reset(goal_on(later["anchor"][place], book) if later else 0)
            won = done and reward == 1.0
            assert (10.0 * won, done) == (step["rewards"][place], step["dones"][place])
            info = {"available_actions": worker.get_available_actions(), "task_score": reward, "won": won}
            recorded = step["infos"][place]
            assert info == {name: recorded[name] for name in info}


def goal_on(page: str, book: GoalBook) -> int:
    pieces = page.split(" [SEP] ")
    text = pieces[1 if pieces[0] == "Instruction:" else 2]
    return next(index for index, goal in enumerate(book) if goal.instruction_text == text)
