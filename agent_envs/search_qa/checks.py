"""Measures generated data as it will be played, and refuses what would teach or measure the wrong thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from agent_envs.errors import EnvError
from agent_envs.search_qa.drawing import REPEATS, Search, given_away
from agent_envs.search_qa.expert import expert_action
from agent_envs.search_qa.levels import Shape
from agent_envs.search_qa.passages import Passage
from agent_envs.search_qa.questions import Question

__all__ = ["Measured", "check"]

_MOST_FOUND = 0.05
_MOST_EQUAL = 0.05


@dataclass(frozen=True)
class Measured:
    """Shares in [0, 1]."""

    expert_success: float
    """Of all questions, those that the expert answers within the step limit."""
    question_as_query: Mapping[str, float]
    """Category -> share of questions whose answer is in the first three passages for the question's own words."""
    question_as_query_deep: float
    """The same for all questions that need an article whose name another article has to reveal."""
    majority_answer: Mapping[str, float]
    """Split -> share of its most frequent answer."""


def check(
    questions: Mapping[str, Sequence[Question]],
    passages: Mapping[str, Passage],
    entities: Collection[str],
    search: Search,
    topk: int,
    max_steps: int,
) -> Measured:
    """Measure data by playing it.

    Args:
        questions: split -> questions.
        passages: id -> passage.
        entities: names that belong to one split.
        search: the search that the data will be played with.
        topk: passages that a search shows.
        max_steps: step limit of an episode.

    Raises:
        EnvError: the expert fails, a question is there twice, an entity is in two splits, or more than a twentieth of
            the questions can be answered by typing them as a query or by one constant answer.
    """
    _refuse_overlap(questions, entities)
    every = [question for items in questions.values() for question in items]
    solved = sum(_solves(question, passages, search, topk, max_steps) for question in every)
    found: dict[str, list[bool]] = {}
    for question in every:
        found.setdefault(question.category, []).append(given_away(question, passages, search))
    deep = [hit for category, hits in found.items() if Shape.of(category).depth > 1 for hit in hits]
    most = {
        split: max(Counter(question.answers for question in items).values(), default=0)
        for split, items in questions.items()
    }
    measured = Measured(
        expert_success=_share(solved, len(every)),
        question_as_query={category: _share(sum(hits), len(hits)) for category, hits in sorted(found.items())},
        question_as_query_deep=_share(sum(deep), len(deep)),
        majority_answer={split: _share(most[split], len(items)) for split, items in questions.items()},
    )
    if solved < len(every):
        raise EnvError(
            f"the expert fails in {len(every) - solved} of {len(every)} generated tasks; generate with another seed"
        )
    if measured.question_as_query_deep > _MOST_FOUND:
        raise EnvError(
            f"{measured.question_as_query_deep:.1%} of the generated questions are answered by a search for their own "
            f"words, which is more than {_MOST_FOUND:.0%}; generate with another seed"
        )
    for split, items in questions.items():
        # Of a few questions, three with one answer are too large a share.
        if most[split] > max(REPEATS, _MOST_EQUAL * len(items)):
            raise EnvError(
                f"one answer is right for {measured.majority_answer[split]:.1%} of the generated questions of split "
                f"{split!r}, which is more than {_MOST_EQUAL:.0%}; generate with another seed"
            )
    return measured


def _refuse_overlap(questions: Mapping[str, Sequence[Question]], entities: Collection[str]) -> None:
    texts: set[str] = set()
    home: dict[str, str] = {}
    for split, items in questions.items():
        for question in items:
            if question.question in texts:
                raise EnvError(f"the question {question.question!r} was generated twice; generate with another seed")
            texts.add(question.question)
            for name in question.path:
                if name in entities and home.setdefault(name, split) != split:
                    raise EnvError(f"{name} is in the splits {home[name]} and {split}; generate with another seed")


def _solves(question: Question, passages: Mapping[str, Passage], search: Search, topk: int, max_steps: int) -> bool:
    retrieved: set[str] = set()
    for _ in range(max_steps):
        kind, _, words = expert_action(question, sorted(retrieved), lambda name: passages[name].title).partition(" ")
        if kind == "answer":
            return words in question.answers and retrieved.issuperset(question.gold_ids)
        retrieved.update(search([words], topk)[0])
    return False


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
