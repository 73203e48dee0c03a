"""The runner of ``tests/mutants``, on a small tree of its own; and that the real patches are usable."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from types import ModuleType

import pytest

from support.paths import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "mutants.py"
PATCHES = sorted((REPOSITORY / "tests" / "mutants").glob("*.patch"))

# The name of a package that is installed here: its copy in the tree has to win, in a process that a test starts too.
_SOURCE = "def answer() -> int:\n    return 42\n"
_TESTS = """
import subprocess
import sys

from agent_envs.numbers import answer


def test_answer():
    assert answer() == 42


def test_answer_elsewhere():
    code = "import agent_envs.numbers as n, sys; sys.exit(n.answer() != 42)"
    assert subprocess.run([sys.executable, "-c", code], cwd="/").returncode == 0


def test_kind():
    assert isinstance(answer(), int)
"""


_HERE = "tests/test_numbers.py"
_FILES = {"agent_envs/__init__.py": "", "agent_envs/numbers.py": _SOURCE, _HERE: _TESTS}


def _patch(tests: str, file: str, old: str, new: str, text: str | None = None) -> str:
    """A patch that replaces ``old`` in ``file``, or in ``text`` that the file no longer is."""
    before = _FILES[file] if text is None else text
    assert before.count(old) == 1
    lines = (version.splitlines(keepends=True) for version in (before, before.replace(old, new)))
    return f"Answers something else.\n{tests}\n" + "".join(unified_diff(*lines, f"a/{file}", f"b/{file}"))


def _broken(tests: str) -> str:
    return _patch(tests, "agent_envs/numbers.py", "42", "41")


_DUMMIES = {
    "caught": _broken(f"Tests: {_HERE}::test_kind {_HERE}::test_answer"),
    "caught_elsewhere": _broken(f"Tests: {_HERE}::test_answer_elsewhere"),
    "survivor": _broken(f"Tests: {_HERE}::test_kind"),
    "stale": _patch(f"Tests: {_HERE}::test_kind", "agent_envs/numbers.py", "7", "8", text=_SOURCE.replace("42", "7")),
    "nameless": _broken("Says nothing of tests."),
    "lost_test": _patch(f"Tests: {_HERE}::test_kind", _HERE, "def test_kind", "def kind"),
    "unknown_test": _broken(f"Tests: {_HERE}::test_nowhere"),
}


@pytest.fixture(scope="module")
def mutants() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("mutants_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        # The small tree needs none of pytest's plugins, and they take seconds to load.
        patch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        yield module


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    files = _FILES | {f"tests/mutants/{name}.patch": text for name, text in _DUMMIES.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    return root


def _run(mutants: ModuleType, tree: Path, *names: str) -> tuple[bool, list[str]]:
    lines: list[str] = []
    sound = mutants.run(tree, [tree / "tests" / "mutants" / f"{name}.patch" for name in names], lines.append)
    return sound, lines


def test_a_mutant_that_a_named_test_notices_is_no_error(mutants: ModuleType, tree: Path) -> None:
    sound, lines = _run(mutants, tree, "caught", "caught_elsewhere")
    assert sound
    assert [line.split()[:2] for line in lines] == [["noticed", "caught"], ["noticed", "caught_elsewhere"]]
    assert (tree / "agent_envs" / "numbers.py").read_text() == _SOURCE


def test_whatever_is_wrong_is_said_of_each_mutant(mutants: ModuleType, tree: Path) -> None:
    sound, lines = _run(mutants, tree, "survivor", "stale", "nameless", "lost_test")
    assert not sound
    assert lines[0].startswith("ERROR     nameless: its header names no tests")
    assert lines[1].startswith("SURVIVED  survivor")
    assert lines[2].startswith("ERROR     stale: the patch does not apply")
    assert lines[3].startswith("ERROR     lost_test: its tests could not be run")


def test_tests_that_do_not_pass_without_a_patch_prove_nothing(mutants: ModuleType, tree: Path) -> None:
    sound, lines = _run(mutants, tree, "unknown_test")
    assert not sound
    assert lines[0].startswith("ERROR     the named tests do not pass without any patch")
    assert "test_nowhere" in lines[0]


def test_the_exit_status(mutants: ModuleType, tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mutants.main(["--tree", str(tree), "caught"]) == 0
    assert mutants.main(["--tree", str(tree), "nameless"]) == 1
    assert "noticed   caught" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        mutants.main(["--tree", str(tree), "no_such"])


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_the_patches_apply_and_name_tests_that_exist(mutants: ModuleType, patch: Path) -> None:
    """That the tests notice takes longer: ``make mutants``."""
    applied = subprocess.run(["git", "apply", "--check", str(patch)], cwd=REPOSITORY, capture_output=True, text=True)
    assert applied.returncode == 0, applied.stderr
    for test in mutants.read(patch).tests:
        file, _, name = test.partition("::")
        defined = ast.parse((REPOSITORY / file).read_text(encoding="utf-8")).body
        assert name.partition("[")[0] in {node.name for node in defined if isinstance(node, ast.FunctionDef)}
