"""Notices a phase that takes far longer than it did before, and keeps what every process was doing then."""

from __future__ import annotations

import faulthandler
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.training.loop import Observer

__all__ = ["Watchdog", "own_stacks"]

_FACTOR = 10.0
"""How many times as long as ever before a phase has to take."""
_LEAST_S = 300.0
"""Phases shorter than this are never remarked on."""


class Watchdog:
    """An observer of a run that passes everything on to another one, to be used in a ``with`` statement.

    Args:
        observer: gets every call.
        stacks: returns the stacks of all processes of the run as text.
        folder: where the stacks are written; made when it is needed.
        say: shows a sentence to the user.
        least: seconds below which no phase is remarked on.
    """

    def __init__(
        self,
        observer: Observer,
        stacks: Callable[[], str],
        folder: Path,
        say: Callable[[str], None],
        least: float = _LEAST_S,
    ) -> None:
        self._observer = observer
        self._stacks = stacks
        self._folder = folder
        self._say = say
        self._least = least
        self._longest: dict[str, float] = {}
        self._now: tuple[str, float, threading.Timer | None] | None = None

    def phase(self, iteration: int, name: str, episodes: int) -> None:
        self.end()
        known = self._longest.get(name)
        alarm = None
        if known is not None:
            limit = max(self._least, _FACTOR * known)
            alarm = threading.Timer(limit, self._alarm, (iteration, name, limit))
            alarm.daemon = True
            alarm.start()
        self._now = (name, time.monotonic(), alarm)
        self._observer.phase(iteration, name, episodes)

    def episode(self, episode: Episode) -> None:
        self._observer.episode(episode)

    def iteration(self, iteration: int, metrics: dict[str, float]) -> None:
        self.end()
        self._observer.iteration(iteration, metrics)

    def evaluation(self, iteration: int, metrics: dict[str, float]) -> None:
        self.end()
        self._observer.evaluation(iteration, metrics)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.end()

    def end(self) -> None:
        """Note that the present phase has ended, if there is one."""
        if self._now is None:
            return
        name, started, alarm = self._now
        self._now = None
        if alarm is not None:
            alarm.cancel()
        self._longest[name] = max(self._longest.get(name, 0.0), time.monotonic() - started)

    def _alarm(self, iteration: int, name: str, limit: float) -> None:
        path = self._folder / f"{iteration:05d}-{name.replace(' ', '-').replace(',', '')}.txt"
        try:
            text = self._stacks()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            kept = f"what every process is doing is in {path}"
        except Exception as error:
            # A watchdog that fails must not end what it watches.
            kept = f"what the processes are doing could not be found out ({type(error).__name__}: {error})"
        self._say(
            f"the {name} of iteration {iteration} has taken {limit:.0f} s, far longer than any before it; it goes on, "
            f"and {kept}"
        )


def own_stacks() -> str:
    """Return the stacks of all threads of this process."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
