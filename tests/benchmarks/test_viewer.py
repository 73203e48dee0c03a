"""The benchmark of the viewer asks for every page of a run of the size that it was given."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support.paths import REPOSITORY


def test_every_page_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from viewer import make_run, measure

    found = measure(make_run(tmp_path / "run", 400, 2), 1)
    assert found["files"] == 2
    assert 300 < found["steps"] < 500
    assert len(found["pages_s"]) == 9
    assert all(times["median"] > 0 for times in found["pages_s"].values())
    sys.modules.pop("viewer")
