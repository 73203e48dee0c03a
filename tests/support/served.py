"""A run with hostile texts for the viewer, and a server in a thread."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from openrlhf_gagpo.rollout.records import write_episodes
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.viewer.app import make_app
from openrlhf_gagpo.viewer.store import Store
from support.report_runs import episode, make_run, training_row

HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">\x1b[31m"


def hostile_run(path: Path, *, iterations: int = 3) -> RunFolder:
    """A run as ``make_run`` makes it, whose last iteration has hostile texts everywhere."""
    run = make_run(path, iterations=iterations)
    add_iteration(run, iterations, HOSTILE, log=False)
    return run


def add_iteration(run: RunFolder, iteration: int, text: str, *, log: bool = True) -> None:
    """Record eight episodes in two groups, the first of them with ``text`` in every place."""
    played = [episode(n, success=n % 3 == 0) for n in range(8)]
    first = played[0]
    first.task, first.category, first.error = text, text, text
    first.extra = {"final_observation": text}
    for step in first.steps:
        step.observation = step.action = step.response = text
    credit = {
        (e.group, e.trajectory, s.index): {"advantage": (-1.0) ** s.index * 0.5, "return": e.episode_return}
        for e in played
        for s in e.steps
    }
    write_episodes(run.rollout_path(iteration), played, credit)
    if log:
        run.append_metrics(iteration, training_row(iteration))


@contextmanager
def served(*paths: Path) -> Iterator[str]:
    """Serve ``paths`` on a free port of loopback and give the address."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    server = uvicorn.Server(uvicorn.Config(make_app(Store(paths)), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
