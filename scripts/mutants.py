"""Check that the tests notice broken code: ``python scripts/mutants.py [NAME ...]``.

Every ``tests/mutants/NAME.patch`` breaks one thing. Its header, before the diff, says what it breaks, and names the
tests that have to notice in a line ``Tests: tests/a/test_b.py::test_c ...``. Each patch is applied to a copy of the
working tree, where those tests must fail. Before that they run in a copy without a patch, where they must pass. Exits
with 1 if any patch does not apply, any test cannot be run, or any mutant survives.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mutant", "MutantError", "main", "read", "run"]

ROOT = Path(__file__).resolve().parents[1]
# pytest's exit statuses.
_PASSED, _FAILED = 0, 1


class MutantError(Exception):
    """A patch or a test that cannot be used as it is."""


@dataclass(frozen=True)
class Mutant:
    """One patch and the tests that have to notice it."""

    patch: Path
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name on the command line and in the output."""
        return self.patch.stem


def read(patch: Path) -> Mutant:
    """Read the header of a patch.

    Raises:
        MutantError: the header names no tests.
    """
    header = patch.read_text(encoding="utf-8").partition("\n--- ")[0]
    named = (line.removeprefix("Tests:") for line in header.splitlines() if line.startswith("Tests:"))
    tests = tuple(test for line in named for test in line.split())
    if not tests:
        raise MutantError("its header names no tests; add a line 'Tests: tests/...::test_...' before the diff")
    return Mutant(patch, tests)


def run(root: Path, patches: Sequence[Path], say: Callable[[str], None]) -> bool:
    """Run every mutant of the tree ``root``, ``say`` a line about each, and return whether all were noticed."""
    sound = True
    mutants = []
    for patch in patches:
        try:
            mutants.append(read(patch))
        except MutantError as error:
            say(f"ERROR     {patch.stem}: {error}")
            sound = False
    if mutants:
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        with _copy(root) as tree:
            status, output = _pytest(tree, tests)
        if status != _PASSED:
            say(f"ERROR     the named tests do not pass without any patch:\n{output}")
            return False
    for mutant in mutants:
        started = time.perf_counter()
        try:
            noticed = _noticed(root, mutant)
            line = f"{'noticed ' if noticed else 'SURVIVED'}  {mutant.name} ({time.perf_counter() - started:.0f} s)"
        except MutantError as error:
            noticed, line = False, f"ERROR     {mutant.name}: {error}"
        say(line)
        sound &= noticed
    return sound


def _noticed(root: Path, mutant: Mutant) -> bool:
    """Return whether a named test fails on the mutated copy."""
    with _copy(root) as tree:
        # Inside another checkout git would read the paths as relative to that checkout and apply nothing.
        alone = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.parent)}
        command = ["git", "apply", str(mutant.patch.resolve())]
        applied = subprocess.run(command, cwd=tree, env=alone, capture_output=True, text=True)
        if applied.returncode:
            raise MutantError(f"the patch does not apply, write it again: {' '.join(applied.stderr.split())}")
        status, output = _pytest(tree, mutant.tests)
    if status not in (_PASSED, _FAILED):
        raise MutantError(f"its tests could not be run (pytest exited with {status}):\n{output}")
    return status == _FAILED


def _pytest(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run the tests in ``tree``, with its packages instead of installed ones, and return exit status and output."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--tb=short", "-p", "no:cacheprovider", *tests],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@contextmanager
def _copy(root: Path) -> Iterator[Path]:
    """Make a temporary copy of everything in ``root`` that git does not ignore, including edited and new files."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, capture_output=True, check=True)
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        tree = Path(folder).resolve()
        for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
            # A listed file that does not exist was deleted without telling git.
            if (root / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / name, tree / name)
        yield tree


def main(argv: Sequence[str] | None = None) -> int:
    """Run the mutants named on the command line, or all of them, and return the exit status."""
    parser = argparse.ArgumentParser(description="Check that the tests notice broken code.")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a patch in tests/mutants, without .patch (default: all)"
    )
    parser.add_argument("--tree", type=Path, default=ROOT, help="the checkout to take tests and patches from")
    options = parser.parse_args(argv)
    folder = options.tree / "tests" / "mutants"
    patches = sorted(folder.glob("*.patch"))
    if unknown := sorted(set(options.names) - {patch.stem for patch in patches}):
        parser.error(f"there is no mutant {unknown[0]} in {folder}")
    if options.names:
        patches = [patch for patch in patches if patch.stem in options.names]
    if not patches:
        parser.error(f"there are no patches in {folder}")
    return 0 if run(options.tree.resolve(), patches, _say) else 1


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
