"""Draws questions about a generated world: unique answers, no giveaways, every article findable."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from agent_envs.errors import EnvError
from agent_envs.search_qa.compositions import Composition, Lookup, Reading, draw
from agent_envs.search_qa.levels import SPLITS, Level, Shape
from agent_envs.search_qa.passages import Passage, mention
from agent_envs.search_qa.questions import Question
from agent_envs.search_qa.wording import QUESTIONS
from agent_envs.search_qa.world import World

__all__ = ["REPEATS", "Search", "draw_questions", "given_away", "words_of"]

Search = Callable[[Sequence[str], int], list[list[str]]]
"""Returns, for each query, the ids of the best passages, the best first."""

_ATTEMPTS = 60
"""Compositions that are drawn for each question that is wanted."""
REPEATS, _SHARE = 3, 40
"""An answer occurs at most ``max(REPEATS, questions // _SHARE)`` times in a split."""
_SHOWN = 3
"""Passages in which an answer is looked for when a question is typed as a query."""
_EMPTY_WORDS = frozenset(("a", "an", "the", "of", "city"))


def words_of(text: str) -> list[str]:
    """Return the words of ``text`` in lower case."""
    return re.findall(r"\w+", text.casefold())


def given_away(question: Question, passages: Mapping[str, Passage], search: Search) -> bool:
    """Return whether an answer is in the first three passages for the question's own words."""
    texts = [_padded(passages[name].contents) for name in search([question.question], _SHOWN)[0]]
    return any(_padded(answer) in text for answer in question.answers for text in texts)


def _padded(text: str) -> str:
    return f" {' '.join(words_of(text))} "


def draw_questions(
    world: World, level: Level, seed: int, passages: Mapping[str, Passage], search: Search
) -> dict[str, list[Question]]:
    """Return each split's questions; equal arguments and an equal search give equal questions.

    Args:
        world: what is asked about.
        level: how many questions of which shapes.
        seed: of the choice.
        passages: id -> passage.
        search: finds passages. A question is kept only if a query finds each article that it needs and, where one has
            to name another, its own words do not find the answer.

    Raises:
        EnvError: the world does not have enough questions.
    """
    articles = {passage.subject: name for name, passage in passages.items()}
    find = _finder(articles, search, level.topk)

    def gives_away(question: Question) -> bool:
        return given_away(question, passages, search)

    questions = {}
    for split, count in zip(SPLITS, level.tasks, strict=True):
        rng = random.Random(f"search_qa/questions/{split}/{seed}")
        questions[split] = _Split(world, level, split, rng, find, gives_away).draw(count)
    return questions


Find = Callable[[Lookup], tuple[str, str] | None]
"""Returns the article's id and a query that finds it; None if no query does."""


def _finder(articles: Mapping[str, str], search: Search, topk: int) -> Find:
    @cache
    def find(lookup: Lookup) -> tuple[str, str] | None:
        wanted = articles[lookup.title]
        for query in lookup.queries:
            if wanted in search([query], topk)[0]:
                return wanted, query
        return None

    return find


@dataclass
class _Split:
    """The questions of one split while they are drawn."""

    world: World
    level: Level
    split: str
    rng: random.Random
    find: Find
    gives_away: Callable[[Question], bool]

    def __post_init__(self) -> None:
        self._met: set[Composition] = set()
        self._texts: set[str] = set()
        self._answers: Counter[str] = Counter()

    def draw(self, count: int) -> list[Question]:
        most = max(REPEATS, count // _SHARE)
        kept: list[Question] = []
        shapes = list(self.level.shapes)
        for place, shape in enumerate(shapes):
            kept += self._of_shape(shape, (count - len(kept)) // (len(shapes) - place), most)
        # What some shapes lack, others make up for.
        for shape in reversed(shapes):
            kept += self._of_shape(shape, count - len(kept), most)
        if len(kept) < count:
            raise EnvError(
                f"the generated world has only {len(kept)} of the {count} questions for split {self.split!r} with this "
                "seed; choose another seed"
            )
        self.rng.shuffle(kept)
        return [replace(question, id=str(number)) for number, question in enumerate(kept)]

    def _of_shape(self, shape: Shape, count: int, most: int) -> list[Question]:
        kept: list[Question] = []
        for _ in range(_ATTEMPTS * count):
            if len(kept) == count:
                break
            composition = draw(shape, self.world, self.split, self.level, self.rng)
            if composition is None or composition in self._met:
                continue
            reading = composition.reading(self.world)
            if reading is None or self._answers[reading.answer] >= most:
                continue
            question = self._worded(composition, reading, shape)
            if question is None:
                continue
            self._met.add(composition)
            self._texts.add(question.question)
            self._answers[reading.answer] += 1
            kept.append(question)
        return kept

    def _worded(self, composition: Composition, reading: Reading, shape: Shape) -> Question | None:
        """Return the question; None if it gives its answer away, was asked before, or an article cannot be found."""
        entities = self.world.entities
        what = composition.phrase(lambda name: mention(entities[name], self.level, self.rng))
        answer = entities.get(reading.answer)
        who = "who" if answer is not None and answer.kind == "person" else "what"
        text = self.rng.choice(QUESTIONS[: self.level.wordings]).format(who=who, what=what)
        text = text[0].upper() + text[1:]
        if text in self._texts or (set(words_of(reading.answer)) - _EMPTY_WORDS) & set(words_of(text)):
            return None
        known: list[tuple[str, str]] = []
        for lookup in reading.lookups:
            found = self.find(lookup)
            if found is None:
                return None
            known.append(found)
        question = Question(
            id="",
            question=text,
            answers=answer.names if answer else (reading.answer,),
            source="",
            category=shape.category,
            gold_ids=tuple(passage for passage, _ in known),
            path=reading.path,
            queries=tuple(query for _, query in known),
        )
        return None if shape.depth > 1 and self.gives_away(question) else question
