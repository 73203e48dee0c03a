"""What an environment declares besides its rules: packages that it needs, how data is generated, what can be served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from agent_envs.errors import EnvError

__all__ = ["Generator", "GeneratorOption", "Needs", "OnProgress", "Service", "Value"]

Value = int | float | str
"""One value of a generator's option."""

OnProgress = Callable[[int, int], None]
"""Called with the number of finished pieces and the total number."""


@dataclass(frozen=True)
class Needs:
    """Packages beyond the base install that an environment needs."""

    packages: tuple[str, ...] = ()
    """Their names in an import statement."""
    extra: str = ""
    """Extra of this project that installs them; "" for an environment from elsewhere."""
    install: str = ""
    """Argument of ``pip install`` for an environment from elsewhere; "" if package names equal import names."""

    def missing(self) -> tuple[str, ...]:
        """Return the packages that are not installed."""
        return tuple(package for package in self.packages if find_spec(package) is None)

    def hint(self) -> str:
        """Return a clause that says how to install the missing packages; "" if none is missing."""
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
    """One value that a generator of data, or a service, takes."""

    name: str
    kind: type[Value]
    help: str
    default: Value | tuple[Value, ...] | None = None
    """None if the user has to give a value."""
    choices: tuple[Value, ...] = ()
    """The allowed values; empty if any value is allowed."""
    low: float | None = None
    """Smallest allowed number."""
    high: float | None = None
    """Largest allowed number."""
    several: bool = False
    """Whether it takes several values; ``default`` is then a tuple, and so is the value that the generator gets."""

    def problem(self, value: Value) -> str:
        """Say what is wrong with one value, as the end of a sentence that names it; "" if it is allowed."""
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
    """Writes data to a folder. Raises ``EnvError``, ``ValueError`` or ``OSError`` if it cannot."""

    def __call__(self, out: Path, on_progress: OnProgress, **values: object) -> object: ...


@dataclass(frozen=True)
class Generator:
    """Generates data for an environment that otherwise plays data from elsewhere."""

    summary: str
    """What it makes, such as "solvable games; complete ones are kept"."""
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


class Serve(Protocol):
    """Answers other processes until it is interrupted. Raises ``EnvError``, ``ValueError`` or ``OSError``."""

    def __call__(self, ready: Callable[[str], None], **values: object) -> object: ...


@dataclass(frozen=True)
class Service:
    """Offers an environment's data to other processes, of other machines too."""

    summary: str
    """What it answers, such as "searches in its corpus"."""
    run: Serve
    """Called as ``run(ready, **values)``; calls ``ready(address)`` once it listens. Heavy imports belong inside it."""
    options: tuple[GeneratorOption, ...] = ()
