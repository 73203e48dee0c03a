"""The driver and its workers wait for one another with a limit, so that a run whose other processes hang ends."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from support.paths import REPOSITORY

FOLDER = REPOSITORY / "openrlhf_gagpo" / "backends" / "distributed"
RIGHT = {
    # A thread that does nothing else, and ends with its process.
    ("weights.py", "parent.join()"),
}


def endless(code: str) -> Iterator[str]:
    """Calls that wait for another process or thread, and that nothing ends.

    Those of ``join`` and ``wait`` with arguments have a limit, or join strings.
    """
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        limits = [word for word in node.keywords if word.arg in ("timeout", "timeout_s", "limit_s")]
        unlimited = any(isinstance(word.value, ast.Constant) and word.value.value is None for word in limits)
        of_ray = ast.unparse(node.func) in ("ray.get", "ray.wait")
        waits = node.func.attr in ("result", "exception", "wait", "join", "acquire", "communicate") and not node.args
        if (of_ray or waits) and (not limits or unlimited):
            yield ast.unparse(node)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("ray.get(refs)", True),
        ("ray.get(refs, timeout=None)", True),
        ("ray.get(refs, timeout=60)", False),
        ("ray.wait(refs, num_returns=1)", True),
        ("future.result()", True),
        ("future.result(timeout=1)", False),
        ("process.wait()", True),
        ("thread.join()", True),
        ("thread.join(5)", False),
        ("', '.join(names)", False),
        ("lock.acquire()", True),
        ("lock.acquire(timeout=1)", False),
    ],
)
def test_calls_without_a_limit_are_found(call: str, found: bool) -> None:
    assert list(endless(call)) == [call] * found


def test_no_call_of_ray_and_no_thread_of_the_distributed_backend_waits_without_a_limit() -> None:
    files = sorted(FOLDER.rglob("*.py"))
    assert len(files) > 10
    waits = {(path.name, call) for path in files for call in endless(path.read_text(encoding="utf-8"))}
    assert waits == RIGHT
