"""What a process sets before any heavy import: no usage reports unless the user asks for them, no idle warnings, and a
garbage collector that suits large libraries."""

from __future__ import annotations

import gc
import os
import warnings

__all__ = ["DEFAULTS", "NOISE", "apply", "collect_rarely", "stay_offline"]

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    # The output of Ray's workers is kept in a file: as it is, without colours and without what repeats left out.
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",
    # Rollouts fork after the tokenizers have started threads, which makes them warn on every fork without this.
    "TOKENIZERS_PARALLELISM": "false",
}


NOISE = (
    ("The pynvml package is deprecated", FutureWarning),
    ("Tip: In future versions of Ray", FutureWarning),
    ("The given NumPy array is not writable", UserWarning),
)
"""Warnings of dependencies, by the start of their text, on which a user of this tool cannot act."""


_ALLOCATIONS = 10_000


def apply() -> None:
    """Set each default that the user's environment does not set, silence ``NOISE``, and collect garbage rarely."""
    collect_rarely()
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    for text, category in NOISE:
        warnings.filterwarnings("ignore", message=text, category=category)


def collect_rarely() -> None:
    """Look for garbage after 10,000 new containers instead of Python's 700.

    What imports and episodes allocate mostly stays. Looking through it so often was seen to take about a seventh of the
    CPU time of importing vLLM, and a twentieth of a local iteration.
    """
    gc.set_threshold(_ALLOCATIONS, *gc.get_threshold()[1:])


def stay_offline() -> None:
    """Keep Hugging Face libraries from asking the hub, unless the user's environment says otherwise."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
