"""Names of a generated world's entities: closed lists, lengthened by made-up words where a world needs more."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

__all__ = ["COUNTRIES", "GENRES", "NameMaker", "OCCUPATIONS", "words"]


def words(text: str) -> tuple[str, ...]:
    """Return the words of a list that is written as one text."""
    return tuple(text.split())


_GIVEN = words(
    "Arvel Brisa Corvan Delmy Eskar Fennick Gorla Halvin Ilsu Jorrik Kesta Lumo Marnix Nevva Orlin Pirra Quenby "
    "Rostal Sivra Tolvar Umbri Veska Wendrik Zofian"
)
_FAMILY = words(
    "Abernold Brackwin Callowen Dunmarsk Ellingrove Farthane Grendall Hollvik Imberly Jessamund Kittrow Larkspane "
    "Mossgard Nettlow Oxbrand Pellworth Quillane Rookmere Stannard Thistleby Uxford Vantrow Wexlin Yarrolt"
)
_ADJECTIVES = words(
    "Amber Borrowed Crimson Distant Empty Frozen Gilded Hollow Ivory Jagged Kindled Lonely Mirrored Northern Opaque "
    "Patient Quiet Restless Silver Twisted"
)
_NOUNS = words(
    "Anchor Bridge Candle Doorway Ember Feather Garden Harbour Island Journey Kettle Lantern Meadow Needle Orchard "
    "Pendulum Quarry River Staircase Thread"
)
_TOWN_FIRST = words("Ashel Bram Cold Dray Elder Fallow Gull Hart Iron Kell Long Mill Nor Otter Pine Raven")
_TOWN_LAST = words("Abbey Bay Cross Dale End Ford Gate Heath Inlet Keep Lock Moor Narrows Point Ridge Wells")
_ORGANISATIONS = words(
    "Altiveen Bexmoor Cindral Dovanel Emberlux Fjordane Gantry Helixon Ionder Juneval Kormand Luxmere Meridane "
    "Nordavel Optivane Pallador"
)
_TYPES = words("Bank Brewery Foundry Institute Laboratory Library Observatory Press Railway Shipyard Theatre Union")

COUNTRIES = words("Alvania Borland Cestria Drumond Eskaria Feldmark Gravonia Hestland Ilmenia Jorvania Kelmark Lowenia")
GENRES = words("ballad chronicle comedy fable memoir novel parable play poem romance satire thriller")
OCCUPATIONS = words(
    "baker barber beekeeper blacksmith bookbinder brewer butcher carpenter clockmaker cobbler cook cooper courier "
    "dancer drummer dyer farrier ferryman fiddler fisher gardener glazier goldsmith grocer hatter joiner mason "
    "miller miner nurse painter pilot plumber porter potter roofer saddler sailor shepherd surveyor tailor tanner "
    "teacher tinker weaver wheelwright"
)

_ONSETS = words("b bl br c cl d dr f fl g gl gr h j k l m n p pl pr r s sl st t tr v w z")
_VOWELS = words("a e i o u")
_CODAS = words("l m n r s ld lm nd rn rt sk")


class NameMaker:
    """Makes distinct names of two words; a pool that the lists are too small for gets longer lists.

    Args:
        rng: decides about everything.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        lists = (_GIVEN, _FAMILY, _ADJECTIVES, _NOUNS, _TOWN_FIRST, _TOWN_LAST, _ORGANISATIONS, _TYPES, COUNTRIES)
        self._taken = {word for known in lists for word in known}

    def persons(self, count: int) -> list[tuple[str, str]]:
        """Return ``count`` pairs of given name and family name."""
        return self._both(_GIVEN, _FAMILY, count)

    def works(self, count: int) -> list[tuple[str, str]]:
        """Return ``count`` pairs of adjective and noun."""
        return self._both(_ADJECTIVES, _NOUNS, count)

    def towns(self, count: int) -> list[tuple[str, str]]:
        """Return ``count`` pairs of the two parts of a town's name."""
        return self._both(_TOWN_FIRST, _TOWN_LAST, count)

    def organisations(self, count: int) -> list[tuple[str, str]]:
        """Return ``count`` pairs of name and type."""
        names: Sequence[str] = _ORGANISATIONS
        if len(names) * len(_TYPES) < count:
            names = self._longer(names, math.ceil(1.2 * count / len(_TYPES)))
        return self._pairs(names, _TYPES, count)

    def _both(self, first: Sequence[str], last: Sequence[str], count: int) -> list[tuple[str, str]]:
        if len(first) * len(last) < count:
            # One pair in 1.44 is used, so that neither word of a name gives away the other.
            size = math.ceil(1.2 * math.sqrt(count))
            first, last = self._longer(first, size), self._longer(last, size)
        return self._pairs(first, last, count)

    def _pairs(self, first: Sequence[str], last: Sequence[str], count: int) -> list[tuple[str, str]]:
        places = self._rng.sample(range(len(first) * len(last)), count)
        return [(first[place // len(last)], last[place % len(last)]) for place in places]

    def _longer(self, known: Sequence[str], size: int) -> list[str]:
        longer = list(known)
        while len(longer) < size:
            syllables = (self._rng.choice(_ONSETS) + self._rng.choice(_VOWELS) for _ in range(2))
            word = ("".join(syllables) + self._rng.choice(_CODAS)).capitalize()
            if word not in self._taken:
                self._taken.add(word)
                longer.append(word)
        return longer
