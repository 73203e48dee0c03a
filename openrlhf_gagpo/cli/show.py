"""``gagpo show``: print one recorded episode of a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text

from openrlhf_gagpo.cli.main import guarded
from openrlhf_gagpo.errors import RunFolderError
from openrlhf_gagpo.report.episodes import PlayedEpisode, best, load_episodes, worst
from openrlhf_gagpo.report.visible import visible
from openrlhf_gagpo.rollout.types import Step
from openrlhf_gagpo.runfolder import RunFolder

__all__ = ["main", "render_episode"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 0, or 2 with one sentence on stderr for bad input."""
    options = _parser().parse_args(argv)
    console = Console(highlight=False)
    try:
        run = RunFolder.open(options.run)
        if options.faults:
            for name in run.faults():
                console.print(Rule(name, align="left", style="dim", characters="-"), _text(run.fault(name).rstrip()))
            console.print(f"{len(run.faults())} kinds of environment failure", style="dim")
            return 0
        for row in run.advice():
            console.print(Text(f"advice since iteration {row['iteration']}: {row['text']}", style="yellow"))
        recorded = run.rollout_iterations()
        iteration = options.iteration if options.iteration is not None else (recorded[-1] if recorded else 1)
        played = load_episodes(run, iteration)
        chosen = _choose(played, options, iteration)
    except RunFolderError as error:
        sys.stderr.write(f"gagpo: error: {error}\n")
        return 2
    fault = run.fault(chosen.episode.fault) if chosen.episode.fault else ""
    console.print(render_episode(chosen, iteration, len(played), fault))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gagpo show", description="Print a recorded episode of a run.", allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", help="folder of the run")
    parser.add_argument("--iteration", type=int, metavar="N", help="training iteration (default: the last recorded)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--episode", type=int, metavar="K", default=0, help="episode of the iteration, from 0 (default)")
    which.add_argument("--best", action="store_true", help="the best episode by success, then return")
    which.add_argument("--faults", action="store_true", help="the traceback of every kind of environment failure")
    which.add_argument("--worst", action="store_true", help="the worst episode by success, then return")
    return parser


def _choose(played: list[PlayedEpisode], options: argparse.Namespace, iteration: int) -> PlayedEpisode:
    if not played:
        raise RunFolderError(f"Iteration {iteration} has no episodes in its record.")
    if options.best:
        return best(played)
    if options.worst:
        return worst(played)
    if not 0 <= options.episode < len(played):
        raise RunFolderError(f"Iteration {iteration} has episodes 0 to {len(played) - 1}, not {options.episode}.")
    return played[options.episode]


def render_episode(played: PlayedEpisode, iteration: int, of: int, fault: str = "") -> RenderableType:
    """Format an episode for a terminal: its outcome, then each step with observation, action, flags, reward and credit.

    Args:
        fault: the traceback of the environment failure that ended it, if any.
    """
    episode = played.episode
    category = f" ({episode.category})" if episode.category else ""
    head = Text.assemble(
        (f"Iteration {iteration}, episode {played.number} of 0 to {of - 1}", "bold"),
        visible(f"\nTask     {episode.task}{category}"),
        "\nOutcome  ",
        (visible(played.outcome), "green" if episode.success else "red"),
        f", {len(episode.steps)} steps, return {episode.episode_return:g}, score {episode.score:g}",
        (f"\nGroup {episode.group}, trajectory {episode.trajectory}, environment seed {episode.env_seed}", "dim"),
    )
    parts: list[RenderableType] = [head]
    if fault:
        parts += [Rule("environment failure", align="left", style="dim", characters="-"), _text(fault.rstrip())]
    for step, credit in zip(episode.steps, played.credit, strict=True):
        parts += _render_step(step, credit)
    if played.final_observation:
        parts += [Rule("end", align="left", style="dim", characters="-"), _text(played.final_observation)]
    return Group(*parts)


def _text(words: str) -> Text:
    # Printed as text, not markup, because a model's words may contain square brackets; and never obeyed by a terminal.
    return Text(visible(words))


def _render_step(step: Step, credit: dict[str, float]) -> list[RenderableType]:
    flags = []
    if not step.format_valid:
        flags.append("malformed response")
    if not step.admissible:
        flags.append("inadmissible action")
    if step.finish_reason == "length":
        flags.append("cut by the token limit")
    if step.history_dropped:
        flags.append(f"{step.history_dropped} history entries dropped")
    numbers = f"reward {step.reward:g}" + "".join(
        f", {name.replace('_', ' ')} {value:.4g}" for name, value in credit.items()
    )
    parts: list[RenderableType] = [
        Rule(f"step {step.index}", align="left", style="dim", characters="-"),
        _text(step.observation),
        Padding(Text.assemble(("> ", "bold"), (visible(step.action) or "(no action)", "bold cyan")), (1, 0, 0, 0)),
    ]
    if step.response.strip() != step.action.strip():
        parts.append(Text.assemble(("response: ", "dim"), visible(step.response)))
    if flags:
        parts.append(Text(", ".join(flags), style="yellow"))
    parts.append(Text(numbers, style="dim"))
    return parts


if __name__ == "__main__":
    sys.exit(guarded(main, sys.argv[1:]))
