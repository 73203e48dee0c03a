"""The credit of every estimator as JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from openrlhf_gagpo.comparison.compute import Credit
from openrlhf_gagpo.comparison.steps import Source
from openrlhf_gagpo.errors import ConfigError

__all__ = ["write_credit", "writing"]


def write_credit(
    path: Path, source: Source, credits: Sequence[Credit], extra: Sequence[Mapping[str, object]] = ()
) -> None:
    """Write one line per estimator and step: what names the step, then its credit; null where it has none.

    Args:
        extra: further lines, written after those.

    Raises:
        ConfigError: the file cannot be written.
    """
    with writing(path, "--output") as file:
        for credit in credits:
            columns = {name: values.tolist() for name, values in credit.values.items()}
            for row, identity in enumerate(source.identity):
                numbers = {name: _plain(column[row]) for name, column in columns.items()}
                line = {**identity, "estimator": credit.estimator, **numbers, "keep": bool(credit.keep[row])}
                file.write(json.dumps(line) + "\n")
        for further in extra:
            file.write(json.dumps(further) + "\n")


@contextmanager
def writing(path: Path, flag: str) -> Iterator[TextIO]:
    """Open a file for text. Raises ``ConfigError``, which names ``flag``, if there can be none."""
    try:
        # A model may write lone surrogates, which UTF-8 cannot hold.
        file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n")
    except OSError as error:
        raise ConfigError(f"{flag} {path} cannot be written: {error.strerror}; name another file") from error
    with file:
        yield file


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
