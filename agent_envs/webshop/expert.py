"""An expert that knows which product the goal was made from: it searches, pages to it, chooses its options and buys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from agent_envs.webshop.goals import Goal
from agent_envs.webshop.pages import BACK, BUY, NEXT, PREV, RESULTS_PER_PAGE, SEARCH, SUB_PAGES, Kind
from agent_envs.webshop.reward import options_met
from agent_envs.webshop.session import Session, parse_action

__all__ = ["expert_action"]

_NEAR = 3 * RESULTS_PER_PAGE
"""Search words are good enough if they list the product no further down than this."""
_BUTTONS = frozenset(name.lower() for name in (BACK, BUY, NEXT, PREV, SEARCH, *SUB_PAGES))


def expert_action(session: Session) -> str:
    """Return the expert's action on the session's current page."""
    goal, page = session.goal, session.page
    if session.product is not None and session.product.asin == goal.asin:
        if BUY.lower() not in page.targets:
            return f"click[{PREV.lower()}]"
        return _choose(session) or f"click[{BUY.lower()}]"
    if goal.asin.lower() in page.targets:
        return f"click[{goal.asin.lower()}]"
    words, place = _words(session)
    here = session.page_number if session.keywords == words.split(" ") and session.product is None else None
    if here is not None and place // RESULTS_PER_PAGE + 1 > here and NEXT.lower() in page.targets:
        return f"click[{NEXT.lower()}]"
    return f"search[{words}]"


def _words(session: Session) -> tuple[str, int]:
    """Return the words to search for, and the product's place in the resulting list.

    Words that a reader of the instruction could think of are tried first, then the product's own title.
    """
    goal = session.goal
    wanted = goal.goal_options.values() if isinstance(goal.goal_options, Mapping) else goal.goal_options
    kind = " ".join((*goal.attributes, goal.query))
    best: tuple[int, str] | None = None
    for text in (kind, " ".join((kind, *wanted)), goal.instruction_text, goal.name, f"<q> {goal.query}"):
        words = re.sub(r"[\[\]\s]+", " ", text).strip().lower()
        place = _place(session, words, goal)
        if place is not None and (best is None or place < best[0]):
            best = (place, words)
        if best is not None and best[0] < _NEAR:
            break
    return (best[1], best[0]) if best else (goal.query or goal.asin.lower(), 0)


def _place(session: Session, words: str, goal: Goal) -> int | None:
    # A title may begin with text that the shop reads as a command.
    if not words or (words.startswith("<") and not words.startswith("<q> ")):
        return None
    found: Sequence[int] = session.find(words.split(" "))
    return found.index(goal.number) if goal.number in found else None


def _choose(session: Session) -> str | None:
    """Return a click on an option that is still wanted, or None if no more of them can be chosen."""
    wanted = session.goal.goal_options
    wishes = list(wanted.items()) if isinstance(wanted, Mapping) else list(wanted)
    chosen = list(session.options.values())
    clickable = {
        value: target.option
        for value, target in session.page.targets.items()
        if target.kind is Kind.OPTION and value not in _BUTTONS and parse_action(f"click[{value}]") == ("click", value)
    }
    for wish in wishes:
        if options_met(chosen, [wish]):
            continue
        exact = wish[1] if isinstance(wish, tuple) else wish.lower()
        fitting = sorted((value for value in clickable if options_met([value], [wish])), key=lambda v: v != exact)
        for value in fitting:
            replaced = session.options.get(clickable[value])
            if replaced is None or not options_met([replaced], wishes):
                return f"click[{value}]"
    return None
