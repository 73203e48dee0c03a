"""Serving of environment data to other processes, with the service that each environment declares."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from agent_envs import registry
from agent_envs.declarations import Service, Value
from openrlhf_gagpo.cli.env_access import refusals
from openrlhf_gagpo.errors import ConfigError

__all__ = ["serve", "services"]


def services() -> dict[str, Service]:
    """Return the services by environment name, for environments that have one and can be imported."""
    found = {}
    for name in registry.names():
        try:
            service = registry.get(name).service
        except registry.RegistryError:
            continue
        if service is not None:
            found[name] = service
    return found


def serve(name: str, values: Mapping[str, Value | tuple[Value, ...]]) -> None:
    """Run the service of environment ``name`` until it is interrupted, and print its address to stdout.

    Raises:
        ConfigError: there is no service, packages are missing, or a value is refused.
    """
    with refusals():
        cls = registry.get(name)
    service = cls.service
    if service is None:
        raise ConfigError(f"environment {name!r} has nothing to serve; `gagpo env serve --help` names those that have")
    if hint := cls.needs.hint():
        raise ConfigError(f"environment {name!r} {hint}")

    def ready(address: str) -> None:
        sys.stdout.write(f"{address} answers {service.summary}; Ctrl-C stops it\n")
        sys.stdout.flush()

    with refusals():
        service.run(ready, **values)
