"""Every page as a function of the store and of an address."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from openrlhf_gagpo.errors import GagpoError, RunFolderError
from openrlhf_gagpo.evaluation.store import EvaluationFolder
from openrlhf_gagpo.report.data import Setting, config_table, value_table
from openrlhf_gagpo.report.episodes import PlayedEpisode
from openrlhf_gagpo.rollout.types import Step
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.viewer.curves import AXES, FAMILIES, RunRows, panels
from openrlhf_gagpo.viewer.estimates import Estimates
from openrlhf_gagpo.viewer.evaluated import evaluated
from openrlhf_gagpo.viewer.facts import OUTCOMES, EpisodeFacts, outcome
from openrlhf_gagpo.viewer.graph import GroupGraph, mean
from openrlhf_gagpo.viewer.render import render, scale_of
from openrlhf_gagpo.viewer.runs import Logged, logged
from openrlhf_gagpo.viewer.selection import Selection
from openrlhf_gagpo.viewer.sources import Source
from openrlhf_gagpo.viewer.store import Store
from openrlhf_gagpo.viewer.tokens import StepTokens, step_tokens
from openrlhf_gagpo.viewer.turns import turns

__all__ = ["NotThere", "Pages"]

_MOST_CHOICES = 200
_Query = Mapping[str, str]


class NotThere(GagpoError):
    """The address names something that does not exist."""


@dataclass(frozen=True)
class SourceRow:
    """One source in the overview."""

    source: Source
    color: int
    shown: bool
    """Whether its curves are drawn."""
    logged: Logged
    episodes: int
    waiting: int
    """Files that are not read yet."""
    solved: float | None


class Pages:
    """Renders pages. Those that ``alone`` are files by themselves: nothing in them leads to another page."""

    def __init__(self, store: Store, *, alone: bool = False) -> None:
        self._store = store
        self._alone = alone
        self._estimates = Estimates()

    def overview(self, query: _Query, chosen: Sequence[str] = ()) -> str:
        """Show all sources, and the curves of the runs among them over each other.

        Args:
            chosen: keys of the runs whose curves are drawn; all without any.
        """
        rows = [self._row(source, color, chosen) for color, source in enumerate(self._store.sources())]
        runs = [row.logged.rows(row.source.title, row.color) for row in rows if row.shown and row.source.is_run]
        return self._page("overview.html.j2", "Runs", live="", rows=rows, chosen=list(chosen), **_drawn(runs, query))

    def run(self, source: Source, query: _Query) -> str:
        """Show one source: of a run its facts, its curves, its evaluations and its configuration."""
        if source.evaluation is not None:
            return self._evaluation(source, source.evaluation)
        row, run = self._row(source, 0, ()), source.run
        problems = [row.logged.problem] if row.logged.problem else []
        return self._page(
            "run.html.j2",
            source.title,
            live=source.key,
            source=source,
            row=row,
            problems=problems + self._store.listing(source).problems,
            info=row.logged.info,
            settings=_settings(run) if run else [],
            prompt=run.prompt() if run else "",
            **_drawn([row.logged.rows(source.title, 0)] if run else [], query),
        )

    def _evaluation(self, source: Source, folder: EvaluationFolder) -> str:
        """Show the numbers of an evaluation and its protocol."""
        row, found, listing = self._row(source, 0, ()), evaluated(folder), self._store.listing(source)
        return self._page(
            "evaluation.html.j2",
            source.title,
            live=source.key,
            source=source,
            row=row,
            problems=[problem for problem in (found.problem, *listing.problems) if problem],
            found=found,
            # A sample is a line of its file, whatever the number of its trials.
            samples=len({facts.offset for facts in listing.episodes}),
            settings=value_table(found.settings),
        )

    def episodes(self, source: Source, query: _Query) -> str:
        """Show the episodes of a source that pass the filters of the address."""
        listing = self._store.listing(source)
        selection = Selection.of(query)
        kept = selection.sift(listing.episodes)
        return self._page(
            "episodes.html.j2",
            f"Episodes of {source.title}",
            live=source.key,
            source=source,
            selection=selection,
            page=selection.cut(kept),
            solved=_solved(kept),
            everything=len(listing.episodes),
            waiting=listing.waiting,
            problems=listing.problems,
            categories=sorted({item.category for item in listing.episodes if item.category})[:_MOST_CHOICES],
            outcomes=OUTCOMES,
            orders=Selection.orders(),
        )

    def episode(self, source: Source, part: int, number: int, query: _Query) -> str:
        """Show one episode turn by turn. Raises ``NotThere``."""
        in_part = self._store.part(source, part)
        facts, played = self._episode(source, part, number)
        graph = self._graph(source, _group(in_part, facts.group))
        other = query.get("with", "")
        estimate = self._estimates.get(source, part, other) if other else None
        shown = turns(played, graph, estimate)
        at = next(place for place, item in enumerate(in_part) if item.number == number)
        advantages = [turn.advantage for turn in shown] + [turn.other_advantage for turn in shown]
        return self._page(
            "episode.html.j2",
            f"Episode {number} of iteration {part}, {source.title}" if source.is_run else f"{facts.task}, {number}",
            source=source,
            facts=facts,
            played=played,
            turns=shown,
            scale=scale_of(advantages),
            estimate=estimate,
            estimators=self._estimates.names(),
            fault=_fault(source, played),
            reflection=str(played.episode.extra.get("reflection", "")),
            previous=in_part[at - 1] if at else None,
            following=in_part[at + 1] if at + 1 < len(in_part) else None,
            group_size=len(_group(in_part, facts.group)),
            tokens={t.step.index: self._tokens(source, t.step) for t in shown} if self._alone else {},
        )

    def group(self, source: Source, part: int, name: str, query: _Query) -> str:
        """Show the states of a group as a graph, and the visits of one state. Raises ``NotThere``."""
        members = _group(self._store.part(source, part), name)
        if not members:
            raise NotThere(f"{source.title} has no group {name!r} in part {part}; look for it among the episodes")
        graph = self._graph(source, members)
        chosen = graph.named(query.get("state", ""))
        return self._page(
            "group.html.j2",
            f"Group {name}, {source.title}",
            source=source,
            part=part,
            name=name,
            members=members,
            graph=graph,
            chosen=chosen,
            shown_states=[node for node in graph.nodes if node.visits],
            scale=scale_of([v.credit.get("advantage") for node in graph.nodes for v in node.visits]),
            node_scale=scale_of([node.mean_advantage for node in graph.nodes]),
            outcome=lambda played: outcome(played.episode.success, played.episode.end_reason),
        )

    def step(self, source: Source, part: int, number: int, index: int) -> str:
        """Show prompt and tokens of one step, as a piece of a page. Raises ``NotThere``."""
        _, played = self._episode(source, part, number)
        for step in played.episode.steps:
            if step.index == index:
                return render("tokens.html.j2", tokens=self._tokens(source, step))
        raise NotThere(f"episode {number} has no step {index}; it has {len(played.episode.steps)}")

    def problem(self, message: str) -> str:
        """Show what went wrong with an address."""
        return self._page("problem.html.j2", "Not found", message=message)

    def _page(self, template: str, title: str, live: str | None = None, **context: Any) -> str:
        live = None if self._alone else live
        return render(template, title=title, live=live, alone=self._alone, url=self._url, **context)

    def _url(self, *parts: object, **query: object) -> str:
        """Return an address; "" on a page that stands alone."""
        if self._alone:
            return ""
        path = "/" + "/".join(quote(str(part), safe="") for part in parts)
        given = {name.rstrip("_"): value for name, value in query.items() if value not in ("", None)}
        return path + (f"?{urlencode(given, doseq=True)}" if given else "")

    def _row(self, source: Source, color: int, chosen: Sequence[str]) -> SourceRow:
        listing = self._store.listing(source, wait=self._alone)
        return SourceRow(
            source=source,
            color=color,
            shown=not chosen or source.key in chosen,
            logged=logged(source),
            episodes=len(listing.episodes),
            waiting=listing.waiting,
            solved=_solved(listing.episodes),
        )

    def _episode(self, source: Source, part: int, number: int) -> tuple[EpisodeFacts, PlayedEpisode]:
        for facts in self._store.part(source, part):
            if facts.number == number:
                return facts, self._store.read(source, [facts])[0]
        raise NotThere(f"{source.title} has no episode {number} in part {part}; choose one from the list")

    def _graph(self, source: Source, members: Sequence[EpisodeFacts]) -> GroupGraph:
        return GroupGraph(self._store.read(source, members))

    def _tokens(self, source: Source, step: Step) -> StepTokens:
        return step_tokens(source, step)


def _drawn(runs: Sequence[RunRows], query: _Query) -> dict[str, Any]:
    axis = query.get("x", "")
    family = query.get("show", "")
    axis = axis if axis in AXES else next(iter(AXES))
    family = family if family in FAMILIES else FAMILIES[0]
    return {
        "panels": panels(runs, axis, family),
        "axis": axis,
        "axes": AXES,
        "family": family,
        "families": FAMILIES,
    }


def _settings(run: RunFolder) -> list[Setting]:
    try:
        return config_table(run)
    except RunFolderError:
        return []


def _group(in_part: Sequence[EpisodeFacts], name: str) -> list[EpisodeFacts]:
    return [facts for facts in in_part if facts.group == name]


def _solved(episodes: Sequence[EpisodeFacts]) -> float | None:
    return mean([float(item.outcome == OUTCOMES[0]) for item in episodes if item.outcome != OUTCOMES[-1]])


def _fault(source: Source, played: PlayedEpisode) -> str:
    run = source.run
    kept = run.fault(played.episode.fault) if run and played.episode.fault else ""
    return kept or played.episode.traceback
