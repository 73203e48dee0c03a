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
    defaults: dict[str, dict[str, str]] = {}
    for name, estimator in estimators.items():
        for field in fields(estimator.options_cls):
            known.setdefault(field.name, field)
            defaults.setdefault(field.name, {})[name] = _show(field.default)
    rows = [
        [f"`{option}`", field.metadata["help"], _values(field), _grouped(defaults[option], len(estimators))]
        for option, field in known.items()
    ]
    return _table(["option", "meaning", "values", "default"], rows)


def _presets() -> str:
    estimators = _estimators()
    flags = dict.fromkeys(flag for estimator in estimators.values() for flag in estimator.presets)
    rows = []
    for flag in flags:
        values = {name: _show(entry.presets[flag]) for name, entry in estimators.items() if flag in entry.presets}
        rows.append([f"`{flag}`", _grouped(values, len(estimators))])
    return _table(["flag", "value"], rows)


def _grouped(values: Mapping[str, str], of: int) -> str:
    """Return each value with the estimators that have it; the estimators are left out if all ``of`` them have it."""
    owners: dict[str, list[str]] = {}
    for name, value in values.items():
        owners.setdefault(value, []).append(f"`{name}`")
    return "; ".join(value if len(names) == of else f"{value} ({', '.join(names)})" for value, names in owners.items())


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
