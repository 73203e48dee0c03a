"""The names of formats, and what a format has to say of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.registry import Registry

if TYPE_CHECKING:
    from openrlhf_gagpo.export.recording import Recording

__all__ = ["Format", "Write", "get", "names", "register"]

Write = Callable[["Recording", Path], str]
"""Writes a recording to a path and returns what it wrote, in words, such as "12 steps"."""


@dataclass(frozen=True)
class Format:
    """A registered format."""

    name: str
    about: str
    """What it holds, in a few words, for the help."""
    suffix: str
    """How the name of its file ends by default; "" for a format that writes a folder."""
    reads_prompts: bool
    """Whether it needs the prompts as text, and so the tokenizer of the model that played."""
    dated: bool
    """Whether its readers want names of files to begin with a time."""
    write: Write

    def file_name(self, title: str, started: str) -> str:
        """Return a name for what a recording of that title and start is written to."""
        date = f"{started[:19].replace(':', '-')}_" if self.dated and started else ""
        return f"{date}{title}.{self.name}{self.suffix}"


_FORMATS: Registry[Format] = Registry("format", ConfigError)
get, names = _FORMATS.get, _FORMATS.names


def register(
    name: str, about: str, *, suffix: str, reads_prompts: bool = False, dated: bool = False
) -> Callable[[Write], Write]:
    """Make a function available as the format ``name``. Raises ``ConfigError`` for a taken name."""

    def add(write: Write) -> Write:
        _FORMATS.add(name, Format(name, about, suffix, reads_prompts, dated, write))
        return write

    return add
