"""WebShop as a ``TextEnv``, with the training layer of verl-agent that the GAGPO paper (arXiv 2605.13217) uses."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from agent_envs.base import Expert, NumberedTasks, Recording, Reset, StepResult, TextEnv
from agent_envs.declarations import Needs
from agent_envs.errors import EnvError, UnknownTask
from agent_envs.registry import register
from agent_envs.webshop.catalogue import Catalogue, load_catalogue
from agent_envs.webshop.data import GENERATOR, find_files
from agent_envs.webshop.expert import expert_action
from agent_envs.webshop.goals import GoalBook, GoalKind, compatible_book, seedless_book
from agent_envs.webshop.nouns import NounFinder, find_nouns, finder_name
from agent_envs.webshop.pages import SEARCH, SEPARATOR, Page, segments
from agent_envs.webshop.prompt import WEBSHOP_PROMPT
from agent_envs.webshop.session import Session, Shop
from agent_envs.webshop.sources import FileSet

__all__ = ["WebShopEnv", "page_without_instruction"]

QUERY = "<your query>"
SEARCH_HINT = f"search[{QUERY}]"
_SPLITS = {"compatible": ("train", "test"), "clean": ("train", "valid", "test")}


@register("webshop")
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

    splits = _SPLITS["compatible"]
    prompt = WEBSHOP_PROMPT
    can_snapshot = True
    needs = Needs(("regex",), extra="webshop")
    generator = GENERATOR
    placeholders = (QUERY,)

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
        self._recording: Recording | None = None
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
    def find_data(cls, **options: Any) -> Iterable[str]:
        return find_files(options.get("data_dir"), options.get("files", "auto"))

    @classmethod
    def preload(cls, **options: Any) -> None:
        """Open the catalogue and choose the noun rule, for a process that worker processes are forked from.

        Raises ``EnvError`` as making an instance does.
        """
        cls(**options).close()

    def tasks(self, split: str) -> NumberedTasks:
        return NumberedTasks(f"{split}-", len(self._indexes(split)))

    def reset(self, task: str, seed: int) -> Reset:
        split = task.rpartition("-")[0]
        place = self.tasks(split).number_of(task) if split in self.splits else None
        if place is None:
            raise UnknownTask(f"WebShop has no task {task!r}; tasks() lists those it has.")
        index = int(self._goals[split][place])
        session = Session(self._shop, str(index), self._shop.book[index], random.Random(seed))
        self._session = session
        self._recording = Recording(task, seed)
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
        if self._recording is not None:
            self._recording = self._recording.then(action)
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

    def snapshot(self) -> object:
        """Return the way to the state, since pages share parts of the catalogue."""
        if self._session is None or self._recording is None:
            raise EnvError("WebShop: no episode is running; call reset before snapshot.")
        return self._recording

    def restore(self, state: object) -> None:
        if not isinstance(state, Recording):
            raise EnvError("WebShop: this is not a snapshot of WebShop; take one with snapshot.")
        state.play(self)

    def describe_tasks(self, tasks: Mapping[str, Sequence[str]]) -> Iterable[str]:
        counts = ", ".join(f"{split} {len(ids)}" for split, ids in tasks.items())
        yield f"{self.record['products']} products; {self.record['goal_kind']} goals: {counts}"
        yield "official: 6910 synthetic goals with the first 1,000 products; 12087 human instructions in all"

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
