"""TextArena's games for one player (0.7) as text environments, on the games' own messages."""

from __future__ import annotations

import copy
import hashlib
import io
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, redirect_stdout
from enum import Enum
from typing import Any, NamedTuple

from agent_envs.adapters.numbered import PROMPT, Counts, NumberedEnv, calling_module, check_counts, drawn
from agent_envs.base import PromptTemplate, Reset, StepResult, TextEnv
from agent_envs.declarations import Needs
from agent_envs.errors import EnvError

__all__ = ["from_textarena"]

_TASKS: Counts = {"train": 10_000, "valid": 1_000, "test": 1_000}
_ANY_NUMBER = sys.maxsize
_CLOCKS = frozenset({"state", "turn", "num_turns", "moves_made"})
"""Entries of a game that only count steps, and its record of players and messages."""
_DEPTH = 4
"""Objects inside objects that a state key looks into."""


def from_textarena(
    game: str,
    *,
    tasks: Mapping[str, int] = _TASKS,
    state_key: Callable[[Any], str] | None = None,
    prompt: PromptTemplate = PROMPT,
    max_steps: int = 30,
    **options: Any,
) -> type[TextEnv]:
    """Return a text environment that plays a game of TextArena; give it a name with ``agent_envs.register``.

    The agent sees the game's messages as they are: its instructions as the task, then whatever it said since the last
    action, and the last board if that shows none. A move that the game calls invalid changes nothing, however many
    there are; TextArena itself ends a game with the second in a row. The only reward is the game's at its end. A
    game is solved if that reward is 1. ``final_score`` is how far the game says the player has come.

    Games that download word lists (such as Wordle) or ask a model (such as TwentyQuestions) do so here, too.

    Args:
        game: TextArena's name, such as "Mastermind-v0".
        tasks: split -> number of tasks; the number of a task is the game's seed.
        state_key: returns the key of a state, given TextArena's game; by default a digest of all that the game holds,
            without counters of turns.
        prompt: words the turns.
        max_steps: default of the option of that name. A game may have a limit of its own.
        options: of the game, over those that TextArena registered it with.

    Raises:
        ValueError: ``tasks`` makes no sense.
    """
    check_counts(tasks, game)
    limit = max_steps

    class TextArena(_TextArenaEnv):
        splits = tuple(tasks)

        def __init__(self, max_steps: int = limit) -> None:
            super().__init__(game, dict(tasks), options, state_key, max_steps)

    TextArena.prompt = prompt
    TextArena.__module__, TextArena.__qualname__ = calling_module(), TextArena.__name__
    return TextArena


class _TextArenaEnv(NumberedEnv):
    needs = Needs(packages=("textarena",), extra="textarena")

    def __init__(
        self,
        game: str,
        counts: Counts,
        options: Mapping[str, Any],
        state_key: Callable[[Any], str] | None,
        max_steps: int,
    ) -> None:
        super().__init__(max_steps)
        self._game = game
        self._key = state_key
        self._sizes = counts
        self._options = options
        self._env: Any = None
        self._chance = _Chance()
        self._board = ""

    def final_score(self) -> float | None:
        reached = getattr(self._env, "_get_percentage_completion", None)
        if reached is None:
            return None
        with _silent():
            return _share(reached())

    def _counts(self) -> Counts:
        return self._sizes

    def _start(self, split: str, place: int, number: int, seed: int) -> Reset:
        with self._chance.own(), _silent():
            _seed(number)
            env = self._made()
            _seed(number)
            try:
                env.reset(num_players=1, seed=number)
            except (AssertionError, ValueError) as error:
                raise EnvError(f"TextArena cannot play {self._game} with one player: {_line(error)}.") from error
            if type(env.state).__name__ != "SinglePlayerState":
                raise EnvError(f"{self._game} is not a game for one player; choose one that is.")
            _seed(drawn(number, seed))
        # The contract of environments: what cannot be read changes nothing.
        env.state.error_allowance = _ANY_NUMBER
        self._env = env
        said = self._messages()
        self._board = _last(said, "GAME_BOARD")
        instruction = "\n\n".join(text for kind, text in said if kind == "PROMPT")
        shown = "\n\n".join(text for kind, text in said if kind != "PROMPT")
        return Reset(observation=shown or "No move has been made yet.", state_key=self._state_key(), task=instruction)

    def _act(self, action: str) -> StepResult:
        before, chance = copy.deepcopy(self._env), self._chance.state
        with self._chance.own(), _silent():
            done, _ = self._env.step(action)
        admissible = bool(done) or not self._env.state.error_count
        said = self._messages()
        if admissible:
            shown = [text for kind, text in said if kind != "PLAYER_ACTION"]
        else:
            # A game may have acted on a part of the text before it met the part that is wrong.
            self._env, self._chance.state = before, chance
            shown = [text for kind, text in said if kind == "GAME_ADMIN"]
        board = _last(said, "GAME_BOARD") if admissible else ""
        if not board and self._board:
            shown.append(self._board)
        self._board = board or self._board
        reward = float((self._env.state.rewards or {}).get(0, 0.0)) if done else 0.0
        if done:
            shown.append(str(self._env.state.game_info[0].get("reason") or ""))
        return StepResult(
            observation="\n\n".join(text for text in shown if text),
            state_key=self._state_key(),
            reward=reward,
            terminated=bool(done),
            truncated=False,
            admissible=admissible,
            success=bool(done) and reward >= 1.0,
            score=_share(reward),
        )

    def _made(self) -> Any:
        """Return a new game without TextArena's own wrappers, which word messages. Raises ``EnvError``."""
        import textarena

        try:
            return textarena.make(f"{self._game.removesuffix('-raw')}-raw", **self._options)
        except LookupError as error:
            raise EnvError(
                f"{self._game} needs word lists of NLTK that are not installed: run python -m nltk.downloader words "
                "averaged_perceptron_tagger_eng."
            ) from error
        except (ImportError, SyntaxError, TypeError, ValueError) as error:
            raise EnvError(f"TextArena cannot make {self._game}: {_line(error)}.") from error

    def _messages(self) -> list[tuple[str, str]]:
        """Take what the game has said since this was last called, as kinds and texts."""
        _, said = self._env.get_observation()
        # A few games give the kind where others give the text.
        pairs = ((kind, text) if hasattr(kind, "name") else (text, kind) for _, text, kind in said)
        return [(getattr(kind, "name", str(kind)), str(text).strip()) for kind, text in pairs]

    def _state_key(self) -> str:
        if self._key is not None:
            return self._key(self._env)
        # Only a digest, because the facts may hold the solution.
        facts = _facts(vars(self._env)) + _facts(self._env.state.game_state)
        return hashlib.sha256(facts.encode(errors="surrogatepass")).hexdigest()[:32]


def _silent() -> redirect_stdout[io.StringIO]:
    """Keep what games print for their developers from the output of the program that plays them."""
    return redirect_stdout(io.StringIO())


class _Chance:
    """An instance's own state of the global generators, which games draw from."""

    def __init__(self) -> None:
        self.state: _Generators | None = None
        """Where the instance left the generators; None before it has drawn."""

    @contextmanager
    def own(self) -> Iterator[None]:
        """Let the global generators go on where this instance left them, and put back what they were."""
        others = _Generators.now()
        if self.state is not None:
            self.state.put()
        try:
            yield
        finally:
            self.state = _Generators.now()
            others.put()


class _Generators(NamedTuple):
    """States of the global generators of Python and, if a game has imported it, NumPy."""

    python: tuple[Any, ...]
    numpy: Any

    @classmethod
    def now(cls) -> _Generators:
        numpy = sys.modules.get("numpy")
        return cls(random.getstate(), None if numpy is None else numpy.random.get_state())

    def put(self) -> None:
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)


def _seed(seed: int) -> None:
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)


def _facts(value: object, depth: int = 0) -> str:
    """Return ``value`` as text that is equal for equal values, whatever the order of sets and dictionaries."""
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, Mapping):
        kept = ((str(key), item) for key, item in value.items() if key not in _CLOCKS)
        return "{" + ",".join(sorted(f"{key}:{_facts(item, depth)}" for key, item in kept)) + "}"
    if isinstance(value, Set):
        return "{" + ",".join(sorted(_facts(item, depth) for item in value)) + "}"
    if hasattr(value, "tolist"):  # an array
        return repr(value.tolist())
    if isinstance(value, Iterable):
        return "[" + ",".join(_facts(item, depth) for item in value) + "]"
    if callable(value) or depth >= _DEPTH or not hasattr(value, "__dict__"):
        return type(value).__qualname__
    return type(value).__qualname__ + _facts(vars(value), depth + 1)


def _last(said: Sequence[tuple[str, str]], wanted: str) -> str:
    return next((text for kind, text in reversed(said) if kind == wanted), "")


def _share(value: float) -> float:
    return min(max(float(value), 0.0), 1.0)


def _line(error: Exception) -> str:
    """Return the first line of an error, as the end of a sentence."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
