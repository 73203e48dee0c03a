"""Where ALFWorld keeps its games on disk, and what a game's folder name says.

A game is a folder ``<data>/json_2.1.1/<split>/<task type>-<object>-<movable>-<receptacle>-<scene>/<trial>/`` with the
files ``game.tw-pddl`` (JSON: domain, grammar, problem, walkthrough, solvable) and ``traj_data.json``.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import MappingProxyType

from agent_envs.base import EnvError, UnknownTask

__all__ = [
    "CATEGORIES",
    "GAMES_FOLDER",
    "GAME_FILE",
    "OFFICIAL_COUNTS",
    "SPLITS",
    "TRAJ_FILE",
    "count_halves",
    "games_root",
    "is_official",
    "list_games",
    "task_type_of",
]

SPLITS = ("train", "valid_seen", "valid_unseen")
GAMES_FOLDER = "json_2.1.1"
GAME_FILE = "game.tw-pddl"
TRAJ_FILE = "traj_data.json"

CATEGORIES = MappingProxyType(
    {
        "pick_and_place_simple": "Pick",
        "look_at_obj_in_light": "Look",
        "pick_clean_then_place_in_recep": "Clean",
        "pick_heat_then_place_in_recep": "Heat",
        "pick_cool_then_place_in_recep": "Cool",
        "pick_two_obj_and_place": "Pick2",
    }
)
"""Task type -> the name papers report it under."""

OFFICIAL_COUNTS = MappingProxyType(
    {
        "train": {"Pick": 790, "Look": 308, "Clean": 650, "Heat": 459, "Cool": 533, "Pick2": 813},
        "valid_seen": {"Pick": 35, "Look": 13, "Clean": 27, "Heat": 16, "Cool": 25, "Pick2": 24},
        "valid_unseen": {"Pick": 24, "Look": 18, "Clean": 31, "Heat": 23, "Cool": 21, "Pick2": 17},
    }
)
"""Split -> category -> games of the official data (ALFWorld, arXiv 2010.03768, table 1): 3,553, 140 and 134 in all."""

_OFFICIAL_TRIAL = re.compile(r"/trial_T\d{8}_")
_SOLVABLE = re.compile(r'"solvable"\s*:\s*true')


def games_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the splits in a data folder (default: ``ALFWORLD_DATA``, else ``~/.cache/alfworld``).

    Raises:
        EnvError: the folder does not exist.
    """
    data = Path(data_dir or os.environ.get("ALFWORLD_DATA") or "~/.cache/alfworld").expanduser()
    root = data / GAMES_FOLDER
    if not root.is_dir():
        raise EnvError(
            f"no ALFWorld games under {root}: make some with `gagpo env generate alfworld`, fetch the official ones "
            "with `alfworld-download`, or point data_dir (or ALFWORLD_DATA) at a folder that has them"
        )
    return root


def task_type_of(task: str) -> str:
    """Return the task type of a task id ``<split>/<goal folder>/<trial>``; "" for an id of another form."""
    parts = task.split("/")
    return parts[1].split("-", 1)[0] if len(parts) == 3 else ""


def list_games(root: Path, split: str) -> tuple[str, ...]:
    """Return the sorted task ids of a split: its complete, solvable games, as the stock environment selects them.

    Goals with a movable receptacle or a sliced object are left out (the text engine does not support them).

    Raises:
        UnknownTask: ``split`` is none of ``SPLITS``.
        EnvError: the data folder has no such split, or no game of it is complete.
    """
    if split not in SPLITS:
        raise UnknownTask(f"ALFWorld has no split {split!r}; choose one of {', '.join(SPLITS)}")
    if not (root / split).is_dir():
        raise EnvError(f"no games of split {split!r} under {root}: make some with `gagpo env generate alfworld`")
    tasks = []
    for game in (root / split).glob(f"*/*/{GAME_FILE}"):
        task = game.parent.relative_to(root).as_posix()
        # The flag is searched for and not parsed, because the official games are large. A quote inside a JSON string is
        # always escaped, so the search cannot match there.
        if (
            _supported(task)
            and game.with_name(TRAJ_FILE).is_file()
            and _SOLVABLE.search(game.read_text(encoding="utf-8"))
        ):
            tasks.append(task)
    if not tasks and (halves := count_halves(root, split)):
        raise EnvError(
            f"{halves} games of split {split!r} under {root} have {TRAJ_FILE} but no {GAME_FILE}: fetch the rest with "
            "`alfworld-download`"
        )
    return tuple(sorted(tasks))


def count_halves(root: Path, split: str) -> int:
    """Count the games of a split that an unfinished download left without their game file."""
    trials = (path.parent for path in (root / split).glob(f"*/*/{TRAJ_FILE}"))
    return sum(_supported(trial.relative_to(root).as_posix()) and not (trial / GAME_FILE).is_file() for trial in trials)


def is_official(task: str) -> bool:
    """Return whether a task id has the form of official ones, which name the time of the recorded demonstration."""
    return _OFFICIAL_TRIAL.search(task) is not None


def _supported(task: str) -> bool:
    return task_type_of(task) in CATEGORIES and "movable" not in task and "Sliced" not in task
