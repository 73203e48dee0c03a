from __future__ import annotations

from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.rollout.parse import FALLBACK_CHARACTERS, parse_action, tagged

FRAGMENTS = [
    "<think>",
    "</think>",
    "<action>",
    "</action>",
    "<Action>",
    "</THINK>",
    "<",
    ">",
    "/",
    "go north",
    " ",
    "\n",
]
RESPONSES = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=8))).map("".join)


@pytest.mark.parametrize(
    ("response", "action", "valid"),
    [
        ("<action>go north</action>", "go north", True),
        ("  <action>\n go north \n</action> bye", "go north", True),
        ("<ACTION>go</Action>", "go", True),
        ("<action>first</action> no, <action>second</action>", "second", True),
        ("<action>first</action> <action>unfinished", "first", True),
        ("<action>outer <action>inner</action> rest</action>", "inner", True),
        ("</action><action>go</action></action>", "go", True),
        ("<think>maybe <action>left</action></think><action>right</action>", "right", True),
        ("maybe <action>left</action></think><action>right</action>", "right", True),
        ("<action>go</action>\n<think>done</think>", "go", True),
        ("go north", "go north", False),
        ("<action >go</action>", "<action >go</action>", False),
        ("<action></action>", "<action></action>", False),
        ("<action>go</action><action> </action>", "<action>go</action><action> </action>", False),
        ("<think>a <action>go</action></think>", "<think>a <action>go</action></think>", False),
        ("<think>a <action>go</action>", "<think>a <action>go</action>", False),
        ("<action>go</action></think>", "<action>go</action></think>", False),
        ("one\n\n two\tthree", "one two three", False),
        ("", "", False),
    ],
)
def test_action_tags(response: str, action: str, valid: bool) -> None:
    assert parse_action(response, think=False, action_tags=True) == (action, valid)


@pytest.mark.parametrize(
    ("response", "action", "valid"),
    [
        ("<think>x</think><action>go</action>", "go", True),
        ("<Think></thinK><action>go</action>", "go", True),
        ("<think>a<think>b</think><action>go</action>", "go", True),
        ("<action>go</action><think>x</think>", "go", False),
        ("<action>go</action>", "go", False),
        ("x</think><action>go</action>", "go", False),
        ("<think>x<action>go</action>", "<think>x<action>go</action>", False),
    ],
)
def test_thinking_must_be_closed_before_the_action(response: str, action: str, valid: bool) -> None:
    assert parse_action(response, think=True, action_tags=True) == (action, valid)


def test_thinking_opened_by_the_prompt() -> None:
    response = "so <action>left</action></think><action>right</action>"
    assert parse_action(response, think=True, action_tags=True, thinking_opened=True) == ("right", True)
    unclosed = parse_action("so <action>left</action>", think=True, action_tags=True, thinking_opened=True)
    assert not unclosed.format_valid


def test_cut_off_response_with_a_complete_pair_is_valid() -> None:
    parsed = parse_action("<action>go</action> and", think=False, action_tags=True, finish_reason="length")
    assert parsed == ("go", True)


@pytest.mark.parametrize(
    ("response", "think", "finish", "action", "valid"),
    [
        (" go north\n", False, "stop", "go north", True),
        ("go nor", False, "length", "go nor", False),
        ("  ", False, "stop", "", False),
        ("<think>x</think> go", False, "stop", "<think>x</think> go", True),
        ("<think>x</think> go ", True, "stop", "go", True),
        ("<think>x</think>", True, "stop", "", False),
        ("<think>x", True, "length", "<think>x", False),
        ("go", True, "stop", "go", False),
    ],
)
def test_without_action_tags(response: str, think: bool, finish: str, action: str, valid: bool) -> None:
    assert parse_action(response, think=think, action_tags=False, finish_reason=finish) == (action, valid)


def test_missing_action_falls_back_to_a_short_tail() -> None:
    parsed = parse_action("a" * 500 + "\n" + "b" * 60 + "  \n", think=False, action_tags=True)
    assert not parsed.format_valid
    assert parsed.action == "a" * 39 + " " + "b" * 60
    assert len(parsed.action) == FALLBACK_CHARACTERS


@given(RESPONSES, st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["stop", "length"]))
def test_any_response_parses(response: str, think: bool, tags: bool, opened: bool, finish: str) -> None:
    parsed = parse_action(response, think=think, action_tags=tags, thinking_opened=opened, finish_reason=finish)
    assert parsed.action == parsed.action.strip()
    assert parsed.action or not parsed.format_valid
    if tags and not parsed.format_valid and "</action>" not in response.lower():
        assert len(parsed.action) <= FALLBACK_CHARACTERS
        assert "\n" not in parsed.action


@given(RESPONSES, st.sampled_from(["go north", "take the key"]))
def test_a_final_proper_answer_always_counts(prefix: str, action: str) -> None:
    answer = f"{prefix}<think></think><action>{action}</action>"
    assert parse_action(answer, think=True, action_tags=True).action == action
    assert parse_action(answer, think=False, action_tags=True) == (action, True)


@pytest.mark.parametrize(
    "unit", ["<action>", "</action>", "<think>", "<action", "<<", " \n", "a", "<action>x</action>"]
)
def test_a_megabyte_is_parsed_in_linear_time(unit: str) -> None:
    response = unit * (1_000_000 // len(unit))
    started = perf_counter()
    for think in (False, True):
        for tags in (False, True):
            parse_action(response, think=think, action_tags=tags)
    # Quadratic work would take hours; the bound only has to be far from both.
    assert perf_counter() - started < 10


SEVERAL = ("search", "answer")
TAGGED = [f"<{slash}{name}>" for name in (*SEVERAL, "think") for slash in ("", "/")]


@pytest.mark.parametrize(
    ("response", "action", "valid"),
    [
        ("<search>ana voss</search>", "<search>ana voss</search>", True),
        ("so <Answer> 1932 </ANSWER> bye", "<Answer> 1932 </ANSWER>", True),
        ("<search>a</search><answer>b</answer>", "<search>a</search>", True),
        ("<answer>a <search>b</search> c</answer>", "<search>b</search>", True),
        ("<search>a<search>b</search>", "<search>a<search>b</search>", True),
        ("<think><search>a</search></think><answer>b</answer>", "<answer>b</answer>", True),
        ("<search>a<think></search></think></search>", "a<think> </think>", False),
        ("x</think><answer>b</answer>", "<answer>b</answer>", True),
        ("<answer>b</answer></think><search>a</search>", "<answer>b</answer>", True),
        ("<search> </search><answer>z</answer>", "z", False),
        ("<think>a <search>go</search>", "<think>a go", False),
        ("<search>a</answer>", "a", False),
        ("search ana voss", "search ana voss", False),
        ("<action>go</action>", "<action>go</action>", False),
    ],
)
def test_tags_of_several_names(response: str, action: str, valid: bool) -> None:
    assert parse_action(response, think=False, action_tags=True, tag_names=SEVERAL) == (action, valid)


def test_thinking_before_tags_of_several_names() -> None:
    def read(response: str, opened: bool = False) -> tuple[str, bool]:
        return parse_action(response, think=True, action_tags=True, thinking_opened=opened, tag_names=SEVERAL)

    pair = "<answer>b</answer>"
    assert read(f"<think>x</think>{pair}") == (pair, True)
    assert read(f"x <search>a</search></think>{pair}", opened=True) == (pair, True)
    assert read(pair) == (pair, False)
    assert read(f"x</think>{pair}") == (pair, False)
    assert read(f"<think>x</think>y</think>{pair}") == (pair, False)


@given(
    st.lists(st.sampled_from(TAGGED) | st.text(max_size=4)).map("".join),
    st.lists(st.sampled_from(TAGGED) | st.text(max_size=4)).map("".join),
    st.booleans(),
)
def test_nothing_after_the_first_pair_of_several_names_counts(before: str, after: str, think: bool) -> None:
    def read(response: str) -> tuple[str, bool]:
        return parse_action(response, think=think, action_tags=True, tag_names=SEVERAL)

    response = f"{before}<answer>x</answer>"
    action, valid = read(response)
    assert len(action) <= len(response)
    if valid:
        assert read(response + after) == (action, valid)


def test_actions_are_put_in_tags() -> None:
    assert tagged("go north") == "<action>go north</action>"
    assert tagged("search ana  voss", SEVERAL) == "<search>ana  voss</search>"
    assert tagged("look around", SEVERAL) == "look around"
