"""Where the repository and its parts lie."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DATA", "REPOSITORY", "SUPPORT"]

SUPPORT = Path(__file__).resolve().parent
DATA = SUPPORT.parent / "data"
REPOSITORY = SUPPORT.parents[1]
