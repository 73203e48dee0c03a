"""The recorded cases, and the comparison of an implementation with them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from openrlhf_gagpo.credit import registry
from openrlhf_gagpo.credit.sets import Floats

__all__ = ["ATOL", "RTOL", "Case", "Function", "Verdict", "cases", "judge"]

Function = Callable[[dict[str, list[Any]], dict[str, Any]], Sequence[float]]
"""Columns of steps and the estimator's options -> one number per step, in the order of the columns."""

RTOL, ATOL = 1e-9, 1e-7

_HERE = Path(__file__).parent
_OPTIONS = {"gamma": "gamma", "lam": "lambd", "w": "step_coef", "penalty": "invalid_penalty"}
"""Parameter of a recording -> the option that has its value."""


@dataclass(frozen=True)
class Case:
    """Steps, an estimator with options, and what it computes for them."""

    name: str
    """Recorded key and number, such as ``grpo-3``."""
    estimator: str
    given: Mapping[str, Any]
    """Options that were set; the others have the estimator's defaults."""
    quantity: str
    """Field of a ``CreditResult`` that was recorded."""
    columns: Mapping[str, list[Any]]
    """As ``StepBatch.from_columns`` takes them; ``token_value`` has one entry per token, the others one per step."""
    expected: Floats

    def options(self) -> dict[str, Any]:
        """Return every option of the estimator by name."""
        return asdict(registry.get(self.estimator).options_cls(**self.given))


@dataclass(frozen=True)
class Verdict:
    """How an implementation did in one case."""

    passed: bool
    deviation: float
    """Largest absolute difference; NaN if the answer could not be compared."""
    problem: str = ""
    """Why the answer could not be compared."""


@cache
def cases() -> tuple[Case, ...]:
    """Read all cases, those of one recorded key together."""
    recordings = [json.loads(line) for line in gzip.decompress((_HERE / "cases.jsonl.gz").read_bytes()).splitlines()]
    checks = json.loads((_HERE / "checks.json").read_text(encoding="utf-8"))
    return tuple(
        case for key, check in checks.items() for recording in recordings for case in _of(key, check, recording)
    )


def judge(case: Case, function: Function, rtol: float = RTOL, atol: float = ATOL) -> Verdict:
    """Call ``function`` with copies of the case's columns and options, and compare its answer."""
    columns = {name: list(column) for name, column in case.columns.items()}
    try:
        answer = np.asarray(list(function(columns, case.options())), dtype=np.float64)
    except Exception as error:  # somebody else's code, which may raise anything
        return Verdict(False, np.nan, f"raised {type(error).__name__}: {' '.join(str(error).split())}")
    if answer.shape != case.expected.shape:
        return Verdict(False, np.nan, f"returned shape {answer.shape} for {len(case.expected)} steps")
    difference = np.abs(answer - case.expected)
    passed = bool((difference <= atol + rtol * np.abs(case.expected)).all())
    return Verdict(passed, float(difference.max()))


def _of(key: str, check: Mapping[str, Any], recording: Mapping[str, Any]) -> Iterator[Case]:
    """Yield the case of a recorded key, if the recording has it."""
    params = recording["params"]
    # Recorded with the penalty of whichever row of an episode came first, where the project takes that of step 0.
    ambiguous = check.get("ordered", False) and not recording["ordered"] and params["penalty"]
    if key not in recording["expected"] or ambiguous:
        return
    names = registry.get(check["estimator"]).options_cls.__dataclass_fields__
    given = {option: params[name] for name, option in _OPTIONS.items() if option in names}
    yield Case(
        name=f"{key}-{recording['case']}",
        estimator=check["estimator"],
        given=given | check["options"],
        quantity=check.get("quantity", "advantage"),
        columns=_columns(recording["rows"]),
        expected=np.array(recording["expected"][key]),
    )


def _columns(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    columns = {name: column for name, column in rows.items() if name != "done"}
    columns["terminated"] = [done and not cut for done, cut in zip(rows["done"], rows["truncated"], strict=True)]
    # A critic that is constant within a response.
    columns["token_value"] = np.repeat(rows["value"], rows["n_tokens"]).tolist()
    return columns
