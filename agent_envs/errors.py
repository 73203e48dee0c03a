"""Every error an environment, or the way to one, raises on purpose, in one tree.

The message of each is one sentence: what is wrong and, where there is one, the way out.
"""

from __future__ import annotations

__all__ = ["CatalogueError", "EnvError", "EnvFault", "RegistryError", "StoreError", "UnknownTask"]


class EnvError(Exception):
    """Root of the tree: the environment cannot do what was asked. It ends one episode, never a run."""


class UnknownTask(EnvError):
    """A task or split name that the environment does not have."""


class CatalogueError(EnvError):
    """Catalogue files that are missing, unreadable or do not have the expected format."""


class StoreError(EnvError):
    """A cache folder that cannot be written."""


class RegistryError(EnvError, ValueError):
    """A name, option or plugin that cannot be used; the message says which and what there is instead."""


class EnvFault(EnvError):
    """An environment was lost: it raised, its worker process died, or it took too long.

    Args:
        message: what happened.
        details: the traceback of what it raised; "" where it raised nothing.
        refused: whether it raised one of the errors above or a ``ValueError``, whose message says enough by itself.
    """

    def __init__(self, message: str, details: str = "", refused: bool = False) -> None:
        super().__init__(message)
        self.details = details
        self.refused = refused
