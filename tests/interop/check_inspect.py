"""Reads an exported log with Inspect itself; `make test-interop` runs it where that is installed."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from inspect_ai.log import list_eval_logs, read_eval_log, write_eval_log


def main(folder: Path) -> None:
    log = read_eval_log(str(folder / "log.json"))
    assert (log.status, log.eval.task, log.eval.model) == ("success", "vault", "models/tiny")
    assert log.eval.metadata is not None
    assert log.eval.metadata["settings"]["train.seed"] == 7
    assert log.results is not None
    assert {score.name: score.metrics["mean"].value for score in log.results.scores}["success"] == 0.5
    assert log.samples is not None
    won, lost, faulted = log.samples
    assert [(sample.id, sample.epoch) for sample in log.samples] == [("vault-0", 1), ("vault-0", 2), ("vault-0", 3)]
    assert won.scores is not None
    assert won.scores["success"].as_float() == 1.0
    assert [message.role for message in won.messages] == ["user", "assistant", "user", "assistant", "user"]
    first = won.messages[1]
    assert first.metadata is not None
    assert first.metadata["credit"]["advantage"] == -0.1
    assert won.output.completion == won.messages[3].text
    assert lost.limit is not None
    assert lost.limit.limit == 3
    assert lost.model_usage["models/tiny"].input_tokens_cache_read == 20
    assert faulted.error is not None
    assert "stuck" in faulted.error.message
    with tempfile.TemporaryDirectory() as name:
        # What Inspect writes itself is the same, and a file with a dated name is found by its viewer.
        write_eval_log(log, f"{name}/again.eval")
        assert read_eval_log(f"{name}/again.eval").samples == log.samples
        shutil.copy(folder / "log.json", f"{name}/2026-01-02T03-04-05_made-up.inspect.json")
        assert len(list_eval_logs(name)) == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.write("inspect: 1 passed, 0 failed\n")
