"""Search QA: mentions are found in texts, and symbols stand for them one to one."""

from __future__ import annotations

import json

import pytest

from agent_envs.errors import EnvError
from agent_envs.search_qa.mentions import Mentions, load_mentions
from agent_envs.search_qa.questions import Question
from agent_envs.search_qa.symbols import SYMBOLS, Symbols

MENTIONS = Mentions(
    {"Cold Ford": ["City of Cold Ford"], "Ada Cold": ["A. Cold"], "Silver Bay": ["The Silver Bay"], "Silver": []},
    ["1871", "Borland"],
)
QUESTION = Question("3", "Who was born in Cold Ford in 1871?", ("Ada Cold", "A. Cold"), "", "chain-2", ("1",))


def test_the_longest_name_counts_and_aliases_are_told_by_name():
    text = "A. Cold of City of Cold Ford, not Cold; The Silver Bay, Silver Bays and Silver. Born 1871, not 18711."
    assert MENTIONS.find(text) == ("Ada Cold", "Cold Ford", "Silver Bay", "Silver", "1871")
    assert MENTIONS.find("") == ()
    assert MENTIONS.is_entity("Silver")
    assert not MENTIONS.is_entity("1871")


def test_symbols_are_given_at_first_mention_with_the_answer_after_the_question():
    symbols = Symbols.for_question(QUESTION, MENTIONS, seed=0)
    shown = symbols.show("Cold Ford 1871 Ada Cold Borland A. Cold").split()
    assert len(set(shown[:4])) == 4
    assert shown[4] == shown[2]
    again = Symbols.for_question(QUESTION, MENTIONS, seed=0)
    # The answer has its symbol before it is met.
    assert again.show("Borland A. Cold").split() == [shown[3], shown[2]]


def test_hiding_undoes_showing_and_no_two_names_share_a_symbol():
    symbols = Symbols.for_question(QUESTION, MENTIONS, seed=5)
    text = "search Ada Cold, Silver Bay; Silver of Cold Ford (Borland, 1871)."
    shown = symbols.show(text)
    assert not MENTIONS.find(shown)
    assert symbols.hide(shown) == text
    assert symbols.show("nothing to see, e77") == symbols.hide("nothing to see, e77") == "nothing to see, e77"
    unused = next(name for name in SYMBOLS if name not in shown)
    assert symbols.hide(f"answer {unused}") == f"answer {unused}"


def test_the_order_depends_on_task_and_seed_only():
    def order(question: Question, seed: int) -> list[str]:
        return Symbols.for_question(question, MENTIONS, seed).show("Cold Ford 1871 Ada Cold Borland Silver").split()

    assert order(QUESTION, 0) == order(QUESTION, 0)
    assert order(QUESTION, 0) != order(QUESTION, 1)
    other = Question("4", QUESTION.question, QUESTION.answers, "", "chain-2", ("1",))
    assert order(QUESTION, 0) != order(other, 0)
    # What else a task says does not matter.
    assert order(QUESTION, 0) == order(Question("3", QUESTION.question, ("Ada Cold",), "", "x", ("2",)), 0)


def test_names_beyond_the_last_symbol_are_shown_as_they_are():
    many = Mentions({}, [str(year) for year in range(1800, 1850)])
    symbols = Symbols.for_question(Question("0", "When?", ("1849",), "", "", ("1",)), many, 0)
    shown = [symbols.show(str(year)) for year in range(1800, 1850)]
    assert sorted(name for name in shown if name in SYMBOLS) == sorted(SYMBOLS)
    assert shown[39:49] == [str(year) for year in range(1839, 1849)]
    assert shown[49] in SYMBOLS
    assert [symbols.hide(text) for text in shown] == [str(year) for year in range(1800, 1850)]


def test_mentions_of_a_folder_are_read_once_and_official_data_has_none(tmp_path):
    with pytest.raises(EnvError, match="only generated data has; choose names=shown"):
        load_mentions(tmp_path)
    path = tmp_path / "mentions.json"
    path.write_text(json.dumps({"entities": {"Cold Ford": ["City of Cold Ford"]}, "values": ["1871"]}))
    mentions = load_mentions(tmp_path)
    assert mentions.find("1871 City of Cold Ford") == ("1871", "Cold Ford")
    assert load_mentions(tmp_path) is mentions
    path.write_text('{"entities": 3}')
    with pytest.raises(EnvError, match="generate the data again"):
        load_mentions(tmp_path)
