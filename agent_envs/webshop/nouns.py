"""Which words of a title are nouns: spaCy's English model where it is installed, else a word list."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
from collections.abc import Callable
from functools import cache, lru_cache

from agent_envs.base import EnvError

__all__ = ["NounFinder", "find_nouns", "finder_name", "rule_nouns"]

NounFinder = Callable[[str], list[str]]
"""Takes a title, returns its nouns in lower case, in order and with repeats; an attribute ``name`` is its name."""

_MODEL = "en_core_web_sm"
_NOUN_TAGS = ("NOUN", "PROPN")
_WORD = re.compile(r"[A-Za-z]+")

# Short function words, and describing words that are common in product titles.
_NO_NOUNS = frozenset(
    """
    a about above after all also an and any are as at be been below between both but by can do does each for from had
    has have he her his how if in inside into is it its just made more most my no nor not of off on only or other our
    out over own per s she so some such t than that the their them then these they this those through to too under up
    upon us very via was we were what when where which while who why will with within without you your
    absorbent active adjustable airy all-new anti artificial authentic automatic basic beautiful best big black blue
    breathable bright brown casual cheap classic clean clear closed cold colorful comfortable compact compatible
    complete cool cordless cozy crunchy cute daily damaged dark decorative deep delicious deluxe detachable digital
    disposable double dried dry dual durable easy elastic electric elegant essential everyday extra fast fine flat
    flexible floral foldable folding fresh full fun funny genuine gentle golden good gray great green grey handmade
    happy hard healthy heavy high hot huge ideal indoor inflatable instant insulated large lightweight light little
    long loose low luxurious luxury magnetic male matte medium mid mini modern moisturizing multi multicolor natural
    navy new nice non nonslip novel old open optical oral orange organic original outdoor oversized perfect personal
    pink plain plush portable powerful practical premium printed professional pure purple quick quiet ready real
    rechargeable red reusable rich rigid round royal rustic safe salted scented seamless sectional sensitive sexy sharp
    short simple single skinny slim small smart smooth soft solid special sporty square standard sterile stretchy
    strong stylish sturdy sweet tall thick thin tiny traditional trendy triple ultra unique universal unscented
    unsweetened useful vegan versatile vibrant vintage violet warm washable waterproof wearable white whole wide
    wild wireless womens wooden woven yellow young
    """.split()  # noqa: SIM905  a list of two hundred strings reads worse
)

_TOLD = "GAGPO_WEBSHOP_NOUNS_TOLD"
"""Variable that tells the processes which this one starts that the user knows."""

_log = logging.getLogger(__name__)


def rule_nouns(title: str) -> list[str]:
    """Every run of letters that is no function word and no common describing word."""
    return [word for word in _WORD.findall(title.lower()) if word not in _NO_NOUNS]


rule_nouns.name = "word list"  # type: ignore[attr-defined]


def find_nouns(rule: str) -> NounFinder:
    """The finder called ``auto``, ``spacy``, ``words`` or ``module:function``.

    ``auto`` is spaCy's tagger where its model is installed, else the word list with one warning, which processes
    that are started later do not repeat.

    Raises:
        EnvError: it is not there.
    """
    if rule == "auto":
        return _default()
    if rule == "words":
        return rule_nouns
    if rule == "spacy":
        tagger = _tagger()
        if tagger is None:
            raise EnvError(f"nouns is 'spacy', but spacy or its model {_MODEL} is not installed; install both.")
        return tagger
    module, _, function = rule.partition(":")
    try:
        if module and function:
            finder: NounFinder = getattr(importlib.import_module(module), function)
            return finder
        problem = "there is no rule of that name"
    except (ImportError, AttributeError) as error:
        problem = str(error)
    raise EnvError(f"nouns is {rule!r} ({problem}); use auto, spacy, words or module:function.")


def finder_name(finder: NounFinder) -> str:
    """How a run's record calls a finder."""
    return str(getattr(finder, "name", getattr(finder, "__name__", "custom")))


@cache
def _default() -> NounFinder:
    tagger = _tagger()
    if tagger is not None:
        return tagger
    if os.environ.get(_TOLD):
        return rule_nouns
    os.environ[_TOLD] = "1"
    _log.warning(
        "WebShop finds nouns with a word list, so its type reward differs a little from the original; "
        "install spacy and its model %s for the original's rule.",
        _MODEL,
    )
    return rule_nouns


@cache
def _tagger() -> NounFinder | None:
    # The import of spacy takes seconds, so the model is looked for first.
    if importlib.util.find_spec(_MODEL) is None:
        return None
    try:
        import spacy

        model = spacy.load(_MODEL, disable=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError):
        return None

    @lru_cache(maxsize=1 << 14)
    def tagged(title: str) -> tuple[str, ...]:
        return tuple(token.text.lower() for token in model(title) if token.pos_ in _NOUN_TAGS)

    def nouns(title: str) -> list[str]:
        return list(tagged(title))

    nouns.name = f"spacy {_MODEL} {model.meta['version']}"  # type: ignore[attr-defined]
    return nouns
