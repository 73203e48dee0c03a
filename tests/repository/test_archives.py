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


def test_the_page_of_results_has_the_tables_of_the_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    import study_tables

    page = study_tables.PAGE.read_text(encoding="utf-8")
    assert page.count(": generated -->") >= 5
    assert study_tables.with_tables(page) == page
