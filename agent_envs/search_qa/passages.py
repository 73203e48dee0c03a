"""Passages of a generated world: an article on each entity, and others that answer nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from agent_envs.search_qa.levels import SPLITS, Level
from agent_envs.search_qa.relations import MAYOR
from agent_envs.search_qa.wording import FILLER, LETTERS, NAMESAKES, SELF, WORDINGS
from agent_envs.search_qa.world import Entity, World

__all__ = ["Passage", "make_passages", "mention"]

_MOST_WORDS = 100
"""Of an article: what a search shows of a passage by default."""
_SENTENCE = 10
"""Words of a sentence without content."""


class Passage(NamedTuple):
    """A passage; ``subject`` is the entity whose article it is, or ""."""

    title: str
    text: str
    subject: str = ""

    @property
    def contents(self) -> str:
        """The passage in the form in which corpus files have it."""
        return f'"{self.title}"\n{self.text}'


def make_passages(world: World, level: Level, seed: int) -> list[Passage]:
    """Write the passages of a world, in random order; equal arguments give equal passages."""
    rng = random.Random(f"search_qa/passages/{seed}")
    passages = [_article(world, entity, level, rng) for entity in world.entities.values()]
    passages += _letters(world, level, rng)
    passages += _namesakes(world, level, rng)
    rng.shuffle(passages)
    return passages


def mention(entity: Entity, level: Level, rng: random.Random) -> str:
    """Return the entity's name, or sometimes its alias."""
    return entity.alias if entity.alias and rng.random() < level.alias_rate else entity.name


def _article(world: World, entity: Entity, level: Level, rng: random.Random) -> Passage:
    facts = [(relation, {"o": _said(world, value, level, rng)}) for relation, value in world.facts[entity.name].items()]
    for term in world.mayors.get(entity.name, ()):
        slots = {"first": str(term.first), "last": str(term.last), "o": _said(world, term.person, level, rng)}
        facts.append((MAYOR, slots))
    rng.shuffle(facts)
    name = entity.name if rng.random() < level.restated else ""
    sentences: list[str] = []
    for relation, slots in facts:
        # Only the first sentence may repeat the name.
        subject = name if not sentences and name else SELF[entity.kind]
        wording = rng.choice(WORDINGS[relation][: level.wordings])
        sentence = wording.format(s=subject, **slots)
        if not sentences and name and "{s}" not in wording:
            sentence = f"{name}. {_begin(sentence, level)}"
        sentences.append(_begin(sentence, level))
    room = _MOST_WORDS - sum(len(sentence.split()) for sentence in sentences)
    for sentence in _filler(min(level.filler, room), rng):
        # Never before the first sentence, which may have the name.
        sentences.insert(rng.randint(1, len(sentences)), sentence)
    return Passage(entity.name, " ".join(sentences), entity.name)


def _said(world: World, value: str, level: Level, rng: random.Random) -> str:
    entity = world.entities.get(value)
    return value if entity is None else mention(entity, level, rng)


def _begin(sentence: str, level: Level) -> str:
    # Notes use a relation's noun as questions write it, which is one word less to learn for a tiny model.
    return sentence if level.wordings == 1 else sentence[0].upper() + sentence[1:]


def _filler(words: int, rng: random.Random) -> Iterator[str]:
    while words > 0:
        sentence = " ".join(rng.choices(FILLER, k=min(_SENTENCE, words)))
        yield f"{sentence.capitalize()}."
        words -= _SENTENCE


def _letters(world: World, level: Level, rng: random.Random) -> Iterator[Passage]:
    by_split: dict[str, list[Entity]] = {split: [] for split in SPLITS}
    for entity in world.entities.values():
        by_split[entity.split].append(entity)
    number = 0
    for members in by_split.values():
        for _ in range(round(level.distract * len(members))):
            paper, text = rng.choice(LETTERS)
            a, b = (mention(entity, level, rng) for entity in rng.sample(members, 2))
            # Five digits or more, so that no number reads like a year.
            # As long as articles are: a search engine prefers short passages.
            text = " ".join((text.format(a=a, b=b), *_filler(level.filler, rng)))
            yield Passage(f"{paper} no. {number:05d}", text)
            number += 1


def _namesakes(world: World, level: Level, rng: random.Random) -> Iterator[Passage]:
    for entity in world.entities.values():
        if entity.kind == "person":
            given, family = entity.name.split()
            for title, text in NAMESAKES[: level.namesakes]:
                words = {"given": given, "family": family, "number": rng.randint(3, 99)}
                yield Passage(title.format(**words), text.format(**words))
