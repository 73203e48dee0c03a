"""Facts about this machine, found without importing torch."""

from __future__ import annotations

import os
import runpy
from importlib.util import find_spec
from pathlib import Path

__all__ = ["cores", "gpus", "has_cuda", "has_flash_attention", "torch_has_cuda"]


def gpus() -> int | None:
    """Return the number of NVIDIA devices that CUDA_VISIBLE_DEVICES leaves visible, or None if it is unknown."""
    # The driver's device files; WSL has /dev/dxg instead, for any number of devices.
    present = len(list(Path("/dev").glob("nvidia[0-9]*")))
    unknown = present == 0 and Path("/dev/dxg").exists()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return None if unknown else present
    chosen = len([item for item in visible.split(",") if item.strip() not in ("", "-1")])
    return chosen if unknown else min(chosen, present)


def has_cuda() -> bool:
    """Return whether an NVIDIA device is visible and torch is a build that can use it."""
    return gpus() != 0 and torch_has_cuda()


def torch_has_cuda() -> bool:
    """Return whether the installed torch was built for CUDA; true without torch, which is reported elsewhere."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return True
    version = Path(spec.submodule_search_locations[0]) / "version.py"
    return not version.is_file() or runpy.run_path(str(version)).get("cuda") is not None


def has_flash_attention() -> bool:
    """Return whether flash-attn is installed and a CUDA device can run it."""
    return has_cuda() and find_spec("flash_attn") is not None


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
