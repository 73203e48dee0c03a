"""Which games go by the rules written out, and how goals are read for them."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("alfworld")

from agent_envs.alfworld.facts import Facts, fact_of
from agent_envs.alfworld.goals import Goal
from agent_envs.alfworld.known import read_known
from agent_envs.alfworld.rules import SIGNATURES
from agent_envs.alfworld.upstream import parse_domain_pddl, parse_nested_list, parse_task_pddl
from support.alfworld_games import foreign, game_of


@pytest.fixture(scope="module")
def game(tmp_path_factory):
    return game_of(tmp_path_factory.mktemp("alfworld"), "pick_clean_then_place_in_recep")


def known(game, problem=None, domain=None):
    return read_known(domain or game["pddl_domain"], problem or game["pddl_problem"])


def with_goal(game, goal) -> str:
    return game["pddl_problem"].partition("(:goal")[0] + f"(:goal {goal}))"


def test_comments_blanks_and_case_do_not_make_another_domain(game):
    assert known(game) is not None
    stripped = re.sub(r";.*", "", game["pddl_domain"])
    assert known(game, domain=stripped.upper().replace("\n", " \t\n\n")) is not None
    assert known(game, domain=foreign(game)["pddl_domain"]) is None
    assert known(game, domain="(define") is None


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        pytest.param(r"$", ")", id="no PDDL"),
        pytest.param(r"\(:init", "(:nonsense", id="no beginning"),
        pytest.param(r"domain alfred", "domain other", id="another domain's problem"),
        pytest.param(r"agent1 - agent", "agent1 - agent agent2 - agent", id="two agents"),
        pytest.param(r"agent1 - agent", "agent1 - agent agent1 - agent", id="a name used twice"),
        pytest.param(r"\(atLocation", "(atLocation agent1 loc_bar_01) (atLocation", id="two places at once"),
        pytest.param(r"\(atLocation[^)]*\)", "", id="nowhere"),
        pytest.param(r"\(:init", "(:init (openable agent1)", id="a fact of another type"),
        pytest.param(r"\(:init", "(:init (openable nothing)", id="a fact of nothing"),
        pytest.param(r"\(:init", "(:init (dusty agent1)", id="an unknown predicate"),
        pytest.param(r"\(pickupable[^)]*\)", "", id="a goal out of reach"),
    ],
)
def test_what_the_rules_do_not_foresee_is_left_to_the_native_engine(game, pattern, replacement):
    changed = re.sub(pattern, replacement, game["pddl_problem"].rstrip())
    assert changed != game["pddl_problem"].rstrip()
    assert known(game, changed) is None


@pytest.mark.parametrize(
    "goal",
    [
        "(and)",
        "(openable agent1)",
        "(exists (?o - object) (isOn ?o))",
        "(checked agent1)",
        "(exists (?o - ghost) (isClean ?o))",
        "(isClean nothing)",
        "(exists (?o - object) (objectType ?o NothingType))",
    ],
)
def test_goals_that_are_not_followed_are_left_to_the_native_engine(game, goal):
    assert known(game, with_goal(game, goal)) is None


def goal_of(game, goal) -> Goal:
    domain = parse_domain_pddl(parse_nested_list(game["pddl_domain"].split("\n")))
    _, _, _, types, _, _, predicates, *_ = domain
    _, _, _, _, _, condition, _ = parse_task_pddl(
        parse_nested_list(with_goal(game, goal).split("\n")), types, predicates
    )
    description = known(game).description
    return Goal(condition, description.things(), description.kinds(), SIGNATURES)


@pytest.mark.parametrize(
    ("goal", "reached"),
    [
        ("(isClean {a})", True),
        ("(isClean {c})", False),
        ("(not (isClean {c}))", True),
        ("(and (isClean {a}) (isHot {a}))", False),
        ("(or (isHot {a}) (isHot {b}))", True),
        ("(or (isHot {a}) (and (isHot {b}) (isCool {b})))", False),
        ("(imply (isHot {a}) (isCool {a}))", True),
        ("(imply (isHot {b}) (isCool {b}))", False),
        ("(exists (?x - object) (and (isClean ?x) (isHot ?x)))", True),
        ("(exists (?x - object) (and (isHot ?x) (not (isClean ?x))))", False),
        ("(exists (?x - object ?y - object) (and (isClean ?x) (isClean ?y) (not (= ?x ?y))))", True),
        ("(exists (?x - object ?y - object) (and (isHot ?x) (isHot ?y) (not (= ?x ?y))))", False),
        ("(exists (?x - object ?y - object) (and (isHot ?x) (isClean ?y) (= ?x ?y)))", True),
        ("(exists (?x - object) (exists (?a - agent) (and (holds ?a ?x) (not (isClean ?x)))))", True),
        ("(exists (?x - object) (not (isClean ?x)))", True),
        ("(exists (?r - receptacle) (and (isHot {b}) (not (opened ?r))))", True),
        ("(exists (?x - agent) (isClean ?x))", False),
        ("(forall (?x - object) (isClean ?x))", False),
        ("(forall (?r - receptacle) (not (opened ?r)))", True),
        ("(forall (?x - object) (or (not (isHot ?x)) (isClean ?x)))", True),
        ("(forall (?x - object) (imply (isClean ?x) (isHot ?x)))", False),
        ("(not (exists (?x - object) (and (isHot ?x) (isCool ?x))))", True),
    ],
)
def test_goals_of_every_form_are_checked(game, goal, reached):
    things = known(game).description.things()
    objects = sorted(name for name, kind in things.values() if kind == "object")
    names = dict(zip("abc", objects, strict=False))
    facts = Facts(
        fact_of(things, predicate, arguments)
        for predicate, *arguments in (
            ("isclean", names["a"]),
            ("isclean", names["b"]),
            ("ishot", names["b"]),
            ("holds", "agent1", names["c"]),
        )
    )
    assert goal_of(game, goal.format(**names)).reached(facts) is reached
