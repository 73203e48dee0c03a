"""What an environment declares beside its rules: the packages it plays with, and how its data can be made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from agent_envs.errors import EnvError

__all__ = ["Generator", "GeneratorOption", "Needs", "OnProgress", "Value"]

Value = int | float | str
"""One value of a generator's option."""

OnProgress = Callable[[int, int], None]
"""Takes how many pieces are there by now, and how many there shall be."""


@dataclass(frozen=True)
class Needs:
    """Packages beyond the base install that an environment plays with."""

    packages: tuple[str, ...] = ()
    """Their names in an import statement."""
    extra: str = ""
    """Extra of this project that brings them; "" for an environment from elsewhere."""
    install: str = ""
    """What an environment from elsewhere asks pip for; "" where the packages have the names they are imported by."""

    def missing(self) -> tuple[str, ...]:
        """The packages that are not installed."""
        return tuple(package for package in self.packages if find_spec(package) is None)

    def hint(self) -> str:
        """How to install what is missing; "" where nothing is."""
        missing = self.missing()
        if not missing:
            return ""
        if self.extra:
            how = f"pip install -e '.[{self.extra}]' in the checkout"
        else:
            how = f"pip install {self.install or ' '.join(missing)}"
        return f"needs {' and '.join(missing)}: run {how}"


@dataclass(frozen=True)
class GeneratorOption:
    """One value that a generator of data takes."""

    name: str
    kind: type[Value]
    help: str
    default: Value | tuple[Value, ...] | None = None
    """None: it has to be given."""
    choices: tuple[Value, ...] = ()
    """The values allowed; empty for any."""
    low: float | None = None
    """Smallest number allowed."""
    high: float | None = None
    """Largest number allowed."""
    several: bool = False
    """Whether it takes one value or more; ``default`` is then a tuple, and the generator gets one."""

    def problem(self, value: Value) -> str:
        """What is wrong with one value, as the end of a sentence that names it; "" where it is allowed."""
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(map(str, self.choices))}"
        if isinstance(value, str):
            return ""
        if self.low is not None and value < self.low:
            return f"must be at least {self.low:g}"
        if self.high is not None and value > self.high:
            return f"must be at most {self.high:g}"
        return ""


class Generate(Protocol):
    """Writes data to a folder. Raises ``EnvError``, ``ValueError`` or ``OSError`` where it cannot."""

    def __call__(self, out: Path, on_progress: OnProgress, **values: object) -> object: ...


@dataclass(frozen=True)
class Generator:
    """How data can be made for an environment that otherwise plays data from elsewhere."""

    summary: str
    """What is made, such as "solvable games; complete ones are kept"."""
    run: Generate
    """Called as ``run(out, on_progress, **values)``; heavy imports belong inside it."""
    data_option: str
    """Option of the environment that takes the folder."""
    options: tuple[GeneratorOption, ...] = ()

    def __post_init__(self) -> None:
        names = [option.name for option in self.options]
        taken = [name for name in names if name in ("out", "on_progress") or names.count(name) > 1]
        if taken:
            raise EnvError(f"two values of the generator of {self.summary} are named {taken[0]!r}; rename one option.")
