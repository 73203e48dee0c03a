"""Writes solvable ALFWorld games in the layout of the official data, for runs without that data.

Every game is a function of (split, size, task type, seed, its number) alone, so a run that was cut short is taken up
where it stopped, and asking for more games keeps the first ones. Splits are disjoint by construction: ``valid_unseen``
plays in other rooms, and every goal of the other rooms belongs either to ``train`` or to ``valid_seen``.

Domain, grammar, task types, scene numbers and what fits where are ALFWorld's. Other than in the official data,
furniture and objects are drawn at random (a kitchen may have no fridge), no two rooms of a kind have the same
furniture, every piece of it stands at a location of its own, only as many objects of the goal's type are there as the
task needs, none of them starts in its target, and goals are worded by ALFRED's templates only.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path

from agent_envs.alfworld.engine import Engine
from agent_envs.alfworld.house import Goal, House, instances, pddl_problem
from agent_envs.alfworld.layout import GAME_FILE, GAMES_FOLDER, SPLITS, TRAJ_FILE
from agent_envs.alfworld.rooms import LAMP_STANDS, ROOMS, SIZES, TASKS, TaskType, fits, furniture_of, scenes_of
from agent_envs.alfworld.upstream import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH, constants, gdict
from agent_envs.base import EnvError, UnknownTask

__all__ = ["VERSION", "generate"]

_SEEN_SHARE = 5
"""One goal in this many belongs to ``valid_seen``."""
_ATTEMPTS = 20
VERSION = 1
"""Written into every game. Raise it when equal arguments make other games than before."""


def generate(
    root: str | os.PathLike[str],
    split: str,
    count: int,
    seed: int,
    size: str = "small",
    task_types: Sequence[str] = tuple(TASKS),
    *,
    workers: int = 1,
    on_game: Callable[[str], object] | None = None,
) -> list[str]:
    """Write ``count`` games of a split under ``root`` (the environment's ``data_dir``); complete ones are kept.

    The task types take turns. Each game is written only after the engine's planner has solved it and its plan, played
    in the game, has won. The games do not depend on ``workers``.

    Args:
        root: folder to write to; created if need be.
        split: one of ``SPLITS``.
        count: games the split shall have for these arguments, those of earlier runs included.
        seed: any number; other seeds give other games.
        size: one of ``SIZES``.
        task_types: any of ``TASKS``, which take turns.
        workers: processes that write games at the same time. More than one needs the caller's module to be importable
            without side effects, as always with ``multiprocessing``.
        on_game: called with each task id once its game is there, in order.

    Returns:
        The games' task ids, in order of their numbers.

    Raises:
        UnknownTask: a split, size or task type that does not exist.
        EnvError: a count below zero, no worker, or no solvable game found for some number.
    """
    if split not in SPLITS:
        raise UnknownTask(f"ALFWorld has no split {split!r}; choose one of {', '.join(SPLITS)}")
    if size not in SIZES:
        raise UnknownTask(f"there are no houses of size {size!r}; choose one of {', '.join(SIZES)}")
    unknown = [name for name in task_types if name not in TASKS]
    if unknown or not task_types:
        raise UnknownTask(f"no task type {', '.join(unknown) or 'given'}; choose among {', '.join(TASKS)}")
    if count < 0:
        raise EnvError(f"the number of games to generate must not be negative, but is {count}")

    if workers < 1:
        raise EnvError(f"generating games needs at least 1 worker, not {workers}")

    write = partial(_write_game, Path(root).expanduser() / GAMES_FOLDER, split, size, tuple(task_types), seed)
    with ExitStack() as stack:
        if workers == 1:
            written: Iterator[str] = map(write, range(count))
        else:
            # Not forked: a copy of this process's locks and native libraries would be unsafe to use.
            context = multiprocessing.get_context("spawn")
            written = stack.enter_context(ProcessPoolExecutor(workers, context)).map(write, range(count))
        tasks = []
        for task in written:
            tasks.append(task)
            if on_game is not None:
                on_game(task)
    return tasks


def _write_game(base: Path, split: str, size: str, task_types: Sequence[str], seed: int, number: int) -> str:
    task_type = task_types[number % len(task_types)]
    for attempt in range(_ATTEMPTS):
        rng = random.Random(f"{split}/{size}/{task_type}/{seed}/{number}/{attempt}")
        house = _draw_house(rng, split, size, task_type)
        task = f"{split}/{house.goal.folder}/trial_{size}_s{seed}_{number:05d}"
        folder = base / task
        # The game file is written last and in one go: where it is, the game is complete.
        if (folder / GAME_FILE).is_file():
            return task
        wording = rng.choice(gdict[task_type]["templates"]).format(
            obj=house.goal.item.lower(), recep=house.goal.receptacle.lower(), toggle=house.goal.lamp.lower()
        )
        game = _game(house, wording)
        game["walkthrough"] = _solution(game)
        if game["walkthrough"]:
            game["solvable"] = True
            folder.mkdir(parents=True, exist_ok=True)
            _write_json(folder / TRAJ_FILE, _traj_data(house.goal, folder.name, wording))
            _write_json(folder / GAME_FILE, game)
            return task
    raise EnvError(f"no solvable {task_type} game number {number} for seed {seed}; choose another seed")


def _solution(game: dict[str, object]) -> list[str]:
    """Commands that win the game; empty when there are none."""
    engine = Engine()
    try:
        engine.load(game)
        engine.reset()
        plan = engine.plan()
        won = [engine.step(command).won for command in plan]
        return plan if won and won[-1] else []
    finally:
        engine.close()


def _draw_house(rng: random.Random, split: str, size: str, task_type: str) -> House:
    task = TASKS[task_type]
    goals = _goals(split, size, task_type)
    # Room, then place, then object, each evenly: otherwise a few roomy places would make up most goals.
    in_scene = goals[rng.choice(sorted(goals))]
    receptacle = rng.choice(sorted({goal.receptacle for goal in in_scene}))
    goal = rng.choice([goal for goal in in_scene if goal.receptacle == receptacle])

    furniture = instances(furniture_of(size)[goal.scene])
    kinds = sorted(set(furniture.values()))
    bystanders = [
        kind
        for kind in ROOMS[goal.room].objects
        if kind != goal.item and any(fits(kind, receptacle) for receptacle in kinds)
    ]
    chosen = rng.sample(bystanders * SIZES[size].copies, SIZES[size].objects - task.amount)
    objects = instances([goal.item] * task.amount + chosen + [goal.lamp] * bool(goal.lamp))
    places = {}
    for name, kind in objects.items():
        # A target that started where it belongs would leave less to do than the task says.
        shut_out = goal.receptacle if kind == goal.item else ""
        places[name] = rng.choice([f for f, of in furniture.items() if of != shut_out and _may_start(kind, of, goal)])
    return House(goal=goal, furniture=furniture, objects=objects, places=places)


def _may_start(kind: str, receptacle: str, goal: Goal) -> bool:
    return receptacle in LAMP_STANDS if kind == goal.lamp else fits(kind, receptacle)


@cache
def _goals(split: str, size: str, task_type: str) -> dict[int, list[Goal]]:
    """Scene number -> the goals of a split that its room allows; scenes without any are left out."""
    task = TASKS[task_type]
    goals: dict[int, list[Goal]] = {}
    for room, scene in scenes_of(split):
        for goal in _goals_of_scene(room, scene, furniture_of(size)[scene], task_type, task):
            if split == "valid_unseen" or (split == "valid_seen") == _held_out(goal):
                goals.setdefault(scene, []).append(goal)
    return goals


def _goals_of_scene(room: str, scene: int, furniture: Sequence[str], task_type: str, task: TaskType) -> list[Goal]:
    kinds = sorted(set(furniture))
    if task.station and task.station not in kinds:
        return []
    items = [
        kind for kind in ROOMS[room].objects if not task.property or kind in constants.VAL_ACTION_OBJECTS[task.property]
    ]
    if task.lamp:
        if not any(stand in kinds for stand in LAMP_STANDS):
            return []
        return [
            Goal(task_type, room, scene, item, lamp=task.lamp)
            for item in items
            if any(fits(item, receptacle) for receptacle in kinds)
        ]
    return [
        Goal(task_type, room, scene, item, receptacle=target)
        for target in kinds
        for item in items
        if target != task.station
        and fits(item, target)
        and any(fits(item, start) for start in kinds if start != target)
    ]


def _held_out(goal: Goal) -> bool:
    return int.from_bytes(hashlib.sha256(goal.folder.encode()).digest()[:8]) % _SEEN_SHARE == 0


def _game(house: House, wording: str) -> dict[str, object]:
    grammar = Path(ALFRED_TWL2_PATH).read_text(encoding="utf-8")
    return {
        "pddl_domain": Path(ALFRED_PDDL_PATH).read_text(encoding="utf-8"),
        "grammar": grammar.replace("UNKNOWN GOAL", wording),
        "pddl_problem": pddl_problem(house),
        "solvable": False,
        "walkthrough": [],
    }


def _traj_data(goal: Goal, trial: str, wording: str) -> dict[str, object]:
    return {
        "generator": {"version": VERSION},
        "task_id": trial,
        "task_type": goal.task_type,
        "pddl_params": {
            "mrecep_target": "",
            "object_sliced": False,
            "object_target": goal.item,
            "parent_target": goal.receptacle,
            "toggle_target": goal.lamp,
        },
        "scene": {"floor_plan": f"FloorPlan{goal.scene}", "scene_num": goal.scene},
        "turk_annotations": {"anns": [{"task_desc": wording}]},
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    # Two processes may generate the same game at once: each writes its own file, and the last rename wins.
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.replace(path)
