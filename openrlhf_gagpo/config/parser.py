"""The command line: dotted flags, ``--a.b`` and ``--a.no_b`` for booleans, and one-sentence errors."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from openrlhf_gagpo.config.families import Family, families
from openrlhf_gagpo.config.flag import Disposition, Flag, negation
from openrlhf_gagpo.config.flags import all_flags
from openrlhf_gagpo.errors import ConfigError

__all__ = ["FlagFormatter", "FlagParser", "add_flag", "checked", "nearest", "parse", "preparse", "unknown"]

_SECTIONS = {
    "": "run",
    "env": "environment",
    "rollout": "rollout",
    "data": "rollout",
    "eval": "evaluation",
    "algo": "algorithm",
    "actor": "policy, loss and optimizer",
    "train": "training",
    "ckpt": "checkpoints",
    "logger": "logs",
    "ray": "Ray",
    "vllm": "vLLM (distributed backend)",
    "ds": "DeepSpeed (distributed backend)",
    "ref": "reference model",
}


class FlagParser(argparse.ArgumentParser):
    """A parser whose errors are ``ConfigError``."""

    def error(self, message: str) -> NoReturn:
        name, _, rest = message.removeprefix("argument ").partition(": ")
        name = name.split("/")[0]
        if rest.startswith("ignored explicit argument"):
            raise ConfigError(f"{name} takes no value; write {name}, or --{negation(name[2:])} to switch it off")
        raise ConfigError(f"{name}: {rest}" if rest else message)


class FlagFormatter(argparse.HelpFormatter):
    """Leaves room for dotted names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=40, width=118)


class _Switch(argparse.Action):
    """Stores true for the flag itself, false for its negation."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, option_string == self.option_strings[0])


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """Return the checked values of the flags that ``argv`` sets.

    Raises:
        ConfigError: a flag is unknown or a value is wrong.
        SystemExit: after ``--help``.
    """
    flags = all_flags()
    namespace, rest = _build(flags).parse_known_args(list(argv))
    if rest:
        raise ConfigError(unknown(rest, flags, "train"))
    return checked(vars(namespace), flags)


def checked(given: Mapping[str, Any], flags: Mapping[str, Flag]) -> dict[str, Any]:
    """Return the values of what argparse read. Raises ``ConfigError`` for a wrong one."""
    return {name: flags[name].coerce(_join(flags[name], raw), f"--{name}") for name, raw in given.items()}


def add_flag(target: Any, flag: Flag, text: str) -> None:
    """Add ``flag`` with the help ``text`` to a parser, or to a group of one."""
    if flag.kind is bool:
        target.add_argument(
            f"--{flag.name}", f"--{negation(flag.name)}", dest=flag.name, action=_Switch, nargs=0, help=text
        )
    elif flag.kind is dict or flag.repeatable:
        nargs = "+" if flag.kind is dict else None
        target.add_argument(f"--{flag.name}", action="append", nargs=nargs, metavar=_metavar(flag), help=text)
    else:
        target.add_argument(f"--{flag.name}", nargs=flag.nargs, metavar=_metavar(flag), help=text)


def preparse(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the recipe and the plugins that ``argv`` names, which determine the other flags.

    Raises:
        ConfigError: there is more than one recipe, or a flag has no value.
    """
    parser = FlagParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", action="append", default=[])
    parser.add_argument("--algo.plugin", dest="plugins", action="append", default=[])
    known, _ = parser.parse_known_args(list(argv))
    if len(known.config) > 1:
        raise ConfigError(
            f"--config is given {len(known.config)} times; name one recipe, which may build on another (base: FILE)"
        )
    return (known.config[0] if known.config else None), known.plugins


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three names similar to ``name``: those with the same last part first, then by spelling."""
    known = list(known)
    last = name.replace("-", "_").rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == last]
    close = get_close_matches(name.replace("-", "_"), known, n=3, cutoff=0.6)
    return list(dict.fromkeys([*same, *close]))[:3]


def _build(flags: Mapping[str, Flag]) -> argparse.ArgumentParser:
    parser = FlagParser(
        prog="gagpo train",
        usage="gagpo train [--config RECIPE] [--FLAG VALUE ...]",
        description="Train an agent. The command line overrides the recipe, which overrides the estimator's defaults.",
        epilog="--a.no_b turns off the switch --a.b. Flags of OpenRLHF that are missing here are refused with a "
        "sentence that says what to use instead.",
        formatter_class=FlagFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    groups: dict[str, Any] = {title: parser.add_argument_group(title) for title in _SECTIONS.values()}
    for flag in flags.values():
        if flag.deprecated:
            parser.add_argument(f"--{flag.name}", help=argparse.SUPPRESS)
            continue
        title = _SECTIONS.get(flag.name.split(".")[0] if "." in flag.name else "", "run")
        text = argparse.SUPPRESS
        if flag.disposition is not Disposition.REFUSED:
            text = _help(flag, families()).replace("%", "%%")
        add_flag(groups[title], flag, text)
    return parser


def _join(flag: Flag, raw: Any) -> Any:
    """Return all uses of a mapping flag, each with its own values, as one list."""
    return [item for use in raw for item in use] if flag.kind is dict else raw


def _metavar(flag: Flag) -> str:
    if flag.choices:
        return "{" + ",".join(map(str, flag.choices)) + "}"
    return {dict: "KEY=VALUE", int: "N", float: "X", str: "TEXT"}[flag.kind]


def _help(flag: Flag, registered: tuple[Family, Family]) -> str:
    text = flag.help
    for family in registered:
        if owners := family.owners.get(flag.name):
            text += f" [{', '.join(owners)}]"
    if default := _defaults(flag, registered):
        text += f" ({default})"
    return text


def _defaults(flag: Flag, registered: tuple[Family, Family]) -> str:
    """Describe the default; if it depends on the algorithm, name the algorithms of each value."""
    by_value: dict[str, list[str]] = {}
    for family in registered:
        for name in family.options_cls:
            values = {**family.defaults(name), **family.presets.get(name, {})}
            if flag.name in values and values[flag.name] is not None:
                by_value.setdefault(flag.show(values[flag.name]), []).append(name)
    known = next((family for family in registered if flag.name in family.owners), None)
    everyone = len(known.owners[flag.name]) if known else len(registered[0].options_cls)
    if len(by_value) == 1 and sum(map(len, by_value.values())) == everyone:
        return f"default {next(iter(by_value))}"
    covered = sum(map(len, by_value.values())) == everyone
    plain = [] if known or covered or flag.default in (None, [], {}) else [f"default {flag.show(flag.default)}"]
    return "; ".join([*plain, *(f"{value} for {', '.join(names)}" for value, names in by_value.items())])


def unknown(rest: Sequence[str], flags: Mapping[str, Flag], command: str) -> str:
    """Return a sentence about arguments that no flag takes, with the flags that may have been meant."""
    first = next((item for item in rest if item.startswith("-")), None)
    if first is None:
        return f"unexpected argument {rest[0]!r}; every setting is written --flag value"
    name = first.lstrip("-").split("=")[0]
    switches = [negation(flag.name) for flag in flags.values() if flag.kind is bool]
    offered = [flag.name for flag in flags.values() if flag.disposition is not Disposition.REFUSED]
    near = nearest(name, [*offered, *switches])
    hint = (
        f"did you mean {' or '.join(f'--{other}' for other in near)}"
        if near
        else f"gagpo {command} --help lists them all"
    )
    return f"--{name} is not a flag; {hint}" + ("?" if near else "")
