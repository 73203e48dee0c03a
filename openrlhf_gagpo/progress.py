"""A run's output in the terminal: progress while it works, one line per iteration, a table at the end."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from openrlhf_gagpo.rollout.types import Episode

__all__ = ["ProgressDisplay", "summary_table"]


class ProgressDisplay:
    """A ``training.loop.Observer`` for a console, and a context manager. Without a terminal it prints plain lines."""

    def __init__(self, iterations: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self.iterations = iterations
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
            # A console with a stream of its own is apart from what others write, and stays so.
            redirect_stdout=self.console.file is sys.stdout,
            redirect_stderr=self.console.file is sys.stdout,
        )
        self._task = self._progress.add_task("starting", total=None)
        self._won = 0

    def __enter__(self) -> ProgressDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """Print a line above the progress display."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stage(self, text: str, seconds: float) -> None:
        """Print that a stage of the start has ended, and how long it took."""
        self.note(f"{text:<24}{seconds:>6.1f} s")

    @contextmanager
    def timed(self, text: str) -> Iterator[None]:
        """Print ``text`` as a stage when the block has ended without an error."""
        started = perf_counter()
        yield
        self.stage(text, perf_counter() - started)

    def phase(self, iteration: int, name: str, episodes: int) -> None:
        self._won = 0
        title = f"iteration {iteration}/{self.iterations}: {name}" if iteration else name
        self._progress.reset(self._task, description=title, total=episodes or None)

    def progress(self, name: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` pieces of ``name`` are finished."""
        self._progress.update(self._task, description=name, completed=done, total=total)

    def episode(self, episode: Episode) -> None:
        self._won += episode.success
        self._progress.update(self._task, advance=1)

    def iteration(self, iteration: int, metrics: Mapping[str, float]) -> None:
        parts = [
            f"iteration {iteration:>3}/{self.iterations}",
            f"success {metrics['rollout/success']:.3f}",
            f"length {metrics['rollout/episode_length']:.1f}",
        ]
        if "policy/grad_norm" in metrics:
            parts.append(f"grad norm {metrics['policy/grad_norm']:.3f}")
        if "policy/kl_ref" in metrics:
            parts.append(f"kl {metrics['policy/kl_ref']:.4f}")
        if metrics["rollout/faulted_episodes"]:
            parts.append(f"faulted {metrics['rollout/faulted_episodes']:.0f}")
        parts.append(f"{metrics['time/iteration']:.1f} s")
        self.note("  ".join(parts))

    def evaluation(self, iteration: int, metrics: Mapping[str, float]) -> None:
        self.note(
            f"evaluation after iteration {iteration}: success {metrics['eval/success']:.3f} "
            f"[{metrics['eval/success_low']:.3f}, {metrics['eval/success_high']:.3f}] "
            f"on {metrics['eval/tasks']:.0f} tasks" + _greedy(metrics)
        )


def _greedy(metrics: Mapping[str, float]) -> str:
    return f", greedy {metrics['eval/greedy_success']:.3f}" if "eval/greedy_success" in metrics else ""


def summary_table(evaluations: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]]) -> Table:
    """Build a table of the first and last evaluation, or of the first and last iteration without evaluations."""
    keys: tuple[str, ...]
    if evaluations:
        title, rows, keys = "evaluation", evaluations, ("eval/success", "eval/return", "eval/episode_length")
        if any("eval/greedy_success" in row for row in evaluations):
            keys = ("eval/success", "eval/greedy_success", *keys[1:])
    else:
        title, rows, keys = "rollouts", metrics, ("rollout/success", "rollout/return", "rollout/episode_length")
    table = Table(title=title)
    table.add_column("metric")
    ends = [rows[0], rows[-1]] if len(rows) > 1 else list(rows)
    for row in ends:
        table.add_column(f"after iteration {row['iteration']}", justify="right")
    for key in keys:
        table.add_row(key.partition("/")[2], *(_cell(row, key) for row in ends))
    return table


def _cell(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if value is None:
        return "-"
    if key.endswith("success") and row.get(f"{key}_low") is not None:
        return f"{value:.3f} [{row[f'{key}_low']:.3f}, {row[f'{key}_high']:.3f}]"
    return f"{value:.3f}"
