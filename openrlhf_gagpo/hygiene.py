"""Process environment set before any heavy import: dependencies send no usage reports unless the user asks them to."""

from __future__ import annotations

import os

__all__ = ["DEFAULTS", "apply"]

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # Rollouts fork after tokenizers have started threads; without this the tokenizers warn on every fork.
    "TOKENIZERS_PARALLELISM": "false",
}


def apply() -> None:
    """Set each default that the user's environment does not set already."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
