"""The folder of one evaluation, which a kill at any moment leaves ready to be continued.

====================  =================================================================================
``protocol.json``     what is evaluated and how (``settings``), and with what versions, when and where
``prompt.txt``        the wording of the prompts
``episodes.jsonl``    one JSON object per finished sample, in the order in which they ended
``result.json``       the numbers, written at the end
``result.md``         the same as a row of a Markdown table
====================  =================================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openrlhf_gagpo.errors import EvaluationError
from openrlhf_gagpo.evaluation.samples import Sample
from openrlhf_gagpo.files import LOCK, hold, write_atomic
from openrlhf_gagpo.output import LIBRARIES_LOG
from openrlhf_gagpo.rollout.types import Episode, Step, Usage

__all__ = ["EvaluationFolder", "SampleLine", "is_evaluation"]

_FORMAT = 1


def is_evaluation(path: Path) -> bool:
    """Return whether the folder ``path`` looks like one of an evaluation."""
    folder = EvaluationFolder(path)
    return folder.protocol_path.is_file() and folder.prompt_path.is_file()


@dataclass(frozen=True)
class SampleLine:
    """A finished sample and the place of its line in ``episodes.jsonl``."""

    sample: Sample
    offset: int
    """Of the line's first byte."""
    size: int
    """In bytes, with the end of the line."""


class EvaluationFolder:
    """The files of one evaluation; ``claim`` has to be entered before anything is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.protocol_path = path / "protocol.json"
        self.prompt_path = path / "prompt.txt"
        self.samples_path = path / "episodes.jsonl"
        self.result_path = path / "result.json"
        self.row_path = path / "result.md"
        self.log_path = path / LIBRARIES_LOG

    @contextmanager
    def claim(self, settings: Mapping[str, object], about: Mapping[str, object], prompt: str) -> Iterator[None]:
        """Make the folder, or continue in it, and keep other processes out until the block ends.

        Args:
            settings: what determines the episodes, in JSON types; a continued evaluation keeps them.
            about: what else is worth recording, such as versions; a continuation appends its own.
            prompt: the wording of the prompts.

        Raises:
            EvaluationError: the folder holds something else, another evaluation, or one that is being played.
        """
        try:
            found = {file.name for file in self.path.iterdir()} if self.path.exists() else set()
            if found - {LOCK} and self.protocol_path.name not in found:
                raise EvaluationError(f"{self.path} holds other files than an evaluation; give another --out")
            lock = hold(self.path)
        except BlockingIOError:
            raise EvaluationError(
                f"another process plays the evaluation {self.path}; wait for it, or give another --out"
            ) from None
        except OSError as error:
            raise EvaluationError(f"{self.path} cannot be used: {error.strerror}; give another --out") from error
        with lock:
            sessions = [about]
            if self.protocol_path.exists():
                known = self.protocol()
                self._check_same(known["settings"], json.loads(json.dumps(settings)))
                sessions = [*known["sessions"], about]
            protocol = {"format": _FORMAT, "settings": settings, "sessions": sessions}
            write_atomic(self.protocol_path, json.dumps(protocol, indent=2) + "\n")
            write_atomic(self.prompt_path, prompt)
            self._cut_partial_line()
            yield

    def protocol(self) -> dict[str, Any]:
        """Return the contents of ``protocol.json``. Raises ``EvaluationError`` if there is none that can be read."""
        try:
            found = json.loads(self.protocol_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EvaluationError(f"{self.path} is not an evaluation: it has no {self.protocol_path.name}") from None
        except (OSError, ValueError):
            raise EvaluationError(f"{self.protocol_path} cannot be read; evaluate again into another folder") from None
        if not isinstance(found, dict) or not {"format", "settings", "sessions"} <= found.keys():
            raise EvaluationError(f"{self.protocol_path} is not the protocol of an evaluation; give another folder")
        if found["format"] > _FORMAT:
            raise EvaluationError(f"{self.path} was written by a newer release; update openrlhf-gagpo")
        return found

    def samples(self) -> dict[str, Sample]:
        """Return the finished samples by identity; of one that was played again, the last.

        A line that was being written when the process was killed is left out.

        Raises:
            EvaluationError: another line is not a sample.
        """
        if not self.samples_path.exists():
            return {}
        return {line.sample.identity: line.sample for line in self.sample_lines()}

    def sample_lines(self, offset: int = 0) -> Iterator[SampleLine]:
        """Yield the samples line by line, all of those that were played again, with the errors of ``samples``.

        Args:
            offset: of the first byte of the line to begin with.
        """
        with self.samples_path.open("rb") as lines:
            lines.seek(offset)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                try:
                    sample = _sample(json.loads(line))
                except (ValueError, TypeError, KeyError):
                    raise self._damaged(offset) from None
                yield SampleLine(sample, offset, len(line))
                offset += len(line)

    def append(self, sample: Sample) -> None:
        """Append a finished sample and force it to disk."""
        record = asdict(sample)
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        with self.samples_path.open("ab") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())

    def write_result(self, result: Mapping[str, object], row: str) -> None:
        """Write the numbers and the row."""
        write_atomic(self.result_path, json.dumps(result, indent=2) + "\n")
        write_atomic(self.row_path, row)

    def result(self) -> dict[str, Any]:
        """Return the numbers. Raises ``EvaluationError`` if the evaluation has not ended."""
        self.protocol()
        try:
            found: dict[str, Any] = json.loads(self.result_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise EvaluationError(f"the evaluation {self.path} has not ended; run its command again") from None
        except (OSError, ValueError):
            raise EvaluationError(f"{self.result_path} cannot be read; run the command of {self.path} again") from None
        return found

    def _damaged(self, offset: int) -> EvaluationError:
        with self.samples_path.open("rb") as lines:
            number = lines.read(offset).count(b"\n") + 1
        return EvaluationError(
            f"{self.samples_path} is damaged in line {number}; remove that line, and its task is played again"
        )

    def _check_same(self, before: Mapping[str, object], now: Mapping[str, object]) -> None:
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                raise EvaluationError(
                    f"{self.path} was started with {name} {before.get(name)!r}, not {now.get(name)!r}; an evaluation "
                    "keeps its settings, so give another --out"
                )

    def _cut_partial_line(self) -> None:
        if self.samples_path.exists():
            data = self.samples_path.read_bytes()
            if not data.endswith(b"\n"):
                os.truncate(self.samples_path, data.rfind(b"\n") + 1)


def _sample(record: Mapping[str, Any]) -> Sample:
    trials = [Episode(**{**trial, "steps": [Step(**step) for step in trial["steps"]]}) for trial in record["trials"]]
    if not trials:
        raise ValueError("a sample without trials")
    return Sample(trials, Usage(**record["usage"]), record["seconds"])
