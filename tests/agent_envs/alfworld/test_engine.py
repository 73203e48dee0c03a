"""ALFWorld's engine against the stock one: random walks, expert plans, both grammars; caches that hold and let go.

Games of the known domain go by the rules written out; with a domain of another text, the native engine plays them.
"""

from __future__ import annotations

import gc
import random
import re
import resource
import subprocess
import sys

import pytest

pytest.importorskip("alfworld")

from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld import EnvInfos
from textworld.envs.pddl import PddlEnv

from agent_envs.alfworld import AlfworldEnv
from agent_envs.alfworld.engine import Engine, View
from agent_envs.alfworld.game import _game
from agent_envs.alfworld.generator import generate
from agent_envs.alfworld.rooms import SIZES, TASKS
from agent_envs.base import EnvError
from support.alfworld_games import disturbed, foreign, game_of


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("alfworld")


@pytest.fixture(scope="module")
def stock():
    return AlfredDemangler(PddlEnv(EnvInfos(won=True, admissible_commands=True)), shuffle=False)


@pytest.fixture
def engine():
    engine = Engine()
    yield engine
    engine.close()


def older(game) -> dict:
    """The game with the wording of the first releases of ALFWorld's data."""
    grammar = game["grammar"].replace('"move {o} to {r}"', '"put {o} in/on {r}"')
    grammar = grammar.replace("You move the {o.name} to the {r.name}.", "You put the {o.name} in/on the {r.name}.")
    return {**game, "grammar": grammar}


def same(ours, theirs) -> bool:
    offered = [command for command in theirs["admissible_commands"] if command != "help"]
    return (ours.observation, list(ours.commands), ours.won) == (theirs["feedback"], offered, theirs["won"])


def load(game, *engines) -> None:
    for engine in engines:
        engine.load(game)


def follow(engine, stock, choose, length) -> None:
    """Play both engines from the start of their game with the commands that ``choose`` names; compare every state."""
    ours, theirs = engine.reset(), stock.reset()
    assert same(ours, theirs)
    for _ in range(length):
        command = choose(ours)
        ours, (theirs, _, done) = engine.step(command), stock.step(command)
        assert same(ours, theirs), command
        if done:
            break


def wanderer(seed):
    rng = random.Random(seed)
    return lambda view: rng.choice([*view.commands, *(c for c in view.commands if "go to" not in c), "help", "sing"])


# Ten games; the benchmark's --check plays more.
GAMES = [
    *((task_type, "small") for task_type in TASKS),
    ("pick_heat_then_place_in_recep", "medium"),
    ("pick_two_obj_and_place", "medium"),
    ("look_at_obj_in_light", "medium"),
    ("pick_cool_then_place_in_recep", "real"),
]


@pytest.mark.parametrize(("task_type", "size"), GAMES)
def test_random_walks_and_plans_equal_the_stock_engine(data, engine, stock, task_type, size):
    game = game_of(data, task_type, size)
    load(game, engine, stock)
    follow(engine, stock, wanderer(1), 12 if size == "real" else 25)
    plan = iter(game["walkthrough"])
    follow(engine, stock, lambda view: next(plan), len(game["walkthrough"]))
    assert engine.step("look").won
    assert not engine.by_native_engine


@pytest.mark.parametrize("task_type", TASKS)
def test_a_domain_that_is_not_known_is_played_as_the_stock_engine_plays_it(data, engine, stock, task_type):
    game = foreign(game_of(data, task_type))
    load(game, engine, stock)
    follow(engine, stock, wanderer(2), 12)
    plan = iter(game["walkthrough"])
    follow(engine, stock, lambda view: next(plan), len(game["walkthrough"]))
    assert engine.step("look").won
    assert engine.by_native_engine


def start_of(engine, game) -> View | str:
    try:
        engine.load(game)
        return engine.reset()
    except EnvError as error:
        return str(error)


def test_odd_houses_are_played_by_the_rules_as_by_the_native_engine(data, engine):
    native = Engine()
    played = 0
    for seed in range(30):
        rng = random.Random(seed)
        game = disturbed(game_of(data, rng.choice([*TASKS])), rng)
        ours, theirs = start_of(engine, game), start_of(native, foreign(game))
        assert ours == theirs, seed
        if isinstance(ours, str) or engine.by_native_engine:
            continue
        played += 1
        for _ in range(40):
            acts = [command for command in ours.commands if "go to" not in command]
            command = rng.choice([*ours.commands, *acts, *acts, "help", "sing"])
            ours, theirs = engine.step(command), native.step(command)
            assert ours == theirs, (seed, command)
            assert set(engine._play.facts) == set(native._play.facts), (seed, command)
    native.close()
    assert played > 15


def test_the_real_size_is_as_large_as_it_says(data, engine):
    game = game_of(data, "pick_heat_then_place_in_recep", "real")
    engine.load(game)
    shape = SIZES["real"]
    assert len([command for command in engine.reset().commands if command.startswith("go to")]) == shape.receptacles
    assert len(re.findall(r"^\(objectType ", game["pddl_problem"], re.MULTILINE)) == shape.objects


def test_the_older_wording_is_played_as_the_stock_engine_plays_it(data, engine, stock):
    game = older(game_of(data, "pick_clean_then_place_in_recep"))
    engine.load(game)
    engine.reset()
    plan = engine.plan()
    assert re.fullmatch(r"put .* \d+ in/on .* \d+", plan[-1])
    commands = iter(plan)
    stock.load(game)
    follow(engine, stock, lambda view: next(commands), len(plan))
    assert engine.step("inventory").won
    follow(engine, stock, wanderer(3), 15)


def test_a_command_that_depends_on_the_state_is_told_anew(data, engine, stock):
    game = game_of(data, "pick_and_place_simple")
    odd = game["grammar"].replace(
        'template :: "inventory"', 'template :: "inventory of [{o.name | holds(a:agent, o:object)}]"'
    )
    load({**game, "grammar": odd}, engine, stock)
    follow(engine, stock, wanderer(4), 40)
    plan = iter(game["walkthrough"])
    follow(engine, stock, lambda view: next(plan), len(game["walkthrough"]) - 1)
    assert any(
        command.startswith("inventory of ") and "nothing" not in command for command in engine.step("x").commands
    )


@pytest.mark.parametrize("goal", ["put it: in a cart (quickly)", "UNKNOWN GOAL", "put a mug in shelf", "let's go"])
def test_goals_of_any_wording_reach_the_first_observation(data, engine, stock, goal):
    game = game_of(data, "pick_and_place_simple")
    grammar = re.sub(r"(?<=Your task is to: )[^\"]*(?=\.\")", goal, game["grammar"])
    load({**game, "grammar": grammar}, engine, stock)
    follow(engine, stock, wanderer(6), 1)
    assert f"Your task is to: {goal}." in engine.reset().observation


@pytest.mark.parametrize("task_type", TASKS)
def test_plans_win_from_wherever_the_episode_stands(data, engine, task_type):
    engine.load(game_of(data, task_type, "real"))
    for seed in range(3):
        view = engine.reset()
        choose = wanderer(seed)
        for _ in range(20):
            view = engine.step(choose(view))
        if view.won:
            continue
        for command in engine.plan():
            assert not view.won
            assert command in view.commands
            view = engine.step(command)
        assert view.won


def test_what_is_carried_along_can_be_put_down_for_the_goal(data, engine):
    game = game_of(data, "pick_and_place_simple", "medium")
    engine.load(game)
    target = game["walkthrough"][-1].split()[1]
    view = engine.reset()
    choose = wanderer(5)
    for _ in range(200):
        takes = [c for c in view.commands if c.startswith("take ") and c.split()[1] != target]
        view = engine.step(takes[0] if takes else choose(view))
        if takes:
            break
    assert not engine.place().endswith("holding nothing")
    wins = [engine.step(command).won for command in engine.plan()]
    assert wins[-1]


def test_engines_of_one_process_share_a_game_but_not_its_state(data, engine):
    game = game_of(data, "pick_and_place_simple")
    other = Engine()
    before = _game.cache_info().misses
    engine.load(game)
    other.load(dict(game))
    assert _game.cache_info().misses <= before + 1
    start = engine.reset()
    assert other.reset() == start
    for command in game["walkthrough"]:
        engine.step(command)
    assert other.step("sing").commands == start.commands
    assert [other.step(command).won for command in game["walkthrough"]][-1]
    other.close()


def test_closed_engines_hand_their_library_on(data):
    game = foreign(game_of(data, "pick_and_place_simple"))
    first = Engine()
    first.load(game)
    expected = first.reset()
    library = first._library
    assert library is not None
    first.close()
    first.close()
    second = Engine()
    second.load(game)
    assert second.reset() == expected
    assert second._library is library
    second.close()
    with pytest.raises(EnvError, match="call load first"):
        second.step("look")


def test_only_the_expert_needs_the_native_library(data, engine, monkeypatch):
    game = game_of(data, "pick_and_place_simple")
    with monkeypatch.context() as patch:
        patch.setattr("fast_downward.pddl2sas", None)
        patch.setattr("fast_downward.load_lib", None)
        patch.setattr("agent_envs.alfworld.engine._idle_libraries", [])
        _game.cache_clear()
        engine.load(game)
        assert engine.reset().commands
        assert [engine.step(command).won for command in game["walkthrough"]][-1]
        engine.reset()
    assert engine.plan() == game["walkthrough"]


def test_the_whole_house_is_planned_in_when_its_essential_part_does_not_suffice(data, engine, monkeypatch):
    for game in (game_of(data, "pick_and_place_simple"), foreign(game_of(data, "pick_and_place_simple"))):
        engine.load(game)
        view = engine.reset()
        view = engine.step(next(command for command in view.commands if command.startswith("go to")))
        with monkeypatch.context() as patch:
            hopeless = game["pddl_problem"].replace("(inReceptacle", "(wasInReceptacle")
            patch.setattr("agent_envs.alfworld.game.essential_problem", lambda *_, hopeless=hopeless: hopeless)
            plan = engine.plan()
        assert [engine.step(command).won for command in plan][-1]


def resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_thousand_resets_leak_nothing(data, engine):
    game = game_of(data, "pick_and_place_simple")
    engine.load(game)

    def play(episodes):
        for _ in range(episodes):
            engine.reset()
            for command in game["walkthrough"]:
                engine.step(command)
        gc.collect()

    play(100)
    before = resident_mb()
    play(1000)
    assert resident_mb() - before < 3


def test_the_situation_tells_places_and_loads_apart(data):
    (task,) = generate(data, "train", 1, 0)
    plain, full = AlfworldEnv(data, state_key="observation"), AlfworldEnv(data, state_key="situation")
    keys: dict[str, set[str]] = {"plain": set(), "full": set()}
    for env, name in ((plain, "plain"), (full, "full")):
        start = env.reset(task, 0)
        assert start.state_key.startswith(start.observation)
        assert ("at no furniture, holding nothing" in start.state_key) == (name == "full")
        expert = env.expert()
        while not (result := env.step("dance")).truncated:
            keys[name].add(result.state_key)
            if env.step(expert()).terminated:
                break
        env.close()
    assert keys["plain"] == {"Nothing happens."}
    assert len(keys["full"]) > 2
    with pytest.raises(EnvError, match="observation or situation, not 'place'"):
        AlfworldEnv(data, state_key="place")


_PRELOAD = """
import sys
from agent_envs.alfworld import AlfworldEnv
from agent_envs import registry
registry.get("alfworld").preload(data_dir="nowhere", max_steps=3)
from agent_envs.alfworld import engine, wording
assert wording._parsed.cache_info().currsize == 1
assert not engine._idle_libraries
env = AlfworldEnv(sys.argv[1])
env.reset(env.tasks("train")[0], 0)
assert wording._parsed.cache_info().currsize == 1, "the game's grammar was parsed again"
"""


def test_preloading_serves_the_games_that_follow(data):
    generate(data, "train", 1, 0)
    done = subprocess.run([sys.executable, "-c", _PRELOAD, str(data)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
