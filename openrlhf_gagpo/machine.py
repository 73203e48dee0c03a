"""Facts about this machine, found without importing torch."""

from __future__ import annotations

import os
import re
import runpy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

__all__ = [
    "GIB",
    "Memory",
    "cores",
    "cpu_model",
    "gpu_models",
    "gpus",
    "has_cuda",
    "has_flash_attention",
    "memory",
    "process_memory_peak",
    "summary",
    "torch_has_cuda",
]

GIB = 2**30
# Limit and use of a container, in version 2 and version 1 of control groups.
_CGROUPS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


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


@dataclass(frozen=True)
class Memory:
    """Main memory that this process may use, in bytes: a container's share where one is limited."""

    total: int
    available: int

    @property
    def used(self) -> int:
        """What is taken, by whatever process."""
        return self.total - self.available


def memory() -> Memory | None:
    """Return the memory of this machine or container; None where the system does not tell."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        return None
    for limit_name, used_name in _CGROUPS:
        try:
            limit, used = (int((Path("/sys/fs/cgroup") / name).read_text()) for name in (limit_name, used_name))
        except (OSError, ValueError):
            continue
        if limit < total:
            spare = limit - used + _idle_file_pages(Path("/sys/fs/cgroup") / used_name)
            return Memory(limit, max(0, min(available, spare)))
    return Memory(total, available)


def _idle_file_pages(used: Path) -> int:
    """Return the bytes of a container's ``used`` memory that hold files nobody reads now; they are freed on demand."""
    try:
        facts = dict(line.split() for line in used.with_name("memory.stat").read_text().splitlines())
        return int(facts.get("total_inactive_file") or facts["inactive_file"])
    except (OSError, ValueError, KeyError):
        return 0


def process_memory_peak() -> int:
    """Return the most main memory that this process has held so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_model() -> str:
    """Return the name of the processor; "" where the system does not tell."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""


def gpu_models() -> list[str]:
    """Return the names of all NVIDIA devices that the driver knows, also of those that are hidden from this process."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        found = re.search(r"^Model:\s*(.+)$", file.read_text(errors="replace"), re.MULTILINE)
        names.append(found[1].strip() if found else "unknown model")
    return names


def summary() -> dict[str, str]:
    """Return what a run records about its machine: processor, cores, memory and GPUs."""
    here, models = memory(), gpu_models()
    return {
        "cpu": cpu_model(),
        "cores": str(cores()),
        "memory": "" if here is None else f"{here.total / GIB:.1f} GiB",
        "gpus": ", ".join(f"{models.count(name)} x {name}" for name in dict.fromkeys(models)) or "none",
    }
