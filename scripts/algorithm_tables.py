"""Update the tables of docs/algorithms.md from the registered estimators: ``python scripts/algorithm_tables.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path

from openrlhf_gagpo.credit import names, registry

__all__ = ["PAGE", "with_tables"]

PAGE = Path(__file__).parents[1] / "docs" / "algorithms.md"
_BUILT_IN = "openrlhf_gagpo.credit.estimators."


def with_tables(page: str) -> str:
    """Replace everything in ``page`` between pairs of ``<!-- NAME: generated -->`` and ``<!-- end NAME -->``."""
    for name, table in (("options", _options()), ("presets", _presets()), ("needs", _needs())):
        before, begin, rest = page.partition(f"<!-- {name}: generated -->\n")
        _, end, after = rest.partition(f"<!-- end {name} -->")
        if not (begin and end):
            raise ValueError(f"the page has no markers for the table {name!r}")
        page = f"{before}{begin}\n{table}\n{end}{after}"
    return page


def _options() -> str:
    estimators = _estimators()
    known: dict[str, Field] = {}
    for estimator in estimators.values():
        known |= {field.name: known.get(field.name, field) for field in fields(estimator.options_cls)}
    defaults = {
        name: {field.name: _show(field.default) for field in fields(estimator.options_cls)}
        for name, estimator in estimators.items()
    }
    rows = [
        [
            f"`{option}`",
            field.metadata["help"],
            _values(field),
            *(defaults[name].get(option, "") for name in estimators),
        ]
        for option, field in known.items()
    ]
    return _table(["option", "meaning", "values", *estimators], rows)


def _presets() -> str:
    estimators = _estimators()
    flags = dict.fromkeys(flag for estimator in estimators.values() for flag in estimator.presets)
    rows = [
        [f"`{flag}`", *(_show(estimator.presets.get(flag, "")) for estimator in estimators.values())] for flag in flags
    ]
    return _table(["flag", *estimators], rows)


def _needs() -> str:
    rows = [
        [
            f"`{name}`",
            ", ".join(f"`{column}`" for column in sorted(estimator.needs)) or "none",
            str(estimator.group_min),
        ]
        for name, estimator in _estimators().items()
    ]
    return _table(["estimator", "columns of a model", "episodes of a group, at least"], rows)


def _estimators() -> Mapping[str, registry.Estimator]:
    every = {name: registry.get(name) for name in names()}
    return {name: entry for name, entry in every.items() if entry.compute.__module__.startswith(_BUILT_IN)}


def _values(field: Field) -> str:
    if "choices" in field.metadata:
        return ", ".join(map(_show, field.metadata["choices"]))
    if "range" in field.metadata:
        low, high = field.metadata["range"]
        return f"{low:g} or more" if high == float("inf") else f"{low:g} to {high:g}"
    return "switch" if isinstance(field.default, bool) else "number"


def _show(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
