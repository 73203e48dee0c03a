"""Run gagpo on the distributed backend and write where its CPU seconds go: to start, by process, and in each iteration.

"Start" is everything until the second iteration begins, so that what is imported or compiled at first use counts too.
The code that runs is whichever ``openrlhf_gagpo`` comes first on the path (see ``phases.py``).

    PYTHONPATH=../before python benchmarks/stack_cpu.py seconds.json train --config ...
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from iteration_cpu import by_process, tree_seconds

from openrlhf_gagpo.cli.main import main as gagpo
from openrlhf_gagpo.training.loop import Trainer


def by_role(backend: Any) -> dict[str, float]:
    """CPU seconds so far of the driver, of every model's worker and engine, of the environments, and of Ray itself.

    An engine is two processes: the worker that plays, and vLLM's own, which runs the model.
    """
    names = {place.pid: place.name for place in (*backend._places, *backend.fleet.places)}
    names[os.getpid()] = "driver"
    seconds: Counter[str] = Counter()
    for pid, spent in by_process().items():
        seconds[names.get(pid) or _role(pid)] += spent
    return dict(seconds)


def _role(pid: int) -> str:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended meanwhile
        return "Ray"
    if command.startswith("VLLM"):
        return "vLLM's engine core"
    return "environments" if "agent_envs" in command else "Ray"


def main() -> int:
    out, arguments = Path(sys.argv[1]), sys.argv[2:]
    start: dict[str, float] = {}
    iterations: list[float] = []
    updates: list[float] = []
    iterate = Trainer.iterate

    def measured(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        if len(iterations) == 1:
            start.update(by_role(trainer.backend))
        backend: Any = trainer.backend
        update = type(backend).update

        def counted(*given: Any, **named: Any) -> Any:
            before = tree_seconds()
            result = update(backend, *given, **named)
            updates.append(tree_seconds() - before)
            return result

        backend.update = counted
        before = tree_seconds()
        result = iterate(trainer, *args, **kwargs)
        iterations.append(tree_seconds() - before)
        return result

    Trainer.iterate = measured  # type: ignore[method-assign]
    status = gagpo(arguments)
    out.write_text(json.dumps({"start": start, "iterations": iterations, "updates": updates}), encoding="utf-8")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
