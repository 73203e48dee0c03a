"""ALFWorld as a ``TextEnv``: reward only on success, as verl-agent and the GAGPO paper (arXiv 2605.13217) play it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from agent_envs.alfworld.data import GENERATOR, compare_with_official, find_games
from agent_envs.alfworld.datarecord import DataRecord
from agent_envs.alfworld.layout import CATEGORIES, GAME_FILE, SPLITS, games_root, list_games, task_type_of
from agent_envs.alfworld.prompt import ALFWORLD_PROMPT
from agent_envs.base import Expert, Recording, Reset, StepResult, TextEnv
from agent_envs.declarations import Needs
from agent_envs.errors import EnvError, UnknownTask
from agent_envs.registry import register

if TYPE_CHECKING:
    from agent_envs.alfworld.engine import Engine, View

__all__ = ["STATE_KEYS", "AlfworldEnv"]

STATE_KEYS = ("observation", "situation")

_TASK_MARK = "Your task is to:"


@register("alfworld")
class AlfworldEnv(TextEnv):
    """Household tasks in text.

    Task ids are the games' folders relative to ``<data_dir>/json_2.1.1``. An action counts as admissible when it is
    among the admissible actions of the state it was taken in; ``help`` never is. Letter case and surrounding blanks of
    an action do not matter. Instances of one process share what they know of a game (its rules and texts).

    Args:
        data_dir: folder that holds ``json_2.1.1``; default the variable ``ALFWORLD_DATA``, else ``~/.cache/alfworld``.
        max_steps: steps after which an episode is truncated.
        success_reward: reward of the step that completes the task; every other step has 0.
        state_key: ``observation``, the paper's choice: the observation text (at the start the whole raw text), so that
            "Nothing happens." is one state wherever it is read; or ``situation``: the observation with the agent's
            place and what it carries, which tells such states apart.
        cache_dir: where translations of games of other domains than ALFRED's are kept; default ``gagpo/alfworld`` in
            the user's cache folder. Games of ALFRED's domain, all official and generated ones, need none.

    Raises:
        EnvError: no games there, or an option out of range.
    """

    splits = SPLITS
    prompt = ALFWORLD_PROMPT
    can_snapshot = True
    needs = Needs(("alfworld", "textworld"), extra="alfworld")
    generator = GENERATOR

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        max_steps: int = 50,
        success_reward: float = 10.0,
        state_key: str = "observation",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if max_steps < 1:
            raise EnvError(f"max_steps of the ALFWorld environment must be at least 1, not {max_steps}")
        if state_key not in STATE_KEYS:
            raise EnvError(
                f"state_key of the ALFWorld environment must be {' or '.join(STATE_KEYS)}, not {state_key!r}"
            )
        self.max_steps = max_steps
        self._success_reward = success_reward
        self._state_key = state_key
        self._cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self._root = games_root(data_dir)
        self._tasks: dict[str, tuple[str, ...]] = {}
        self.record = DataRecord(self._root, self.tasks)
        self._engine: Engine | None = None
        self._loaded: str | None = None
        self._view: View | None = None
        self._plan: list[str] = []
        self._steps = 0
        self._running = False
        self._recording: Recording | None = None

    @classmethod
    def find_data(cls, **options: Any) -> Iterable[str]:
        return find_games(options.get("data_dir"))

    @classmethod
    def preload(cls, **options: Any) -> None:
        """Import the engine and parse the shipped grammar, for a process that worker processes are forked from.

        Games are not loaded: the library that plays them belongs to one process. Raises ``EnvError`` if ALFWorld is not
        installed.
        """
        _engine_module().warm_up()

    def tasks(self, split: str) -> Sequence[str]:
        if split not in self._tasks:
            self._tasks[split] = list_games(self._root, split)
        return self._tasks[split]

    def reset(self, task: str, seed: int) -> Reset:
        """Start ``task``; nothing in an ALFWorld game is random, so ``seed`` has no effect."""
        self._running = False
        engine = self._ready_engine()
        if task != self._loaded:
            self._load(engine, task)
        self._view = engine.reset()
        if not self._view.commands:
            raise EnvError(
                f"no action is possible in the ALFWorld game {task}, as in every game whose goal cannot be reached or "
                "that has no agent; generate or download it again"
            )
        self._plan = []
        self._steps = 0
        self._recording = Recording(task, seed)
        self._running = True
        observation = self._view.observation
        return Reset(
            observation=observation,
            state_key=self._key(engine, observation),
            task=observation.partition(_TASK_MARK)[2].strip().removesuffix("."),
            admissible_actions=self._view.commands,
            category=CATEGORIES[task_type_of(task)],
        )

    def step(self, action: str) -> StepResult:
        if not self._running or self._engine is None or self._view is None:
            raise EnvError("step needs a running ALFWorld episode; call reset first")
        command = action.strip().lower()
        admissible = command in self._view.commands
        self._steps += 1
        # Left False if the engine fails: its state is then unknown.
        self._running = False
        self._view = self._engine.step(command)
        if self._recording is not None:
            self._recording = self._recording.then(command)
        if self._plan and command == self._plan[0]:
            del self._plan[0]
        elif admissible:
            self._plan = []
        won = self._view.won
        truncated = not won and self._steps >= self.max_steps
        self._running = not won and not truncated
        return StepResult(
            observation=self._view.observation,
            state_key=self._key(self._engine, self._view.observation),
            reward=self._success_reward if won else 0.0,
            terminated=won,
            truncated=truncated,
            admissible=admissible,
            success=won,
            score=float(won),
            admissible_actions=self._view.commands,
        )

    def expert(self) -> Expert:
        """The engine's planner; it plans when first asked and again after an admissible action off its plan."""
        return self._expert_action

    def snapshot(self) -> object:
        """Return the way to the state, which is shorter than a house and takes milliseconds to go again."""
        if not self._running or self._recording is None:
            raise EnvError("snapshot needs a running ALFWorld episode; call reset first")
        return self._recording

    def restore(self, state: object) -> None:
        if not isinstance(state, Recording):
            raise EnvError("this is not a snapshot of an ALFWorld game; take one with snapshot")
        state.play(self)

    def describe_tasks(self, tasks: Mapping[str, Sequence[str]]) -> Iterable[str]:
        return compare_with_official(self._root, tasks)

    def close(self) -> None:
        self._running = False
        if self._engine is not None:
            self._engine.close()
            self._engine = None
            self._loaded = None

    def _expert_action(self) -> str:
        if not self._running or self._engine is None:
            raise EnvError("the ALFWorld expert needs a running episode; call reset first")
        if not self._plan:
            self._plan = self._engine.plan()
        if not self._plan:
            raise EnvError(f"the planner finds no way to finish {self._loaded} from here")
        return self._plan[0]

    def _key(self, engine: Engine, observation: str) -> str:
        return observation if self._state_key == "observation" else f"{observation}\n({engine.place()})"

    def _ready_engine(self) -> Engine:
        if self._engine is None:
            self._engine = _engine_module().Engine()
        return self._engine

    def _load(self, engine: Engine, task: str) -> None:
        parts = task.split("/")
        path = self._root / task / GAME_FILE
        known = task_type_of(task) in CATEGORIES and parts[0] in SPLITS and ".." not in parts
        if not known or not path.is_file():
            raise UnknownTask(f"ALFWorld has no game {task!r} under {self._root}; tasks() lists those it has")
        self._loaded = None
        try:
            game = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EnvError(
                f"the ALFWorld game {path} is no valid JSON ({error}); generate or download it again"
            ) from error
        if not isinstance(game, dict):
            raise EnvError(f"the ALFWorld game {path} is no JSON object; generate or download it again")
        engine.load(game, self._cache_dir)
        self._loaded = task


def _engine_module() -> ModuleType:
    try:
        # Late: these packages take half a second to import, and listing tasks needs none of them.
        from agent_envs.alfworld import engine
    except ImportError as error:
        raise EnvError(
            f"the ALFWorld environment needs the packages alfworld and textworld[pddl]; install them ({error})"
        ) from error
    return engine
