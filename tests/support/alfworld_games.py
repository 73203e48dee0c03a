"""ALFWorld games for tests: generated, reworded for the native engine, and disturbed."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

from agent_envs.alfworld.generator import generate
from agent_envs.alfworld.layout import GAME_FILE, GAMES_FOLDER

Game = dict[str, Any]

_PROPERTIES = (
    *("cleanable", "heatable", "coolable", "sliceable", "toggleable", "pickupable"),
    *("isClean", "isHot", "isCool", "isSliced", "isToggled", "isReceptacleObject"),
)
_GOALS = (
    "(and (forall (?r - receptacle) (not (opened ?r))) (exists (?o - object ?a - agent) (holds ?a ?o)))",
    "(or (exists (?o - object) (isSliced ?o)) (exists (?o - object) (and (isClean ?o) (isHot ?o))))",
    "(forall (?o - object) (or (not (pickupable ?o)) (exists (?a - agent) (holds ?a ?o)) (isToggled ?o)))",
    "(exists (?a - agent ?l - location ?r - receptacle)"
    " (and (receptacleAtLocation ?r ?l) (opened ?r) (not (atLocation ?a ?l))))",
)


def game_of(data: Path, task_type: str, size: str = "small", seed: int = 0) -> Game:
    """A generated game's file."""
    (task,) = generate(data, "train", 1, seed, size=size, task_types=(task_type,))
    game: Game = json.loads((data / GAMES_FOLDER / task / GAME_FILE).read_text())
    return game


def foreign(game: Game) -> Game:
    """The game with a domain that is not known by its text: one more predicate, which nothing asks for."""
    domain = game["pddl_domain"].replace("(:predicates", "(:predicates (dusty ?o - object)")
    return {**game, "pddl_domain": domain}


def disturbed(game: Game, rng: random.Random) -> Game:
    """The game in a house as no generator furnishes it, sometimes with a goal as no task has it."""
    names, init, goal = re.split(r"(?<=\n)(?=\(:init\n|\(:goal|\s+\(:goal)", game["pddl_problem"], maxsplit=2)
    facts = init.removeprefix("(:init\n").strip().removesuffix(")").strip().split("\n")
    of = {
        kind: [line.split()[0] for line in names.split("\n") if line.endswith(f"- {kind}")]
        for kind in ("object", "receptacle", "location", "otype", "rtype")
    }

    def any_of(kind: str) -> str:
        return rng.choice(of[kind])

    for _ in range(rng.randint(1, 9)):
        change = rng.randrange(6)
        if change == 0:
            facts.remove(rng.choice(facts))
        elif change == 1:
            facts = [re.sub(r"\(atLocation .*", f"(atLocation agent1 {any_of('location')})", fact) for fact in facts]
        elif change == 2:
            facts += [f"(holds agent1 {any_of('object')})", "(holdsAny agent1)"][: rng.randint(1, 2)]
        else:
            facts.append(
                rng.choice(
                    [
                        f"(inReceptacle {any_of('object')} {any_of('receptacle')})",
                        f"(objectAtLocation {any_of('object')} {any_of('location')})",
                        f"(objectType {any_of('object')} KnifeType)",
                        f"({rng.choice(_PROPERTIES)} {any_of('object')})",
                        f"({rng.choice(('openable', 'opened'))} {any_of('receptacle')})",
                        f"(receptacleType {any_of('receptacle')} {any_of('rtype')})",
                        f"(canContain {any_of('rtype')} {any_of('otype')})",
                        f"(receptacleAtLocation {any_of('receptacle')} {any_of('location')})",
                    ]
                )
            )
    if rng.random() < 0.5:
        goal = f"(:goal {rng.choice(_GOALS)})\n)"
    return {**game, "pddl_problem": "\n".join([names + "(:init", *dict.fromkeys(facts), ")", goal])}
