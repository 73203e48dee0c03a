"""``report.html``: one file without external resources that describes a run and its results."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.errors import RunFolderError
from openrlhf_gagpo.report.data import (
    CategoryRate,
    Evaluation,
    Setting,
    config_table,
    evaluations,
    number,
    seconds_between,
)
from openrlhf_gagpo.report.episodes import PlayedEpisode, extremes, load_episodes
from openrlhf_gagpo.report.panels import Curves, panels
from openrlhf_gagpo.report.template import environment
from openrlhf_gagpo.runfolder import RunFolder

__all__ = ["build_report"]

_SHOWN_STEPS = 12
_SHOWN_CHARS = 700


@dataclass(frozen=True)
class Headline:
    """First and last evaluation of one split; equal when there was only one."""

    split: str
    before: Evaluation
    after: Evaluation


@dataclass(frozen=True)
class CategoryRow:
    """Success of one category at the first and the last evaluation; None if it was not evaluated."""

    name: str
    before: CategoryRate | None
    after: CategoryRate | None

    @property
    def episodes(self) -> str:
        """Episodes of the last evaluation, as text."""
        return "" if self.after is None or self.after.episodes is None else str(self.after.episodes)


def build_report(run_dir: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` of a run in any state and return its path.

    Data that the run did not log is left out. Raises ``RunFolderError`` for a folder that is not a run.
    """
    run = RunFolder.open(run_dir)
    rows, eval_rows = run.metrics(), run.evals()
    by_split = evaluations(eval_rows)
    settings = config_table(run)
    headlines = [Headline(split, found[0], found[-1]) for split, found in by_split.items()]
    recorded, unread = _recorded(run)
    figures, zero = panels(Curves(rows, eval_rows, by_split, _advantages(recorded)))
    templates = environment()
    templates.filters |= {"percent": _percent, "rate": _rate, "interval": _interval, "number": _number, "clip": _clip}
    info = run.info()
    html = templates.get_template("report.html.j2").render(
        name=run.path.resolve().name,
        state=info["state"],
        error=info.get("error", ""),
        facts=_facts(info, settings, rows),
        advice=run.advice(),
        headlines=headlines,
        categories=[(h, table) for h in headlines if (table := _categories(h))],
        panels=figures,
        zero=zero,
        samples=[(at, label, played) for at, episodes in recorded.items() for label, played in extremes(episodes)],
        unread=unread,
        settings=settings,
        prompt=run.prompt(),
        prompt_hash=info.get("prompt_sha256", ""),
        packages=info.get("packages", {}),
        shown_steps=_SHOWN_STEPS,
    )
    temporary = run.report_path.with_name(".report.html.tmp")
    # A model may write lone surrogates, which UTF-8 cannot hold.
    temporary.write_text(html, encoding="utf-8", errors="backslashreplace")
    temporary.replace(run.report_path)
    return run.report_path


def _facts(info: Mapping[str, Any], settings: list[Setting], rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    values = {setting.name: setting.value for setting in settings}
    seed = info.get("seed")
    planned = values.get("train.num_iterations", "")
    done = str(max((row["iteration"] for row in rows), default=0))
    packages = info.get("packages", {})
    facts = [
        ("Environment", values.get("env.name", "")),
        ("Its data and rules", ", ".join(f"{name} {value}" for name, value in info.get("environment", {}).items())),
        ("Model", values.get("actor.model_name_or_path", "")),
        ("Estimator", values.get("algo.advantage.estimator", "")),
        ("Backend", values.get("backend", "")),
        ("Seed", values.get("train.seed", "") if seed is None else str(seed)),
        ("Iterations", f"{done} of {planned}" if planned else done),
        ("Episodes", _total(rows, "rollout/episodes")),
        ("Environment steps", _total(rows, "rollout/steps")),
        ("Hardware", _hardware(info)),
        ("Total time", _total_time(info)),
        (
            "Time to get ready",
            _duration(seconds_between(info, info.get("started"), info.get("backend", {}).get("ready_at"))),
        ),
        ("Time in iterations", _duration(sum(_finite(rows, "time/iteration")))),
        ("Started", _moment(info.get("started", ""))),
        ("Ended", _moment(info.get("ended", ""))),
        ("Commit", str(info.get("git_commit") or "")),
        (
            "Versions",
            ", ".join(f"{name} {packages[name]}" for name in ("openrlhf", "torch", "vllm") if name in packages),
        ),
        ("Command", " ".join(map(str, info.get("command", [])))),
    ]
    return [(label, text) for label, text in facts if text and text != "none"]


def _hardware(info: Mapping[str, Any]) -> str:
    """Describe the machine that the run recorded, and what the backend computed on."""
    machine, devices = info.get("machine", {}), info.get("backend", {}).get("devices", "")
    cores = f"{machine['cores']} cores" if machine.get("cores") else ""
    parts = [
        " of ".join(filter(None, [cores, machine.get("cpu", "")])),
        f"{machine['memory']} memory" if machine.get("memory") else "",
        f"GPUs: {machine['gpus']}" if machine.get("gpus") else "",
        f"ran on {devices}" if devices else "",
    ]
    return ", ".join(filter(None, parts))


def _total_time(info: Mapping[str, Any]) -> str:
    """Return the time from the start to the end; of a run that was continued, that says nothing."""
    if times := len(info.get("resumed", [])):
        return f"unknown: the run was continued {times} {'time' if times == 1 else 'times'}"
    return _duration(seconds_between(info, info.get("started"), info.get("ended")))


def _finite(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [value for row in rows if math.isfinite(value := number(row.get(name)))]


def _total(rows: list[dict[str, Any]], name: str) -> str:
    found = _finite(rows, name)
    return f"{sum(found):,.0f}" if found else ""


def _duration(seconds: float) -> str:
    if not seconds:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _moment(text: str) -> str:
    return text.replace("T", " ").replace("+00:00", " UTC")


def _categories(headline: Headline) -> list[CategoryRow]:
    before, after = headline.before.categories, headline.after.categories
    return [CategoryRow(name, before.get(name), after.get(name)) for name in sorted(before.keys() | after.keys())]


def _recorded(run: RunFolder) -> tuple[dict[int, list[PlayedEpisode]], str]:
    """Return the episodes of the first and last recorded iteration, and a note on unreadable ones."""
    iterations = run.rollout_iterations()
    episodes = {}
    unread = []
    for iteration in sorted({*iterations[:1], *iterations[-1:]}):
        try:
            episodes[iteration] = load_episodes(run, iteration)
        except RunFolderError as error:
            unread.append(str(error))
    return episodes, " ".join(unread)


def _advantages(recorded: Mapping[int, Sequence[PlayedEpisode]]) -> dict[str, NDArray[np.float64]]:
    """Return the advantages of all steps that have one, by iteration."""
    return {
        f"iteration {iteration}": np.array(
            [advantage for played in episodes for _, advantage in played.rows if advantage is not None], dtype=float
        )
        for iteration, episodes in recorded.items()
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "unknown"


def _rate(rate: CategoryRate | None) -> str:
    """Format a category's success with its interval in brackets."""
    if rate is None:
        return "unknown"
    if not (math.isfinite(rate.low) and math.isfinite(rate.high)):
        return _percent(rate.success)
    return f"{_percent(rate.success)} ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def _interval(evaluation: Evaluation) -> str:
    parts = []
    if math.isfinite(evaluation.low) and math.isfinite(evaluation.high):
        parts.append(f"95 % interval {100 * evaluation.low:.1f} to {100 * evaluation.high:.1f} %")
    if evaluation.tasks is not None:
        parts.append(f"n = {evaluation.tasks}")
    return ", ".join(parts)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _clip(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS].rstrip() + " [...]"
