from __future__ import annotations

import builtins
import re
from pathlib import Path

import pytest

from openrlhf_gagpo.cli.main import main as gagpo
from openrlhf_gagpo.cli.view import parse
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.runfolder import RunFolder
from support.report_runs import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return make_run(tmp_path_factory.mktemp("runs") / "run", iterations=3)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "required: PATH"),
        (["x", "--port", "70000"], "from 0 to 65535"),
        (["x", "--episode", "1:2"], "--episode goes with --out"),
        (["x", "--out", "f", "--episode", "1"], "for example 3:0"),
        (["x", "--out", "f", "--episode", "1:b"], "for example 3:0"),
        (["x", "--out", "f", "--state", "S1"], "--state goes with --group"),
        (["x", "--out", "f", "--with", "y"], "--with goes with --episode"),
        (["x", "--out", "f", "--episode", "1:2", "--group", "1:g"], "not allowed with"),
    ],
)
def test_arguments_that_do_not_fit(argv: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        parse(argv)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), ("<h1>run", "eval/success")),
        (("--episode", "3:1", "--with", "grpo"), ("open [the] door", "with grpo", 'class="toks"')),
        (("--group", "3:g0", "--state", "S1"), ("Group g0", "State S1", "<circle")),
    ],
)
def test_a_page_by_itself(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], words: tuple[str, ...]
) -> None:
    out = tmp_path / "page.html"
    assert gagpo(["view", str(run.path), "--out", str(out), *argv]) == 0
    assert capsys.readouterr().out == f"page: {out}\n"
    page = out.read_text(encoding="utf-8")
    assert [word for word in words if word not in page] == []
    assert not re.search(r'(src|href)="(?!#main")', page)
    assert "<script" not in page


def test_what_cannot_be_shown_is_one_sentence(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*argv: str) -> str:
        assert gagpo(["view", *argv]) == 2
        found = capsys.readouterr()
        assert found.out == ""
        assert found.err.count("\n") == 1
        return found.err

    out = str(tmp_path / "page.html")
    assert "does not exist" in fail(str(tmp_path / "absent"))
    assert "has no episode 9 in part 3" in fail(str(run.path), "--out", out, "--episode", "3:9")
    assert "has no group 'x'" in fail(str(run.path), "--out", out, "--group", "3:x")
    assert "--out" in fail(str(run.path), "--out", str(tmp_path / "no" / "page.html"))
    make_run(tmp_path / "both" / "a", iterations=1)
    make_run(tmp_path / "both" / "b", iterations=1)
    assert "holds 2 runs and files" in fail(str(tmp_path / "both"), "--out", out, "--episode", "1:0")

    actual = builtins.__import__

    def without_uvicorn(name: str, *rest: object) -> object:
        if name == "openrlhf_gagpo.viewer.serve":
            raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")
        return actual(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without_uvicorn)
    assert "needs uvicorn, which is not installed; install openrlhf-gagpo[view]" in fail(str(run.path))
