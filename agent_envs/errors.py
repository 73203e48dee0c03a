"""Every error that environments and the code that finds and runs them raise on purpose, in one tree.

Each message is one sentence that says what is wrong and, if something can be done about it, what to do.
"""

from __future__ import annotations

from typing import Self

__all__ = ["CatalogueError", "EnvError", "EnvFault", "RegistryError", "ServerLost", "StoreError", "UnknownTask"]


class EnvError(Exception):
    """The environment cannot do what was asked; the root of the tree. It ends one episode, never a run."""


class UnknownTask(EnvError):
    """A task or split name that the environment does not have."""


class CatalogueError(EnvError):
    """Catalogue files that are missing, unreadable or do not have the expected format."""


class StoreError(EnvError):
    """A cache folder that cannot be written."""


class RegistryError(EnvError, ValueError):
    """A name, option or plugin that cannot be used; the message names it and the alternatives."""


class EnvFault(EnvError):
    """An environment was lost: it raised an exception, its worker process died, or it took too long.

    Args:
        message: what happened.
        details: the traceback of the environment's exception; "" if there was none.
        refused: whether the exception was one of the errors above or a ``ValueError``, whose message is enough without
            a traceback.
    """

    def __init__(self, message: str, details: str = "", refused: bool = False) -> None:
        super().__init__(message)
        self.details = details
        self.refused = refused

    def again(self) -> Self:
        """Return a fault that says the same, for another who loses by it: a raised exception collects its traces."""
        return type(self)(str(self), self.details, self.refused)


class ServerLost(EnvFault):
    """The process from which all environments of a pool come died or hung, and they were lost with it.

    Nothing that an episode did is the cause, and the pool starts another such process when it is next needed. So the
    episode can be played again.
    """
