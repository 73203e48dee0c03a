"""Recorded cases of losses, corrections and filters, read from beside the checkout where they exist."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.paths import REPOSITORY

__all__ = ["CASES", "MORE"]

MORE: Path = REPOSITORY.parent / "shared" / "golden" / "estimators" / "more.jsonl"

CASES: list[dict[str, Any]] = (
    [json.loads(line) for line in MORE.read_text(encoding="utf-8").splitlines()] if MORE.exists() else []
)
"""Empty where the file is absent."""
