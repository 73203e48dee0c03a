"""Runs of ``gagpo`` in forked processes that are told to stop, or whose disk fills up, when they reach a place."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from support.paths import REPOSITORY

__all__ = ["Ended", "Place", "run_to"]

_SUBREAPER = 36
_GONE_S = 10.0
"""Time in which all processes of a run have to be gone."""


@dataclass(frozen=True)
class Place:
    """The ``call``-th call of a function, where a run meets ``event``: a signal's number, or a full disk."""

    owner: str
    """What has the function: a module or a class, as ``pkgutil.resolve_name`` takes it."""
    function: str
    call: int = 1
    event: int | str = signal.SIGTERM

    FULL = "full"


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    status: int
    out: str
    err: str
    left: list[str]
    """Command lines of its processes that were still there after ten seconds."""


def run_to(folder: Path, runs: Mapping[str, tuple[Place, Sequence[str]]]) -> dict[str, Ended]:
    """Run each command line up to its place, one after the other; the imports are shared."""
    given = {name: {"place": asdict(place), "argv": list(argv)} for name, (place, argv) in runs.items()}
    (folder / "given.json").write_text(json.dumps(given))
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    env["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
    code = f"from support.told_to_stop import _main; _main({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads((folder / "ended.json").read_text())
    return {name: Ended(**result) for name, result in results.items()}


def _main(folder: str) -> None:
    # Processes whose parent has ended become children of this one, so that none is overlooked.
    ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    # Everything that is heavy, and nothing that starts a thread.
    import openrlhf_gagpo.backends.local
    import openrlhf_gagpo.run  # noqa: F401

    root = Path(folder)
    results = {}
    for name, given in json.loads((root / "given.json").read_text()).items():
        pid = os.fork()
        if pid == 0:
            _child(root / name, Place(**given["place"]), given["argv"])
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        _, left = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=_GONE_S)
        lines = [" ".join(process.cmdline()) for process in left]
        for process in left:
            process.kill()
        out, err = (Path(f"{root / name}.{stream}").read_text() for stream in ("out", "err"))
        results[name] = asdict(Ended(status, out, err, lines))
    (root / "ended.json").write_text(json.dumps(results))


def _child(where: Path, place: Place, argv: list[str]) -> None:
    status = 99
    try:
        for descriptor, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{where}.{stream}", os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
        from openrlhf_gagpo.cli.main import main

        owner = pkgutil.resolve_name(place.owner)
        original, calls = getattr(owner, place.function), itertools.count(1)

        def replaced(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == place.call:
                _happen(place.event)
            return original(*args, **kwargs)

        setattr(owner, place.function, replaced)
        status = main(argv)
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _happen(event: int | str) -> None:
    if isinstance(event, int):
        os.kill(os.getpid(), event)
        # The handler runs before the next line does, also where the function to be called is compiled code.
        time.sleep(0)
        return
    # What is larger than this cannot be written, which needs no file system of its own.
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 2**10, hard))
