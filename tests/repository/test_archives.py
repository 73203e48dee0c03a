"""Committed comparisons: the tables are those that their raw data gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from openrlhf_gagpo.cli import compare
from support.paths import REPOSITORY

ARCHIVES = sorted((REPOSITORY / "results").rglob("runs.jsonl.gz"))


@pytest.mark.parametrize("archive", ARCHIVES, ids=[path.parent.name for path in ARCHIVES])
def test_tables_are_made_from_the_archive(archive: Path, tmp_path: Path) -> None:
    assert compare.main([str(archive), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "results.md").read_text() == (archive.parent / "results.md").read_text()
    assert (tmp_path / "runs.jsonl.gz").read_bytes() == archive.read_bytes()
