"""The resolved configuration, the placement and the estimated memory as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.config.flags import all_flags
from openrlhf_gagpo.config.foresight import Foresight
from openrlhf_gagpo.config.memory import PARTS, Estimate
from openrlhf_gagpo.config.placement import Plan
from openrlhf_gagpo.config.resolve import DEFAULT, Config
from openrlhf_gagpo.machine import GIB

__all__ = ["show"]


def show(config: Config, ahead: Foresight, console: Console) -> None:
    """Print all of it to ``console``, with values that are not the default highlighted."""
    plan = ahead.plan
    console.print(
        Group(_settings(config), _placement(plan), _work(config, plan), *_memory(ahead.memory), *_warnings(ahead))
    )


def _settings(config: Config) -> Table:
    flags, unused = all_flags(), set(config.unused())
    table = Table(title="configuration", title_justify="left", box=None, pad_edge=False)
    table.add_column("flag", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")
    section = ""
    for name in sorted(config.names()):
        if flags[name].command_line_only:
            continue
        start = name.split(".")[0] if "." in name else ""
        if start != section:
            table.add_section()
            section = start
        value, origin = config.get(name), Path(config.origin(name)).name
        if name in unused:
            origin += f" (not used by the {config.backend} backend)"
        text = "-" if value is None else flags[name].show(value) or "-"
        if value and flags[name].secret:
            text = "(set)"
        table.add_row(name, Text(text), Text(origin), style="dim" if config.origin(name) == DEFAULT else "bold")
    return table


def _placement(plan: Plan) -> Table:
    table = Table(title="\nplacement", title_justify="left", box=None, pad_edge=False)
    for heading in ("where", "process", "count", "GPUs each"):
        table.add_column(heading)
    if BACKENDS[plan.backend].one_process:
        table.add_row(
            "this process", f"policy and reference model on {plan.device}", "1", "1" if plan.device == "cuda" else "0"
        )
    kind = "GPU" if plan.device == "cuda" else "logical GPU"
    for index, group in enumerate(plan.groups):
        where = f"group {index + 1}: {group.count} bundle{'s' if group.count > 1 else ''} of 1 {kind} + 1 CPU"
        for process in group.processes:
            table.add_row(where, process.name, str(process.count), f"{process.gpus_each:g}")
            where = ""
    where = "nodes without GPUs, or all if each has some" if plan.apart else "CPU"
    table.add_row(where, "environment worker of a node", str(plan.environments), "0")
    return table


def _work(config: Config, plan: Plan) -> Table:
    table = Table(title="\nwork", title_justify="left", box=None, pad_edge=False, show_header=False)
    if not BACKENDS[plan.backend].one_process:
        kind = "GPUs" if plan.device == "cuda" else "logical GPUs (the CPU does the work)"
        table.add_row("machines", f"nodes {plan.nodes}, {kind} {plan.gpus}")
    table.add_row("iterations", str(plan.iterations))
    groups, size = config.rollout.batch_size, config.rollout.n_samples_per_prompt
    table.add_row("episodes per iteration", f"{groups} groups x {size} = {plan.episodes}")
    table.add_row("optimizer steps per iteration", plan.updates)
    return table


def _memory(memory: Estimate | str) -> Iterator[RenderableType]:
    """Yield the estimate by model or process, and phase, or why there is none."""
    if isinstance(memory, str):
        yield Text(f"\nno estimate of memory: {memory}")
        return
    table = Table(title="\nestimated memory of one device, in GiB", title_justify="left", box=None, pad_edge=False)
    for heading in ("of", "phase"):
        table.add_column(heading)
    for heading in (*PARTS, "all"):
        table.add_column(heading, justify="right")
    holder = ""
    for phase in memory.phases:
        shown = "" if phase.holder == holder else phase.holder
        holder = phase.holder
        parts = (phase.parts.get(part, 0.0) for part in PARTS)
        table.add_row(shown, phase.name, *(_gib(value) if value else "-" for value in parts), _gib(phase.total))
    for name, total in memory.shared.items():
        table.add_row("all of them together", name, *["" for _ in PARTS], _gib(total), style="bold")
    yield table
    yield from (Text(f"  {note}") for note in memory.notes)


def _gib(number: float) -> str:
    return f"{number / GIB:.2g}" if number < GIB else f"{number / GIB:.1f}"


def _warnings(ahead: Foresight) -> Iterator[RenderableType]:
    if ahead.warnings:
        yield Text("\nmissing on this machine")
        yield from (Text(f"  {warning}") for warning in ahead.warnings)
