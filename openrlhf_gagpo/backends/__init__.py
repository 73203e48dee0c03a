"""Backends: where the policy lives and how it is updated. A new one is a module and an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import SimpleNamespace

    from openrlhf_gagpo.training.backend import Backend
    from openrlhf_gagpo.training.settings import BackendSettings

__all__ = ["BACKENDS", "SHARE", "BackendEntry", "create"]

SHARE = 0.2
"""Part of a GPU that OpenRLHF books for each of the processes that share it."""


@dataclass(frozen=True)
class BackendEntry:
    """A backend that is not imported before it is asked for."""

    target: str
    """``module:Class``; the class is made from the settings and OpenRLHF's arguments."""
    columns: frozenset[str]
    """Model columns that its ``compute`` can give to credit."""
    one_process: bool
    """Whether the calling process does all the work, so that Ray and vLLM are not needed."""


BACKENDS: Mapping[str, BackendEntry] = {
    "distributed": BackendEntry(
        "openrlhf_gagpo.backends.distributed.backend:DistributedBackend", frozenset({"log_prob"}), one_process=False
    ),
    "local": BackendEntry("openrlhf_gagpo.backends.local:LocalBackend", frozenset({"log_prob"}), one_process=True),
}


def create(name: str, settings: BackendSettings, arguments: SimpleNamespace) -> Backend:
    """The backend called ``name``; imports only that one.

    Args:
        arguments: all flags in the shape of OpenRLHF's own parsed arguments, for what is handed on to it.
    """
    module, _, attribute = BACKENDS[name].target.partition(":")
    backend: Backend = getattr(import_module(module), attribute)(settings, arguments)
    return backend
