"""Recordings from a run folder, the folder of an evaluation, or one file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openrlhf_gagpo.comparison.source import read_source
from openrlhf_gagpo.comparison.steps import Source, Steps
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.export.recording import Origin, Recorded, Recording
from openrlhf_gagpo.report.episodes import PlayedEpisode, load_episodes
from openrlhf_gagpo.runfolder import RunFolder

__all__ = ["read_recording", "successes"]

_NUMBERS = re.compile(r"(\d+)")


def read_recording(path: Path, iterations: str | None = None) -> Recording:
    """Read what was recorded at ``path``; ``iterations`` chooses those of a run, by default the last recorded one.

    Raises:
        ConfigError: there is nothing to export at ``path``, or ``iterations`` is given for something else than a run.
        GagpoError: a record cannot be used; the message names it.
    """
    if (path / "run.json").is_file():
        return _run(path, iterations)
    if iterations is not None:
        raise ConfigError(f"--iteration chooses iterations of a run folder, and {path} is not one; leave it out")
    if (path / "protocol.json").is_file():
        return _evaluation(path)
    if not path.is_file():
        what = "is neither a run nor an evaluation" if path.exists() else "does not exist"
        raise ConfigError(f"{path} {what}; give a run folder, an evaluation, recorded rollouts or JSON lines of steps")
    return _file(path)


def successes(recording: Recording) -> Recording:
    """Return a recording of the successful episodes alone."""
    return replace(
        recording,
        episodes=[item for item in recording.episodes if item.episode.success],
        steps=lambda: _successful(recording.steps()),
    )


def _run(path: Path, iterations: str | None) -> Recording:
    from openrlhf_gagpo.comparison.recorded import chosen_iterations

    run = RunFolder.open(path)
    info, values = run.info(), _flat(run.config().get("values") or {})
    model = str(values.get("actor.model_name_or_path", ""))
    origin = Origin(
        title=run.path.resolve().name,
        environment=str(values.get("env.name", "")),
        split=str(values.get("env.split", "")),
        model=model,
        started=info.get("started", ""),
        ended=info.get("ended", ""),
        commit=info.get("git_commit") or "",
        packages=info.get("packages") or {},
        settings=values,
        chat_template=str(values.get("rollout.chat_template", "")),
        think=values.get("rollout.think"),
        # A relative name was meant from the folder in which the run was started, which may be this one.
        tokenizers=(str(run.model_dir), model, str(run.path.parent / model)) if model else (str(run.model_dir),),
    )
    return Recording(
        origin,
        [
            Recorded(played, iteration)
            for iteration in chosen_iterations(run, iterations)
            for played in load_episodes(run, iteration)
        ],
        lambda: read_source(path, iterations),
    )


def _evaluation(path: Path) -> Recording:
    from openrlhf_gagpo.comparison.recorded import steps_of
    from openrlhf_gagpo.evaluation.store import EvaluationFolder

    folder = EvaluationFolder(path)
    protocol = folder.protocol()
    settings, about = protocol["settings"], protocol["sessions"][0]
    options = settings.get("policy_options") or {}
    named = [str(options[name]) for name in ("tokenizer", "path", "model") if options.get(name)]
    samples = sorted(folder.samples().values(), key=lambda sample: _order(sample.identity))
    if not samples:
        raise ConfigError(f"the evaluation {path} has no finished sample yet; export it later")
    origin = Origin(
        title=path.resolve().name,
        environment=str(settings.get("environment", "")),
        split=str(settings.get("split", "")),
        model=named[-1] if named else str(settings.get("policy", "")),
        agent=str(settings.get("agent", "")),
        started=about.get("started", ""),
        commit=about.get("git_commit") or "",
        packages=about.get("packages") or {},
        settings=settings,
        chat_template=str(settings.get("chat_template", "")),
        think=settings.get("think"),
        tokenizers=named,
    )
    episodes = [
        Recorded(PlayedEpisode(number, sample.episode, [{} for _ in sample.episode.steps]), usage=sample.usage)
        for number, sample in enumerate(samples)
    ]
    return Recording(
        origin, episodes, lambda: Source(origin.title, [steps_of([item.episode for item in episodes], {})])
    )


def _file(path: Path) -> Recording:
    from openrlhf_gagpo.viewer.sources import Part

    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
    file = Part(1, path).open()
    episodes = [Recorded(played) for played in file.read(file.scan())]
    return Recording(Origin(path.name.split(".")[0], started=changed), episodes, lambda: read_source(path))


def _successful(source: Source) -> Source:
    return replace(source, parts=[_successful_steps(part, source.title) for part in source.parts])


def _successful_steps(steps: Steps, title: str) -> Steps:
    if "success" not in steps.columns:
        raise ConfigError(f"{title} does not say which episodes were successful; leave --successes_only out")
    rows = [row for row, success in enumerate(steps.columns["success"]) if success]
    return Steps(
        {name: [column[row] for row in rows] for name, column in steps.columns.items()},
        [steps.identity[row] for row in rows],
        {place: steps.recorded[row] for place, row in enumerate(rows) if row in steps.recorded},
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return settings by dotted name; releases before 0.2 nested them."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        nested = isinstance(value, dict) and not name.endswith("options")
        flat |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _order(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts numbers inside names by their size."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in _NUMBERS.split(name)]
