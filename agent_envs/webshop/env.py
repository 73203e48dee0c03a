"""WebShop as a ``TextEnv``, with the training layer of verl-agent that the GAGPO paper (arXiv 2605.13217) uses."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Literal, overload

import numpy as np

from agent_envs.base import EnvError, Expert, PromptTemplate, Reset, StepResult, TextEnv, UnknownTask
from agent_envs.webshop.catalogue import Catalogue, load_catalogue
from agent_envs.webshop.expert import expert_action
from agent_envs.webshop.goals import GoalBook, GoalKind, compatible_book, seedless_book
from agent_envs.webshop.nouns import NounFinder, find_nouns, finder_name
from agent_envs.webshop.pages import SEARCH, SEPARATOR, Page, segments
from agent_envs.webshop.prompt import WEBSHOP_PROMPT
from agent_envs.webshop.session import Session, Shop
from agent_envs.webshop.sources import FileSet

__all__ = ["WebShopEnv", "page_without_instruction"]

SEARCH_HINT = "search[<your query>]"
_SPLITS = {"compatible": ("train", "test"), "clean": ("train", "valid", "test")}


class WebShopEnv(TextEnv):
    """Shopping for a described product in a made-up or the official catalogue.

    ``mode`` "compatible" has goals, prices and splits as verl-agent's workers have them: all depend on ``seed``, the
    first ``test_goals`` goals are the split test and the others train, and the list of possible actions holds the
    ineffective ``click[search]``. "clean" draws everything about a product from its id, so that train, valid and test
    share no product and no seed changes them. In both, what would crash the original program has no effect.

    The state key is the page without the instruction. In plain text it does not tell which options are chosen, so
    ``state_key`` "page_options" adds them. The reward is ``success_reward`` for a purchase with score 1 and else 0, or
    the score itself with ``reward`` "score". An action is admissible if it searches for something or clicks a listed
    name. ``seed`` of ``reset`` drives the search for random products only.

    Args:
        data_dir: folder with the official files; default the variable ``WEBSHOP_DATA``.
        files: which of them, see ``find_sources``.
        num_products: entries of the items file to use; None: all.
        human_goals: people's instructions instead of synthetic ones.
        mode: compatible or clean.
        seed: of prices, price limits and order of the goals; without effect in clean mode.
        test_goals: size of the split test in compatible mode.
        max_steps: steps after which an episode is truncated.
        observation: text, or text_rich to mark what can be clicked and what was.
        state_key: page or page_options.
        reward: success or score.
        success_reward: reward of a purchase with score 1.
        show_attributes: whether product pages link to their attributes.
        nouns: auto, spacy, words, module:function, or a function; see ``find_nouns``.
        cache_dir: where the packed catalogue is kept; default ``gagpo/webshop`` in the user's cache folder.

    Raises:
        EnvError: files are missing or broken, or an option is out of range.
    """

    name: ClassVar[str] = "webshop"
    splits: tuple[str, ...] = _SPLITS["compatible"]  # type: ignore[misc]
    prompt: ClassVar[PromptTemplate] = WEBSHOP_PROMPT

    def __init__(
        self,
        data_dir: str | os.PathLike[str] | None = None,
        files: FileSet = "auto",
        num_products: int | None = None,
        human_goals: bool = False,
        mode: Literal["compatible", "clean"] = "compatible",
        seed: int = 0,
        test_goals: int = 500,
        max_steps: int = 15,
        observation: Literal["text", "text_rich"] = "text",
        state_key: Literal["page", "page_options"] = "page",
        reward: Literal["success", "score"] = "success",
        success_reward: float = 10.0,
        show_attributes: bool = False,
        nouns: str | NounFinder = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        _check("mode", mode, tuple(_SPLITS))
        _check("observation", observation, ("text", "text_rich"))
        _check("state_key", state_key, ("page", "page_options"))
        _check("reward", reward, ("success", "score"))
        if max_steps < 1:
            raise EnvError(f"max_steps of the WebShop environment must be at least 1, not {max_steps}.")
        self.splits = _SPLITS[mode]
        self.max_steps = max_steps
        kind: GoalKind = "human" if human_goals else "synthetic"
        catalogue = load_catalogue(data_dir, files, num_products, cache_dir)
        book, goals = _clean(catalogue, kind) if mode == "clean" else _compatible(catalogue, kind, seed)
        self._goals: Mapping[str, Sequence[int] | np.ndarray] = goals
        if mode == "compatible":
            if not 0 < test_goals < len(book):
                raise EnvError(
                    f"test_goals of the WebShop environment is {test_goals}, but the catalogue has {len(book)} goals; "
                    f"choose 1 to {len(book) - 1}, or use more products."
                )
            self._goals = {"train": range(test_goals, len(book)), "test": range(test_goals)}
        finder = find_nouns(nouns) if isinstance(nouns, str) else nouns
        self._shop = Shop(book, finder, show_attributes)
        self._hidden = {SEARCH.lower()} if mode == "clean" else set()
        self._observation = observation
        self._state_key = state_key
        self._pays_score = reward == "score"
        self._success_reward = success_reward
        self._session: Session | None = None
        self._steps = 0
        self.record = {
            "catalogue": catalogue.fingerprint,
            "products": len(catalogue),
            "goals": len(book),
            "goal_kind": kind,
            "mode": mode,
            "nouns": finder_name(finder),
        }

    @classmethod
    def preload(cls, **options: Any) -> None:
        """Open the catalogue and choose the noun rule, for a process that worker processes are forked from.

        Raises ``EnvError`` as making an instance does.
        """
        cls(**options).close()

    def tasks(self, split: str) -> Sequence[str]:
        return TaskNames(split, len(self._indexes(split)))

    def reset(self, task: str, seed: int) -> Reset:
        split, _, place = task.rpartition("-")
        # Compared as text: "07" would be a second name of one task.
        known = split in self.splits and place.isdecimal() and len(place) < 10 and place == str(int(place))
        if not known or int(place) >= len(self._goals[split]):
            raise UnknownTask(f"WebShop has no task {task!r}; tasks() lists those it has.")
        index = int(self._goals[split][int(place)])
        session = Session(self._shop, str(index), self._shop.book[index], random.Random(seed))
        self._session = session
        self._steps = 0
        return Reset(
            observation=self._observe(session),
            state_key=self._key(session),
            task=session.goal.instruction_text.strip(),
            admissible_actions=self._actions(session.page),
            category=session.goal.category,
            info={"goal": index, "asin": session.goal.asin, "nouns": self.record["nouns"]},
        )

    def step(self, action: str) -> StepResult:
        session = self._session
        if session is None:
            raise EnvError("WebShop: no episode is running; call reset before step.")
        listed = action in self._actions(session.page)
        outcome = session.step(action)
        self._steps += 1
        success = outcome.done and outcome.reward == 1.0
        truncated = not outcome.done and self._steps >= self.max_steps
        if outcome.done or truncated:
            self._session = None
        paid = outcome.reward if self._pays_score else self._success_reward * success
        return StepResult(
            observation=self._observe(session),
            state_key=self._key(session),
            reward=float(paid),
            terminated=outcome.done,
            truncated=truncated,
            admissible=outcome.recognised or listed,
            success=success,
            score=float(outcome.reward),
            admissible_actions=() if outcome.done else self._actions(session.page),
            info=dict(session.breakdown or {}) if outcome.done else {},
        )

    def expert(self) -> Expert:
        """Knows which product is wanted; the seldom goal that no purchase fully meets it does not fully meet either."""
        return self._expert_action

    def close(self) -> None:
        self._session = None

    def _expert_action(self) -> str:
        if self._session is None:
            raise EnvError("WebShop: no episode is running; call reset before asking for the expert's action.")
        return expert_action(self._session)

    def _indexes(self, split: str) -> Sequence[int] | np.ndarray:
        if split not in self.splits:
            raise UnknownTask(f"WebShop has no split {split!r} here; it has: {', '.join(self.splits)}.")
        return self._goals[split]

    def _observe(self, session: Session) -> str:
        if self._observation == "text_rich":
            return session.show(session.page.body, "text_rich").strip("\n")
        return page_without_instruction(session.page)

    def _key(self, session: Session) -> str:
        key = page_without_instruction(session.page)
        if self._state_key == "page_options" and session.options:
            key += f" | {json.dumps(session.options, sort_keys=True)}"
        return key

    def _actions(self, page: Page) -> tuple[str, ...]:
        clicks = (f"click[{name}]" for name in page.targets if name not in self._hidden)
        return (SEARCH_HINT,) * page.has_search_bar + tuple(clicks)


class TaskNames(Sequence[str]):
    """The names of a split's tasks, made when asked for: the full catalogue has millions."""

    def __init__(self, split: str, count: int) -> None:
        self._split = split
        self._places = range(count)

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [f"{self._split}-{place}" for place in self._places[index]]
        return f"{self._split}-{self._places[index]}"


def page_without_instruction(page: Page) -> str:
    """What follows the instruction, each piece in single quotes; the last page, which has none, as it is."""
    text = segments(page.body)
    quoted = text.replace(SEPARATOR, f"'{SEPARATOR}'")
    return f"'{quoted}'" if page.head else text


@lru_cache(maxsize=4)
def _compatible(catalogue: Catalogue, kind: GoalKind, seed: int) -> tuple[GoalBook, dict[str, np.ndarray]]:
    return compatible_book(catalogue, kind, random.Random(seed), shuffle_seed=seed), {}


@lru_cache(maxsize=4)
def _clean(catalogue: Catalogue, kind: GoalKind) -> tuple[GoalBook, dict[str, np.ndarray]]:
    return seedless_book(catalogue, kind)


def _check(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise EnvError(f"{name} of the WebShop environment must be {' or '.join(allowed)}, not {value!r}.")
