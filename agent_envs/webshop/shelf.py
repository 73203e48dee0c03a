"""JSON values by name in a file, for more of them than memory should hold."""

from __future__ import annotations

import json
from array import array
from typing import IO, Any

__all__ = ["Shelf"]


class Shelf:
    """Values by name; ``file`` is an empty one, open for writing and reading, that nobody else uses."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._records: dict[str, int] = {}
        self._ends = array("q", [0])

    def put(self, name: str, value: Any) -> None:
        """Keep ``value``, in place of an earlier one of this name; only before the first ``get``.

        Raises ``OSError`` where the file cannot grow.
        """
        record = json.dumps(value).encode()
        self._file.write(record)
        self._records[name] = len(self._ends) - 1
        self._ends.append(self._ends[-1] + len(record))

    def get(self, name: str) -> Any:
        """The value of ``name``; None where there is none."""
        number = self._records.get(name)
        if number is None:
            return None
        start, end = self._ends[number : number + 2]
        self._file.seek(start)
        return json.loads(self._file.read(end - start))
