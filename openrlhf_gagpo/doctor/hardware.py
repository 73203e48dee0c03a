"""Memory, shared memory, disks, limits and GPUs, found without importing torch."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from openrlhf_gagpo import machine
from openrlhf_gagpo.doctor.finding import Finding, Level
from openrlhf_gagpo.machine import GIB

__all__ = ["check_disks", "check_gpus", "check_memory", "check_ray_address", "check_ray_folder", "check_shared_memory"]

_SHARED_MEMORY = Path("/dev/shm")
_DRIVER = Path("/proc/driver/nvidia/version")
_FILES = 4096
_SOCKET_PATH = 107
"""Longest path of a Unix socket in bytes."""
_RAY_SOCKET = "/ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store"


def check_memory() -> Iterator[Finding]:
    """Look at main memory, cores and the limit of open files."""
    here = machine.memory()
    if here is None:
        yield Finding(Level.WARNING, "memory", "unknown: the system does not tell")
    else:
        text = f"{here.available / GIB:.1f} GiB available of {here.total / GIB:.1f}"
        if here.available < GIB:
            yield Finding(Level.PROBLEM, "memory", text, "end other programs, or take a larger machine or container")
        elif here.available < 4 * GIB:
            yield Finding(Level.WARNING, "memory", text, "enough for tiny models on the local backend only")
        else:
            yield Finding(Level.OK, "memory", text)
    cores = machine.cores()
    one = Finding(
        Level.WARNING, "cores", "1", "the distributed backend starts several processes; two cores or more help"
    )
    yield Finding(Level.OK, "cores", f"{cores} ({machine.cpu_model() or 'unknown processor'})") if cores > 1 else one
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _FILES:
        most = "unlimited" if hard == resource.RLIM_INFINITY else hard
        yield Finding(Level.WARNING, "open files", f"at most {soft}", f"ulimit -n {_FILES} (allowed here: {most})")


def check_shared_memory(folder: Path = _SHARED_MEMORY, *, needed: bool = True) -> Finding:
    """Look at the memory that processes share, which containers limit to 64 MiB by default.

    Args:
        needed: whether a backend that may run here cannot do without it.
    """
    advice = "start the container with --shm-size=8g (Docker) or mount a memory volume on /dev/shm (Kubernetes)"
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Finding(
            Level.PROBLEM if needed else Level.WARNING,
            "shared memory",
            f"{folder} is missing or cannot be written",
            advice,
        )
    disk = shutil.disk_usage(folder)
    text = f"{disk.free / GIB:.1f} GiB free of {disk.total / GIB:.1f} in {folder}"
    if disk.free < GIB:
        return Finding(Level.WARNING, "shared memory", f"{text}; Ray and NCCL exchange data there", advice)
    return Finding(Level.OK, "shared memory", text)


def check_disks(run_dir: Path) -> Iterator[Finding]:
    """Look at the free space where runs, temporary files, and models or caches are written."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    seen: set[int] = set()
    for what, folder in (("runs", run_dir), ("temporary files", Path(tempfile.gettempdir())), ("caches", cache)):
        there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.exists(place))
        subject = f"disk of {what}"
        if not os.access(there, os.W_OK):
            yield Finding(Level.PROBLEM, subject, f"{there} cannot be written", _ELSEWHERE[what])
            continue
        # One file system is one finding, whatever is written there.
        if (device := there.stat().st_dev) in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(there).free
        level = Level.PROBLEM if free < GIB / 2 else Level.WARNING if free < 5 * GIB else Level.OK
        advice = "" if level is Level.OK else f"free some space, or {_ELSEWHERE[what]}"
        yield Finding(level, subject, f"{free / GIB:.1f} GiB free in {there}", advice)


_ELSEWHERE = {
    "runs": "name another folder with --run_dir",
    "temporary files": "name another folder in the variables TMPDIR and RAY_TMPDIR",
    "caches": "name another folder in the variable XDG_CACHE_HOME",
}


def check_gpus() -> Finding:
    """Look at the driver, the devices, and whether torch was built for them."""
    models, visible = machine.gpu_models(), machine.gpus()
    if visible == 0 and not models:
        return Finding(Level.OK, "GPU", "none; models run on the CPU")
    names = ", ".join(f"{models.count(name)} x {name}" for name in dict.fromkeys(models)) or "unknown model"
    text = f"{names}, driver {_driver()}"
    if visible == 0:
        hidden = f"{text}; CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')!r} hides all of them"
        return Finding(Level.WARNING, "GPU", hidden, "unset CUDA_VISIBLE_DEVICES to use them")
    if not machine.torch_has_cuda():
        return Finding(
            Level.WARNING,
            "GPU",
            f"{text}; the installed torch is a CPU build and uses none of them",
            "pip install torch==2.13.0 vllm==0.29.0 in a new environment, as the README says",
        )
    return Finding(Level.OK, "GPU", f"{text}, {'unknown number' if visible is None else visible} visible")


def _driver() -> str:
    try:
        found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", _DRIVER.read_text(errors="replace"))
    except OSError:
        return "unknown"
    return found[1] if found else "unknown"


def check_ray_folder() -> Finding | None:
    """Check that the paths of Ray's sockets are not too long; None if they are fine."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if len(f"{folder}{_RAY_SOCKET}") <= _SOCKET_PATH:
        return None
    return Finding(
        Level.PROBLEM, "Ray", f"the folder {folder} makes the paths of its sockets too long", "set RAY_TMPDIR to /tmp"
    )


def check_ray_address() -> Finding | None:
    """Check that the cluster that RAY_ADDRESS names answers; None without one."""
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        named = urlsplit(address if "://" in address else f"//{address}")
        if not named.hostname or not named.port:
            return None
        socket.create_connection((named.hostname, named.port), timeout=3).close()
    except (OSError, ValueError) as error:
        return Finding(
            Level.PROBLEM,
            "Ray",
            f"RAY_ADDRESS names {address}, where nothing answers ({getattr(error, 'strerror', None) or error})",
            "unset RAY_ADDRESS, or start that cluster",
        )
    return Finding(Level.OK, "Ray", f"RAY_ADDRESS names {address}, which answers")
