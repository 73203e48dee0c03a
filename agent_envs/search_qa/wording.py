"""The words of generated passages and questions, which are closed lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from agent_envs.search_qa.names import words
from agent_envs.search_qa.relations import MAYOR

__all__ = ["BRIDGE_HINTS", "CLUES", "FILLER", "LETTERS", "NAMESAKES", "QUESTIONS", "SELF", "WORDINGS", "phrase"]

WORDINGS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "author": ("author: {o}.", "{s} was written by {o}.", "{o} is the author of {s}."),
        "publication year": ("publication year: {o}.", "{s} came out in {o}.", "The first edition of {s} is from {o}."),
        "genre": ("genre: {o}.", "{s} is a {o}.", "Readers know {s} as a {o}."),
        "birthplace": ("birthplace: {o}.", "{s} was born in {o}.", "{o} is where {s} was born."),
        "birth year": ("birth year: {o}.", "{s} was born in the year {o}.", "The life of {s} began in {o}."),
        "mother": ("mother: {o}.", "{s} is a child of {o}.", "{o} is the mother of {s}."),
        "employer": ("employer: {o}.", "{s} works for {o}.", "{o} employs {s}."),
        "occupation": ("occupation: {o}.", "{s} is a {o} by trade.", "The trade of {s} is that of a {o}."),
        "seat": ("seat: {o}.", "{s} has its seat in {o}.", "The offices of {s} are in {o}."),
        "founder": ("founder: {o}.", "{s} was founded by {o}.", "{o} founded {s}."),
        "founding year": ("founding year: {o}.", "{s} was set up in {o}.", "The history of {s} begins in {o}."),
        "country": ("country: {o}.", "{s} lies in {o}.", "{s} is a town in {o}."),
        MAYOR: (
            "mayor from {first} to {last}: {o}.",
            "{o} was mayor of {s} from {first} to {last}.",
            "From {first} to {last} the mayor of {s} was {o}.",
        ),
    }
)
"""Relation -> sentences about subject ``{s}`` and object ``{o}``; the first is a note that leaves the subject out."""

CLUES: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        "author": ("author", "written by", "author of"),
        "publication year": ("publication year", "came out", "first edition"),
        "genre": ("genre", "is a work", "readers know"),
        "birthplace": ("birthplace", "born in", "where born"),
        "birth year": ("birth year", "born in the year", "life began"),
        "mother": ("mother", "child of", "mother of"),
        "employer": ("employer", "works for", "employs"),
        "occupation": ("occupation", "by trade", "trade of"),
        "seat": ("seat", "seat in", "offices"),
        "founder": ("founder", "founded by", "founded"),
        "founding year": ("founding year", "set up", "history begins"),
        "country": ("country", "lies in", "town in"),
        MAYOR: ("mayor", "was mayor of", "from to the mayor of"),
    }
)
"""Relation -> words that a searcher adds to a name to find its article."""

BRIDGE_HINTS = ("", " person", " born works for")
"""What a searcher adds to a town and an organisation to find the person that they have in common."""

SELF: Mapping[str, str] = MappingProxyType(
    {"person": "this person", "work": "this work", "town": "this town", "organisation": "this organisation"}
)
"""Kind of entity -> what a sentence calls it instead of its name."""

QUESTIONS = ("{who} is {what}?", "Can you name {what}?", "Could you find out {who} {what} is?")
"""Templates; ``{who}`` is who or what."""

LETTERS = (
    ("Letter", "This letter mentions {a} and {b}."),
    ("Letter", "In a short letter a traveller greets {a} and asks about {b}."),
    ("List", "A list of things seen at the fair names {a} next to {b}."),
    ("List", "The entries {a} and {b} stand on one page of this list."),
)
"""Kind of paper, and a text that names two entities and says nothing else about them."""

NAMESAKES = (
    ("{given} Street", "{given} Street is a street of {number} houses. {given} Street was paved with grey stone."),
    ("{family} House", "{family} House is a house with {number} windows. {family} House stands behind a tall hedge."),
)
"""Titles and texts that have part of a person's name."""

FILLER = words(
    "about above across after again almost along always among around away before behind below beside better between "
    "beyond bright broad calm careful certain clear close common corner daily deep details early easy edge enough "
    "evening every example fair familiar few field fine fresh gentle grass great green ground half heavy hour "
    "inside keep kind large late leaf level light likely little many matter measure middle moment morning narrow "
    "near nearly new next often open order other outside over page paper part path people place plain plenty quick "
    "quite rain rather ready roof room round rule season second several shade shape short side simple slow small "
    "soft some sound space spring steady still stone summer sure table tall thick thin through time together toward "
    "under until useful usual view wall warm water weather week whole wide window winter within wood yard"
)
"""Words without content."""


def phrase(relation: str, of: str) -> str:
    """Name the object of ``relation`` whose subject is called ``of``, as part of a question."""
    return f"the {relation} of {of}"
