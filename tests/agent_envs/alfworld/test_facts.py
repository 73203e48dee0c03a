"""ALFWorld: questions about facts are answered as textworld's own state answers them, in the same order."""

from __future__ import annotations

import pytest

pytest.importorskip("textworld")

from hypothesis import given, settings
from hypothesis import strategies as st
from textworld.logic import GameLogic, Proposition, Rule, State, Type, Variable

from agent_envs.alfworld.facts import Facts, Query, negated

# As in ALFRED: "object" is the root of all types and the type of what can be carried.
KINDS = {"object": [], "place": ["object"], "agent": ["object"]}
THINGS = [("ann", "agent"), ("mug", "object"), ("pan", "object"), ("desk", "place"), ("shelf", "place")]
PLACEHOLDERS = ["a: agent", "o: object", "p: object", "r: place", "s: place"]

things = st.sampled_from(THINGS)
facts = st.lists(st.tuples(st.sampled_from(["in", "on", "not_in"]), st.tuples(things, things)), max_size=25)
predicates = st.tuples(
    st.sampled_from(["in", "on", "not_in"]), st.sampled_from(PLACEHOLDERS), st.sampled_from(PLACEHOLDERS)
)
questions = st.lists(predicates, min_size=1, max_size=3)


def logic() -> GameLogic:
    rules = GameLogic()
    for name, parents in KINDS.items():
        rules.types.add(Type(name, parents))
    return rules


def fact(name, arguments):
    return (name, tuple(kind for _, kind in arguments)), arguments


@settings(max_examples=150, deadline=None)
@given(facts=facts, question=questions, agent_known=st.booleans())
def test_queries_equal_textworlds(facts, question, agent_known):
    rules = logic()
    expression = " & ".join(f"{name}({first}, {second})" for name, first, second in question)
    rule = Rule.parse_conjunctive_query(expression)
    state = State(rules, [Proposition(name, [Variable(*thing) for thing in pair]) for name, pair in facts])
    known = {placeholder: Variable("ann", "agent") for placeholder in rule.placeholders if placeholder.name == "a"}
    expected = state.all_assignments(rule, known if agent_known else {})

    asked = {("a", "agent"): ("ann", "agent")} if agent_known and known else {}
    answers = Query(rule.preconditions, rules.types).answers(Facts(fact(*entry) for entry in facts), asked)
    assert list(answers) == [{(p.name, p.type): (v.name, v.type) for p, v in found.items()} for found in expected]


@given(entry=st.tuples(st.sampled_from(["in", "not_in"]), st.tuples(things, things)))
def test_negation_is_textworlds_and_its_own_inverse(entry):
    name, arguments = entry
    opposite = Proposition(name, [Variable(*thing) for thing in arguments]).negate()
    assert negated(fact(name, arguments)) == fact(opposite.name, arguments)
    assert negated(negated(fact(name, arguments))) == fact(name, arguments)


@given(first=facts, second=facts)
def test_a_copy_lives_its_own_life(first, second):
    original = Facts(fact(*entry) for entry in first)
    twin = original.copy()
    for entry in second:
        twin.discard(fact(*entry))
    assert set(original) == {fact(*entry) for entry in first}
    assert set(twin) == set(original) - {fact(*entry) for entry in second}
