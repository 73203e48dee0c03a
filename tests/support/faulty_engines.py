"""What an engine's worker is made to do in tests of faults; its process imports this module."""

from __future__ import annotations

import time


def hang(worker: object) -> None:
    """Occupy the engine for longer than any test waits."""
    time.sleep(600)
