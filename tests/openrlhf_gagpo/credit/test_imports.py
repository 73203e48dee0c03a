"""The credit package works beside any trainer: it imports NumPy and the standard library alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

from support.paths import REPOSITORY

_CODE = """
import sys
before = set(sys.modules)
import {module}
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(new - set(sys.stdlib_module_names)))
"""


@pytest.mark.parametrize(
    "module",
    [
        "openrlhf_gagpo.credit",
        "openrlhf_gagpo.credit.conformance.__main__",
        "openrlhf_gagpo.credit.derive",
        "openrlhf_gagpo.interop.verl",
    ],
)
def test_a_fresh_interpreter_gets_numpy_alone(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CODE.format(module=module)],
        env={"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["numpy", "openrlhf_gagpo"]
