"""Actions, passages and metrics, against recorded cases where they are present."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_envs.search_qa.actions import (
    MAX_ANSWER_CHARS,
    MAX_QUERY_CHARS,
    cover,
    exact_match,
    normalise,
    passage_line,
    read_action,
    shorten,
    show_passages,
    word_f1,
)
from support.paths import REPOSITORY

GOLDEN = REPOSITORY.parent / "shared" / "golden" / "search_qa" / "cases.jsonl"
PIECES = st.sampled_from(["<search>", "</search>", "<answer>", "</ANSWER>", "search ", "answer: ", "<think>", " ", "x"])
TEXTS = st.lists(PIECES | st.text(max_size=4)).map("".join)


def as_list(text: str) -> list[str] | None:
    action = read_action(text)
    return None if action is None else list(action)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "normalise": normalise,
    "em": exact_match,
    "cover": cover,
    "f1": word_f1,
    "action": as_list,
    "passage": passage_line,
}


@pytest.mark.skipif(not GOLDEN.is_file(), reason="no recorded cases here")
def test_recorded_cases() -> None:
    cases = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    assert len(cases) == 100
    assert {case["function"] for case in cases} == FUNCTIONS.keys()
    wrong = [case for case in cases if FUNCTIONS[case["function"]](*case["args"]) != case["expected"]]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("<search>two  words</search>", ["search", "two words"]),
        ("<answer>1932</answer> <search>x</search>", ["answer", "1932"]),
        ("<answer>a <search>b</search> c</answer>", ["search", "b"]),
        ("</search><search>b</search>", ["search", "b"]),
        ("Answer : 1932", ["answer", "1932"]),
        ("search :", None),
        ("<answer>\n</answer>", None),
        ("I would search for it", None),
    ],
)
def test_reading(text: str, read: list[str] | None) -> None:
    assert as_list(text) == read


def test_long_words_are_cut() -> None:
    assert len(read_action("search " + "x" * 1000).words) == MAX_QUERY_CHARS
    assert len(read_action("answer " + "x" * 1000).words) == MAX_ANSWER_CHARS


@given(TEXTS, TEXTS)
def test_nothing_after_a_complete_pair_changes_what_is_read(before: str, after: str) -> None:
    text = f"{before}<answer>x</answer>"
    action = read_action(text)
    assert read_action(text + after) == action
    if action is not None:
        assert action.words == " ".join(action.words.split())


@given(TEXTS)
def test_what_is_read_can_be_sent(text: str) -> None:
    action = read_action(text)
    assert action is None or 0 < len(action.words.encode().decode()) <= MAX_QUERY_CHARS


def test_reading_takes_linear_time() -> None:
    for text in ("<search>" * 100_000, "<search></answer>" * 50_000, "search" + " " * 500_000, "</search>" * 100_000):
        started = time.process_time()
        assert read_action(text) is None
        assert time.process_time() - started < 2


def test_observations_are_cut_at_words() -> None:
    passages = ['"T"\none two three four', '"U"\nfive six']
    assert show_passages(passages, 3, 1000) == "Doc 1(Title: T) one two three\nDoc 2(Title: U) five six"
    assert show_passages(passages, 3, 28) == "Doc 1(Title: T) one two"
    assert show_passages([], 3, 28) == ""
    assert shorten("abcdef", 3) == "abc"
    assert shorten("ab cd", 5) == "ab cd"
    assert shorten("ab cd", 2) == "ab"


def test_an_answer_counts_words_and_the_best_golden_answer() -> None:
    assert word_f1("new york", ["york city", "New York"]) == 1.0
    assert word_f1("york", ["york city"]) == pytest.approx(2 / 3)
    assert word_f1("x", []) == exact_match("x", []) == cover("x", []) == 0.0
