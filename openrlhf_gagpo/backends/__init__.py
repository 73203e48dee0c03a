"""Backends: where the policy lives and how it is updated."""

from __future__ import annotations

from typing import Any

from openrlhf_gagpo.training.backend import Backend

__all__ = ["create"]


def create(config: Any) -> Backend:
    """The backend a configuration asks for; imports only that one."""
    if config.backend == "local":
        from openrlhf_gagpo.backends.local import LocalBackend

        return LocalBackend(config)
    from openrlhf_gagpo.backends.distributed.backend import DistributedBackend

    return DistributedBackend(config)
