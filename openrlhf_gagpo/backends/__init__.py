"""Backends, which hold the policy and update it. A new one is a module and an entry here."""

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
"""Fraction of a GPU that OpenRLHF reserves for each of the processes that share it."""


@dataclass(frozen=True)
class BackendEntry:
    """A backend that is not imported until it is used."""

    target: str
    """``module:Class``; the class is made from the settings and OpenRLHF's arguments."""
    columns: frozenset[str]
    """Model columns that its ``compute`` can provide for credit."""
    one_process: bool
    """Whether the calling process does all the work, so that Ray and vLLM are not needed."""


BACKENDS: Mapping[str, BackendEntry] = {
    "distributed": BackendEntry(
        "openrlhf_gagpo.backends.distributed.backend:DistributedBackend",
        frozenset({"log_prob", "value", "token_value"}),
        one_process=False,
    ),
    "local": BackendEntry(
        "openrlhf_gagpo.backends.local:LocalBackend", frozenset({"log_prob", "value", "token_value"}), one_process=True
    ),
}


def create(name: str, settings: BackendSettings, arguments: SimpleNamespace) -> Backend:
    """Create the backend called ``name`` and import only that one.

    Args:
        arguments: all flags in the form of OpenRLHF's own parsed arguments, for the parts that are passed on to it.
    """
    module, _, attribute = BACKENDS[name].target.partition(":")
    backend: Backend = getattr(import_module(module), attribute)(settings, arguments)
    return backend
