"""Where an action in tags ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openrlhf_gagpo.rollout.parse import parse_action
from openrlhf_gagpo.rollout.stopping import StopRule
from support.transcripts import merging_tokenizer

PIECES = [
    "<think>",
    "</think>",
    "<action>",
    "</action>",
    "</ACTION>",
    "go",
    " ",
    ">",
    "</act",
    "ion>x",
    "<action></action>",
]


def joined(pieces: Sequence[str]) -> Any:
    return lambda ids: "".join(pieces[place] for place in ids)


def first_end(rule: StopRule, ids: Sequence[int]) -> int | None:
    return next((count for count in range(1, len(ids) + 1) if rule.ends(ids[:count])), None)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, len(PIECES) - 1), max_size=12), opened=st.booleans())
@example(ids=[2, 5, 8, 9], opened=False)
@example(ids=[0, 2, 5, 3, 1, 2, 5, 4], opened=False)
@example(ids=[2, 5, 3, 1, 2, 5, 3], opened=True)
def test_an_action_ends_where_the_parser_first_sees_one(ids: list[int], opened: bool) -> None:
    decode = joined(PIECES)

    def sees_one(count: int) -> bool:
        parsed = parse_action(decode(ids[:count]), think=False, action_tags=True, thinking_opened=opened)
        return parsed.format_valid

    expected = next((count for count in range(1, len(ids) + 1) if sees_one(count)), None)
    assert first_end(StopRule(("action",), decode, opened), ids) == expected


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("<search>a b</search> and <answer>c</answer>", "<search>a b</search>"),
        ("<answer>c</answer><search>a</search>", "<answer>c</answer>"),
        ("<search>a</answer><answer>b</answer>", "<search>a</answer><answer>b</answer>"),
        ("<think><search>a</search></think><search>b</search>!", "<think><search>a</search></think><search>b</search>"),
        ("<search>a</answer> b</search>.", "<search>a</answer> b</search>"),
        ("<search>a<answer>b<search>c</search></answer>", "<search>a<answer>b<search>c</search>"),
        ("<search></search><answer>b</answer>", "<search></search>"),
        ("<search>a", None),
    ],
)
def test_several_kinds_of_tags(text: str, end: str | None) -> None:
    rule = StopRule(("search", "answer"), joined(text))
    assert first_end(rule, range(len(text))) == (None if end is None else len(end))
    assert rule.closing_tags == ["</search>", "</answer>"]


def test_a_token_may_hold_more_than_the_end_of_the_tag() -> None:
    tokenizer = merging_tokenizer()
    text = "<action>go</action>\nand then"
    ids = tokenizer.encode(text, add_special_tokens=False)
    rule = StopRule(("action",), lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)))
    end = first_end(rule, ids)
    assert end is not None
    assert tokenizer.decode(ids[:end]) == "<action>go</action>\n"
    assert tokenizer.decode(ids[:end][-1:]) == ">\n"
    assert parse_action(tokenizer.decode(ids[:end]), think=False, action_tags=True) == ("go", True)


def test_half_a_character_after_the_tag_does_not_hide_it() -> None:
    """The token of the tag's end also holds the first byte of a letter that takes two."""
    tokenizer = merging_tokenizer()
    ids = tokenizer.encode("<action>go</action>ç", add_special_tokens=False)
    rule = StopRule(("action",), lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True)))
    assert first_end(rule, ids) == len(ids) - 1
