"""The vault's rooms, rules and expert.

The whole state is in the text, as fixed slots with directions relative to the agent, so that a tiny model can learn it
without history. The only reward is 1 at success, which leaves credit assignment something to do.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise, permutations
from math import perm

from agent_envs.base import ExactModel, Expert, Move, NumberedTasks, Reset, StepResult, TextEnv, View
from agent_envs.errors import EnvError, UnknownTask
from agent_envs.registry import register
from agent_envs.vault.prompt import VAULT_PROMPT

__all__ = ["VaultEnv"]

Cell = tuple[int, int]
"""Row (grows to the south), column (grows to the east)."""

COLOURS = ("red", "green", "blue", "yellow")
MOVES: dict[str, Cell] = {"north": (-1, 0), "south": (1, 0), "west": (0, -1), "east": (0, 1)}
SPLIT_TENTHS = {"train": range(8), "valid": range(8, 9), "test": range(9, 10)}
MAX_ACTION_CHARS = 64


@dataclass(frozen=True)
class Layout:
    """The starting places of agent and things; all cells differ."""

    keys: tuple[Cell, ...]
    chest: Cell
    altar: Cell
    start: Cell

    def split(self) -> str:
        """Return the split that this layout belongs to.

        The start is left out of the hash, so that no start of one split can be walked to in another.
        """
        digest = hashlib.sha256(repr((self.keys, self.chest, self.altar)).encode()).digest()
        tenth = int.from_bytes(digest[:8], "big") % 10
        return next(split for split, tenths in SPLIT_TENTHS.items() if tenth in tenths)


@dataclass(frozen=True)
class State:
    """A layout during an episode."""

    layout: Layout
    agent: Cell
    held_keys: frozenset[int] = frozenset()
    chest_open: bool = False
    gem_held: bool = False
    gem_placed: bool = False


@register("vault")
class VaultEnv(TextEnv):
    """The vault on a ``size`` x ``size`` grid with ``keys`` keys.

    ``max_steps`` limits the episode; only layouts that an optimal player solves within it become tasks.
    ``train_tasks``, ``valid_tasks`` and ``test_tasks`` are the split sizes; no layout occurs in two tasks, and a
    larger split begins with the tasks of a smaller one. ``seed`` of ``reset`` changes nothing: the task is the layout.
    ``clock`` shows how many steps are left, on which an episode's chances depend; states are the same without it.
    """

    splits = tuple(SPLIT_TENTHS)
    prompt = VAULT_PROMPT
    can_snapshot = True

    def __init__(
        self,
        size: int = 3,
        keys: int = 2,
        max_steps: int = 14,
        train_tasks: int = 1024,
        valid_tasks: int = 128,
        test_tasks: int = 512,
        clock: bool = False,
    ) -> None:
        if not 2 <= size <= 9:
            raise ValueError(f"vault: size is {size}; it must be between 2 and 9.")
        if not 1 <= keys <= len(COLOURS):
            raise ValueError(f"vault: keys is {keys}; it must be between 1 and {len(COLOURS)}.")
        if keys + 3 > size**2:
            raise ValueError(f"vault: {keys} keys need {keys + 3} rooms, but size {size} has {size**2}; raise size.")
        # Every key is taken, the chest opened, the gem taken and put, and each of these places is another room.
        shortest = 2 * keys + 5
        if max_steps < shortest:
            raise ValueError(
                f"vault: max_steps is {max_steps}, but with {keys} {'key' if keys == 1 else 'keys'} no solution is "
                f"shorter than {shortest} steps; raise it."
            )
        if min(train_tasks, valid_tasks, test_tasks) < 0:
            raise ValueError("vault: a split size is negative; use 0 for a split without tasks.")
        self.max_steps = max_steps
        self._size = size
        self._key_count = keys
        self._clock = clock
        self._task_counts = {"train": train_tasks, "valid": valid_tasks, "test": test_tasks}
        self._state: State | None = None
        self._steps = 0

    def tasks(self, split: str) -> NumberedTasks:
        return NumberedTasks(f"vault-{split}-", len(self._layouts(split)))

    def reset(self, task: str, seed: int) -> Reset:
        layout = self._layout(task)
        self._state = State(layout, layout.start)
        self._steps = 0
        return Reset(
            observation=self._observe(self._state, self._steps),
            state_key=_describe(self._state),
            admissible_actions=self._admissible(self._state),
        )

    def step(self, action: str) -> StepResult:
        state = self._state
        if state is None:
            raise EnvError("vault: no episode is running; call reset before step.")
        following = self._after(state, action)
        admissible = following is not None
        state = self._state = following or state
        self._steps += 1
        success = state.gem_placed
        truncated = not success and self._steps >= self.max_steps
        if success or truncated:
            self._state = None
        return StepResult(
            observation=self._observe(state, self._steps),
            state_key=_describe(state),
            reward=float(success),
            terminated=success,
            truncated=truncated,
            admissible=admissible,
            success=success,
            score=float(success),
            admissible_actions=() if success else self._admissible(state),
        )

    def expert(self) -> Expert | None:
        """Return an expert that follows a shortest plan from the current state."""
        return self._expert_action

    def snapshot(self) -> object:
        if self._state is None:
            raise EnvError("vault: no episode is running; call reset before snapshot.")
        return self._state, self._steps

    def restore(self, state: object) -> None:
        match state:
            case (State() as found, int() as steps):
                self._state, self._steps = found, steps
            case _:
                raise EnvError("vault: this is not a snapshot of a vault; take one with snapshot.")

    def model(self) -> ExactModel:
        return _VaultModel(self)

    def _expert_action(self) -> str:
        state = self._state
        if state is None:
            raise EnvError("vault: no episode is running; call reset before asking for the expert's action.")
        target, action = _plan(state)[0]
        return action if target == state.agent else f"go {_direction(state.agent, target)}"

    def _layouts(self, split: str) -> tuple[Layout, ...]:
        if split not in self._task_counts:
            raise UnknownTask(f"vault has no split {split!r}; it has: {', '.join(self.splits)}.")
        return _generate(self._size, self._key_count, self.max_steps, split, self._task_counts[split])

    def _layout(self, task: str) -> Layout:
        split = task.removeprefix("vault-").rpartition("-")[0]
        number = self.tasks(split).number_of(task) if split in self._task_counts else None
        if number is not None:
            return self._layouts(split)[number]
        raise UnknownTask(f"vault has no task {task!r}; its ids look like 'vault-train-0' up to the split's size.")

    def _observe(self, state: State, steps: int) -> str:
        clock = f" left {self.max_steps - steps} ." if self._clock else ""
        return _describe(state) + clock

    def _after(self, state: State, action: str) -> State | None:
        """Return the state after an action, or None if it is not one that is possible in ``state``."""
        read = " ".join(action.split()).lower() if len(action) <= MAX_ACTION_CHARS else ""
        return _applied(state, read) if read in self._admissible(state) else None

    def _admissible(self, state: State) -> tuple[str, ...]:
        layout, (row, column) = state.layout, state.agent
        actions = []
        for direction, (down, right) in MOVES.items():
            if 0 <= row + down < self._size and 0 <= column + right < self._size:
                actions.append(f"go {direction}")
        for index, cell in enumerate(layout.keys):
            if cell == state.agent and index not in state.held_keys:
                actions.append(f"take {COLOURS[index]} key")
        if layout.chest == state.agent:
            if not state.chest_open and len(state.held_keys) == len(layout.keys):
                actions.append("open chest")
            elif state.chest_open and not state.gem_held:
                actions.append("take gem")
        if layout.altar == state.agent and state.gem_held:
            actions.append("put gem")
        return tuple(actions)


class _VaultModel(ExactModel):
    """The rules of one instance."""

    returns = (0.0, 1.0)

    def __init__(self, env: VaultEnv) -> None:
        self._env = env

    def start(self, task: str, seed: int) -> State:
        layout = self._env._layout(task)
        return State(layout, layout.start)

    def view(self, state: Hashable, step: int) -> View:
        seen = _state(state)
        return View(self._env._observe(seen, step), _describe(seen), self._env._admissible(seen))

    def move(self, state: Hashable, action: str) -> Move | None:
        following = self._env._after(_state(state), action)
        if following is None:
            return None
        return Move(following, reward=float(following.gem_placed), terminated=following.gem_placed)

    def hopeless(self, listed: Collection[str], beginning: str) -> bool:
        read = " ".join(beginning.split()).lower()
        return not any(action.startswith(read) for action in listed)


def _state(state: Hashable) -> State:
    if not isinstance(state, State):
        raise TypeError(f"vault: {state!r} is not a state of a vault.")
    return state


def _describe(state: State) -> str:
    """Return the whole state as text."""
    layout, agent = state.layout, state.agent
    slots = [f"you row {agent[0]} column {agent[1]}"]
    for index, cell in enumerate(layout.keys):
        slots.append(f"{COLOURS[index]} key {_where(agent, cell, index in state.held_keys)}")
    slots.append(f"chest {'open' if state.chest_open else 'locked'} {_where(agent, layout.chest)}")
    slots.append(f"gem {'placed' if state.gem_placed else 'held' if state.gem_held else 'inside'}")
    slots.append(f"altar {_where(agent, layout.altar)}")
    return " . ".join(slots) + " ."


def _applied(state: State, action: str) -> State:
    """Return the state after an action that is known to be admissible."""
    verb, thing = action.split()[:2]
    if verb == "go":
        down, right = MOVES[thing]
        return replace(state, agent=(state.agent[0] + down, state.agent[1] + right))
    if verb == "open":
        return replace(state, chest_open=True)
    if verb == "put":
        return replace(state, gem_placed=True)
    if thing == "gem":
        return replace(state, gem_held=True)
    return replace(state, held_keys=state.held_keys | {COLOURS.index(thing)})


def _where(agent: Cell, cell: Cell, held: bool = False) -> str:
    """Word a direction in exactly four words, so that every slot keeps its place in the text."""
    if held:
        return "held 0 held 0"
    down, right = cell[0] - agent[0], cell[1] - agent[1]
    vertical = "south" if down > 0 else "north" if down < 0 else "level"
    horizontal = "east" if right > 0 else "west" if right < 0 else "level"
    return f"{vertical} {abs(down)} {horizontal} {abs(right)}"


def _direction(start: Cell, goal: Cell) -> str:
    if goal[0] != start[0]:
        return "south" if goal[0] > start[0] else "north"
    return "east" if goal[1] > start[1] else "west"


def _distance(start: Cell, goal: Cell) -> int:
    return abs(start[0] - goal[0]) + abs(start[1] - goal[1])


def _walk_length(cells: Sequence[Cell]) -> int:
    return sum(_distance(start, goal) for start, goal in pairwise(cells))


def _plan(state: State) -> list[tuple[Cell, str]]:
    """Return the rooms to visit and the action in each, in the order with the shortest walk.

    There are no walls, so this plan is optimal.
    """
    layout = state.layout
    after_keys = []
    if not state.chest_open:
        after_keys.append((layout.chest, "open chest"))
    if not state.gem_held:
        after_keys.append((layout.chest, "take gem"))
    after_keys.append((layout.altar, "put gem"))
    missing = [
        (cell, f"take {COLOURS[index]} key") for index, cell in enumerate(layout.keys) if index not in state.held_keys
    ]
    orders = ([*order, *after_keys] for order in permutations(missing))
    return min(orders, key=lambda order: _walk_length([state.agent, *(cell for cell, _ in order)]))


def _plan_length(layout: Layout) -> int:
    """Return the number of actions of a shortest solution."""
    plan = _plan(State(layout, layout.start))
    return len(plan) + _walk_length([layout.start, *(cell for cell, _ in plan)])


@lru_cache(maxsize=32)
def _generate(size: int, keys: int, max_steps: int, split: str, count: int) -> tuple[Layout, ...]:
    """Draw the first ``count`` different layouts of a split from one fixed random stream per split."""
    rng = random.Random(f"vault {split} {size} {keys}")
    cells = [(row, column) for row in range(size) for column in range(size)]
    found: dict[Layout, None] = {}
    # Enough draws to see nearly every layout of a small grid; a large grid never comes near the limit.
    draws_left = 100 * count + 20 * min(perm(size**2, keys + 3), 20_000)
    while len(found) < count:
        if not draws_left:
            raise ValueError(
                f"vault: split {split!r} should have {count} tasks, but size {size} with {keys} keys and max_steps "
                f"{max_steps} offers about {len(found)}; ask for fewer tasks, a larger size or more steps."
            )
        draws_left -= 1
        *key_cells, chest, altar, start = rng.sample(cells, keys + 3)
        layout = Layout(tuple(key_cells), chest, altar, start)
        if layout.split() == split and _plan_length(layout) <= max_steps:
            found[layout] = None
    return tuple(found)
