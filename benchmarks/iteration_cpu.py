"""Run gagpo and write the CPU seconds of its iterations, from first reset to sync, without start and evaluations.

The time of the environment processes that live during an iteration counts too. The code that runs is whichever
``openrlhf_gagpo`` comes first on the path, so that an earlier checkout is measured in the same way.

    PYTHONPATH=../before python benchmarks/iteration_cpu.py seconds.json train --config ...
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from openrlhf_gagpo.cli.main import main as gagpo
from openrlhf_gagpo.training.loop import Trainer


def tree_seconds() -> float:
    """CPU seconds so far of this process, of its children that have ended, and of its living descendants."""
    return sum(by_process().values())


def by_process() -> dict[int, float]:
    """CPU seconds so far of this process and its living descendants, by number, each with children that have ended."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may contain spaces. After it: state, parent, ..., and as numbers 12 to 15 the user
            # and system time of the process itself and of its children that have ended.
            words = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        pid = int(path.parent.name)
        parents[pid], ticks[pid] = int(words[1]), sum(map(int, words[11:15]))
    seconds = {pid: ticks[pid] / os.sysconf("SC_CLK_TCK") for pid in ticks if _descends(pid, parents)}
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return seconds | {os.getpid(): sum(usage.ru_utime + usage.ru_stime for usage in used)}


def _descends(pid: int, parents: dict[int, int]) -> bool:
    """Whether ``pid`` is a process that this one started, directly or not."""
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False


def main() -> int:
    out, arguments = Path(sys.argv[1]), sys.argv[2:]
    seconds: list[float] = []
    iterate = Trainer.iterate

    def measured(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        before = tree_seconds()
        result = iterate(trainer, *args, **kwargs)
        seconds.append(tree_seconds() - before)
        return result

    Trainer.iterate = measured  # type: ignore[method-assign]
    status = gagpo(arguments)
    out.write_text(json.dumps(seconds), encoding="utf-8")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
