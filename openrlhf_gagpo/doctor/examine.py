"""All checks in order, the cheap ones first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from openrlhf_gagpo.backends import BACKENDS
from openrlhf_gagpo.doctor import hardware, packages
from openrlhf_gagpo.doctor.environments import check_environments, check_one_environment
from openrlhf_gagpo.doctor.finding import Finding
from openrlhf_gagpo.doctor.imports import check_imports

__all__ = ["Request", "examine"]


@dataclass(frozen=True)
class Request:
    """What the run that the user has in mind needs."""

    backend: str | None = None
    """None for every backend that is completely installed."""
    env: str | None = None
    """None for a look at all environments."""
    env_options: Sequence[str] = ()
    env_plugins: Sequence[str] = ()
    run_dir: Path = Path("runs")
    quick: bool = False
    """Whether to leave out what takes seconds: imports of backends and the check of the environment."""


def examine(request: Request) -> Iterator[Finding]:
    """Yield what is found, as it is found."""
    backends = [request.backend] if request.backend else packages.installed_backends()
    complete = [name for name in backends if not packages.missing(name)]
    yield packages.check_python()
    yield from packages.check_packages(backends, asked=request.backend is not None)
    yield hardware.check_gpus()
    yield from hardware.check_memory()
    distributed = any(not BACKENDS[name].one_process for name in complete)
    yield hardware.check_shared_memory(needed=distributed)
    yield from hardware.check_disks(request.run_dir)
    if distributed:
        yield from filter(None, (hardware.check_ray_folder(), hardware.check_ray_address()))
    if request.env is None:
        yield from check_environments()
    elif not request.quick:
        yield check_one_environment(request.env, request.env_options, request.env_plugins)
    if not request.quick:
        yield from check_imports(complete)
