"""Whether backends can be imported, tried in child processes, since such imports are slow and may end their process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from openrlhf_gagpo import hygiene, machine
from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.doctor.finding import Finding, Level

__all__ = ["check_imports"]

_TIMEOUT_S = 300.0
_MARK = "gagpo-doctor:"
# The import is the backend's own, so that everything that it stands on is tried in the way in which a run does it.
_PROGRAM = """
import importlib, json, sys, time
started = time.perf_counter()
importlib.import_module(sys.argv[1])
seconds = time.perf_counter() - started
import torch
facts = {"seconds": seconds, "torch": torch.__version__, "cuda": torch.version.cuda, "devices": []}
for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    device = torch.cuda.get_device_properties(index)
    facts["devices"].append(f"{device.name}, {device.total_memory / 2**30:.0f} GiB")
for name in ("vllm", "ray"):
    if name in sys.modules:
        facts[name] = sys.modules[name].__version__
print(sys.argv[2] + json.dumps(facts))
"""


def check_imports(backends: Sequence[str]) -> Iterator[Finding]:
    """Import each backend in a process of its own, all at once, and say what came of it."""
    hygiene.apply()
    children = {name: _start(BACKENDS[name].target.partition(":")[0]) for name in backends}
    for name, child in children.items():
        yield from _result(f"{name} backend", child)


def _start(module: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _PROGRAM, module, _MARK]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )


def _result(subject: str, child: subprocess.Popen[str]) -> Iterator[Finding]:
    try:
        out, err = child.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        yield Finding(
            Level.WARNING, subject, f"was not imported within {_TIMEOUT_S:.0f} s", "look for a slow disk, and try again"
        )
        return
    answer = next((line for line in out.splitlines() if line.startswith(_MARK)), "")
    if child.returncode or not answer:
        cause = (err.strip().splitlines() or [f"it ended with status {child.returncode}"])[-1]
        yield Finding(Level.PROBLEM, subject, f"cannot be imported: {cause[:300]}", "install the tested versions")
        return
    facts: dict[str, Any] = json.loads(answer.removeprefix(_MARK))
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "vllm", "ray") if name in facts)
    on = ", ".join(facts["devices"]) or "CPU"
    yield Finding(Level.OK, subject, f"imported in {facts['seconds']:.1f} s: {versions}, on {on}")
    if machine.gpus() and facts["cuda"] and not facts["devices"]:
        yield Finding(
            Level.PROBLEM,
            "GPU",
            f"torch was built for CUDA {facts['cuda']} and finds no usable device",
            "run nvidia-smi; update the driver, or give the container access to the GPUs (--gpus all)",
        )
