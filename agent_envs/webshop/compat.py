"""The interface of the original program's text environment, for replaying recordings made with it."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from itertools import islice
from typing import Any

from agent_envs.base import EnvError
from agent_envs.webshop.session import ObservationMode, Session, Shop

__all__ = ["TextShop"]


@dataclass(frozen=True)
class _Memory:
    """How many earlier pages and actions an observation repeats."""

    pages: int
    actions: int


class TextShop:
    """Sessions by name over one shop; as in the original, a name keeps its goal and steps go on after a purchase.

    Args:
        shop: catalogue, goals and nouns.
        rng: draws session names, goals and random products.
        mode: how pages are shown.
        num_prev_obs: earlier pages that an observation repeats.
        num_prev_actions: earlier actions that an observation repeats.
    """

    def __init__(
        self,
        shop: Shop,
        rng: random.Random,
        mode: ObservationMode = "text",
        num_prev_obs: int = 0,
        num_prev_actions: int = 0,
    ) -> None:
        self._shop = shop
        self._rng = rng
        self._mode: ObservationMode = mode
        self._memory = _Memory(num_prev_obs, num_prev_actions)
        self._sessions: dict[str, Session] = {}
        self._session: Session | None = None
        self._seen: list[str] = []
        self._done: list[str] = []

    @property
    def session(self) -> Session:
        """The running session. Raises ``EnvError`` before the first ``reset``."""
        if self._session is None:
            raise EnvError("WebShop: no session is running; call reset first.")
        return self._session

    def reset(self, session: int | str | None = None) -> tuple[str, None]:
        """Start or restart a session.

        An int is the index of its goal; a name gets a random goal when it is new; None is a new random name.
        """
        name = str(session) if session is not None else "".join(self._rng.choices(string.ascii_lowercase, k=10))
        known = self._sessions.get(name)
        if known is None:
            index = session if isinstance(session, int) else self._shop.book.sample(self._rng)
            known = self._sessions[name] = Session(self._shop, name, self._shop.book[index], self._rng)
        known.reset()
        self._session = known
        self._seen, self._done = [known.observation(self._mode)], []
        return self._seen[0], None

    def step(self, action: str) -> tuple[str, float, bool, None]:
        """Take an action; returns observation, reward, whether it was a purchase, and None."""
        outcome = self.session.step(action)
        page = self.session.observation(self._mode)
        self._done.append(action)
        shown = [page]
        for back in range(max(self._memory.pages, self._memory.actions)):
            shown += islice(reversed(self._done), back, back + 1) if back < self._memory.actions else ()
            shown += islice(reversed(self._seen), back, back + 1) if back < self._memory.pages else ()
        self._seen.append(page)
        return " [SEP] ".join(reversed(shown)), outcome.reward, outcome.done, None

    def get_available_actions(self) -> dict[str, Any]:
        """Return whether the page has a search bar, and the names that can be clicked on it."""
        page = self.session.page
        return {"has_search_bar": page.has_search_bar, "clickables": list(page.targets)}
