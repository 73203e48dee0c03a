"""Linear scales with round ticks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Scale"]

_NEAR_ZERO = 0.3
"""Positive values that begin below this share of the largest are shown from 0."""


@dataclass(frozen=True)
class Scale:
    """Maps values to coordinates."""

    low: float
    high: float
    start: float
    """Coordinate of ``low``."""
    end: float
    """Coordinate of ``high``."""
    ticks: Sequence[tuple[float, str]]
    """Coordinate and label."""

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float, *, ticks: int) -> Scale:
        """Span the finite ``values``, from 0 if they begin near it, with about ``ticks`` round ticks inside."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        if low == high:
            pad = abs(low) / 2 or 0.5
            low, high = low - pad, high + pad
        elif 0 < low < _NEAR_ZERO * high:
            low = 0.0
        step = _round((high - low) / ticks)
        low, high = min(low, math.ceil(low / step) * step), max(high, math.floor(high / step) * step)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        scale = cls(low, high, start, end, ())
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        marks = [(scale(n * step), _label(n * step, digits)) for n in range(first, last + 1)]
        return cls(low, high, start, end, marks)

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _round(step: float) -> float:
    """Return the nearest of 1, 2 and 5 times a power of ten, in ratio."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((n * power for n, most in ((1, 2), (2, 10), (5, 50)) if (step / power) ** 2 < most), 10 * power)


def _label(value: float, digits: int) -> str:
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    if abs(value) >= 10_000:
        return f"{value / 1_000:g}k"
    if digits > 4:
        return f"{value:.2g}"
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
