"""The resolved configuration and the placement as tables for a terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.config.flags import all_flags
from openrlhf_gagpo.config.placement import Plan
from openrlhf_gagpo.config.resolve import DEFAULT, Config

__all__ = ["show"]


def show(config: Config, plan: Plan, console: Console) -> None:
    """Print both to ``console``, with values that are not the default highlighted."""
    console.print(Group(_settings(config), _placement(plan), _work(config, plan)))


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
    table.add_row("CPU", "environment worker", str(plan.environments), "0")
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
