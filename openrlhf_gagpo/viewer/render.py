"""Templates of the pages, and how numbers and texts look in them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from openrlhf_gagpo.report.visible import visible

__all__ = ["LEVELS", "STATIC", "level", "number", "render", "scale_of"]

STATIC = Path(__file__).parent / "static"
LEVELS = 5
"""Shades of one sign of an advantage."""

_MINUS = "\N{MINUS SIGN}"


def number(value: float | None, digits: int = 3) -> str:
    """Format a number with a real minus sign; "" for one that is missing."""
    if value is None or math.isnan(value):
        return ""
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}".replace("-", _MINUS)
    return f"{value:.{digits}g}".replace("-", _MINUS)


def signed(value: float | None) -> str:
    """Format an advantage: two decimals, with its sign."""
    if value is None or math.isnan(value):
        return ""
    text = f"{value:+.2f}" if abs(value) >= 0.005 or value == 0 else f"{value:+.1g}"
    return ("0" if value == 0 else text).replace("-", _MINUS)


def percent(value: float | None) -> str:
    """Format a share."""
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def scale_of(values: Iterable[float | None]) -> float:
    """Return the largest magnitude, to which the colours of a page are scaled."""
    return max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)


def level(value: float | None, scale: float) -> str:
    """Return the class of an advantage's colour: ``p1`` to ``p5``, ``n1`` to ``n5``, ``z`` for 0, "" for none."""
    if value is None or math.isnan(value):
        return ""
    if value == 0 or scale == 0:
        return "z"
    return f"{'p' if value > 0 else 'n'}{min(LEVELS, 1 + int(LEVELS * abs(value) / scale))}"


def render(template: str, **context: Any) -> str:
    """Render a page; every value is escaped."""
    return _ENVIRONMENT.get_template(template).render(**context)


def _finalize(value: object) -> object:
    """Show what hides in a text, wherever a template prints one."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value


def _file(name: str) -> Markup:
    """Return a file of ours, for pages that stand alone."""
    return Markup((STATIC / name).read_text(encoding="utf-8"))


_ENVIRONMENT = Environment(
    loader=PackageLoader("openrlhf_gagpo.viewer"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_finalize,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters |= {"number": number, "signed": signed, "percent": percent, "level": level}
_ENVIRONMENT.globals["file"] = _file
