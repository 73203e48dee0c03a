"""The matrix file of ``gagpo compare``, read and checked without anything being run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openrlhf_gagpo.config import recipes
from openrlhf_gagpo.config.flag import negation
from openrlhf_gagpo.errors import ConfigError

__all__ = ["DEFAULT_SETTING", "PRIMARY", "Algorithm", "Matrix", "Tuning", "Warmstart", "read_matrix"]

DEFAULT_SETTING = "default"
"""Name of the only setting of a matrix without ``settings``."""
PRIMARY = "eval/success"

_SUBMIT = ("local", "ray")
_NAME = re.compile(r"[\w+-][\w.+-]*")
_KEYS = ("algorithms", "base", "baseline", "common", "primary", "seeds", "settings", "submit", "tuning", "warmstart")
_OURS = ("run_dir", "train.seed", "ckpt.load_enable")
"""Flags that compare sets itself, cell by cell."""
_MODEL = "actor.model_name_or_path"

Flags = Mapping[str, Any]


@dataclass(frozen=True)
class Algorithm:
    """One column of the comparison: flags on top of the base recipe, or of a recipe of its own."""

    name: str
    flags: Flags
    recipe: Path | None = None
    """Stands in for the matrix's base recipe."""


@dataclass(frozen=True)
class Warmstart:
    """How the starting model of each setting and seed is made."""

    flags: Flags
    """Flags of ``gagpo warmstart`` besides environment, prompts, seed and folder, which follow from the setting."""
    accept: tuple[float, float] = (0.0, 1.0)
    """Range of sampled success in which a start is kept."""
    tries: int = 5
    """Starts made for one seed before the seed is given up."""

    @property
    def measured(self) -> bool:
        """Whether starts are evaluated before they are used."""
        return self.accept != (0.0, 1.0)


@dataclass(frozen=True)
class Tuning:
    """A choice of one flag's value per setting and algorithm, on seeds that the final table does not use."""

    flag: str
    values: Sequence[Any]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Matrix:
    """A checked matrix file."""

    path: Path
    base: Path
    algorithms: Sequence[Algorithm]
    seeds: Sequence[int]
    baseline: str
    common: Flags = field(default_factory=dict)
    settings: Mapping[str, Flags] = field(default_factory=lambda: {DEFAULT_SETTING: {}})
    warmstart: Warmstart | None = None
    tuning: Tuning | None = None
    primary: str = PRIMARY
    submit: str = "local"
    """``local`` for processes on this machine, ``ray`` for jobs of a running cluster."""


def read_matrix(path: Path) -> Matrix:
    """Read and check a matrix file.

    Raises:
        ConfigError: the file cannot be read, or a key is missing, unknown or wrong; the message names it.
    """
    content = recipes.load(str(path))
    for key in content:
        if key not in _KEYS:
            near = recipes.nearest(str(key), _KEYS)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(_KEYS)}"
            raise ConfigError(f"{key} in {path} is not a key of a matrix; {hint}")
    reader = _Reader(path, content)
    algorithms = [reader.algorithm(name, given) for name, given in reader.mapping("algorithms").items()]
    names = [algorithm.name for algorithm in algorithms]
    baseline = content.get("baseline", names[0])
    if baseline not in names:
        raise reader.error("baseline", f"is {baseline!r}; it must be one of {', '.join(names)}")
    settings = reader.mapping("settings", {DEFAULT_SETTING: {}})
    warmstart = reader.warmstart() if "warmstart" in content else None
    tuning = reader.tuning() if "tuning" in content else None
    seeds = reader.seeds(content.get("seeds"), "seeds")
    if tuning and (both := sorted(set(tuning.seeds) & set(seeds))):
        raise reader.error("tuning.seeds", f"has {both[0]} in common with seeds; a value chosen on it would flatter it")
    submit = content.get("submit", "local")
    if submit not in _SUBMIT:
        raise reader.error("submit", f"is {submit!r}; it must be one of {', '.join(_SUBMIT)}")
    return Matrix(
        path=path,
        base=reader.recipe(content.get("base"), "base"),
        algorithms=algorithms,
        seeds=seeds,
        baseline=baseline,
        common=reader.flags(content.get("common", {}), "common", warmstart),
        settings={
            reader.name(name, "settings"): reader.flags(flags, f"settings.{name}", warmstart)
            for name, flags in settings.items()
        },
        warmstart=warmstart,
        tuning=tuning,
        primary=reader.primary(content.get("primary", PRIMARY)),
        submit=submit,
    )


@dataclass(frozen=True)
class _Reader:
    path: Path
    content: Mapping[str, Any]

    def error(self, key: str, what: str) -> ConfigError:
        return ConfigError(f"{key} in {self.path} {what}")

    def mapping(self, key: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        value = self.content.get(key, default)
        if not isinstance(value, Mapping) or not value:
            raise self.error(key, "wants at least one line `name: flags`")
        return value

    def name(self, name: object, key: str) -> str:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise self.error(key, f"has the name {name!r}; a name becomes a folder, so use letters, digits and - + . _")
        return name

    def flags(self, value: object, key: str, warmstart: Warmstart | None = None) -> Flags:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self.error(key, f"wants flag: value lines, not {value!r}")
        taken = (*_OURS, _MODEL) if warmstart else _OURS
        for flag in _dotted(value):
            if flag in taken:
                raise self.error(key, f"sets {flag}, which compare sets for each cell; remove it")
        return value

    def algorithm(self, name: object, given: object) -> Algorithm:
        name = self.name(name, "algorithms")
        if isinstance(given, str):
            return Algorithm(name, {}, self.recipe(given, f"algorithms.{name}"))
        warmstart = Warmstart({}) if "warmstart" in self.content else None
        return Algorithm(name, self.flags(given, f"algorithms.{name}", warmstart))

    def recipe(self, value: object, key: str) -> Path:
        """Return the path of a recipe, which is relative to the matrix file."""
        if not isinstance(value, str):
            raise self.error(key, f"wants the path of a recipe, not {value!r}")
        path = self.path.parent / value
        if not path.is_file():
            raise self.error(key, f"is {value}, but there is no file {path}; paths are relative to the matrix file")
        return path

    def seeds(self, value: object, key: str) -> list[int]:
        whole = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
        if not isinstance(value, list) or not value or not whole:
            raise self.error(key, f"wants a list of whole numbers from 0, not {value!r}")
        if len(set(value)) < len(value):
            raise self.error(key, "names a seed twice; keep one of them")
        return value

    def warmstart(self) -> Warmstart:
        given = dict(self.mapping("warmstart"))
        accept, tries = given.pop("accept", [0.0, 1.0]), given.pop("tries", Warmstart.tries)
        number = isinstance(accept, list) and len(accept) == 2 and all(type(x) in (int, float) for x in accept)
        if not number or not 0 <= accept[0] < accept[1] <= 1:
            raise self.error("warmstart.accept", f"wants two rising shares between 0 and 1, not {accept!r}")
        if type(tries) is not int or tries < 1:
            raise self.error("warmstart.tries", f"wants a whole number of at least 1, not {tries!r}")
        for flag in ("out", "seed"):
            if flag in given:
                raise self.error("warmstart", f"sets {flag}, which compare sets for each start; remove it")
        return Warmstart(given, (float(accept[0]), float(accept[1])), tries)

    def tuning(self) -> Tuning:
        given = dict(self.mapping("tuning"))
        seeds = self.seeds(given.pop("seeds", None), "tuning.seeds")
        if len(given) != 1:
            raise self.error("tuning", f"wants one line `flag: [values]` besides seeds, not {len(given)}")
        [(flag, values)] = given.items()
        if not isinstance(values, list) or len(values) < 2 or not all(type(x) in (int, float, str) for x in values):
            raise self.error(f"tuning.{flag}", f"wants a list of two or more numbers or words, not {values!r}")
        if flag in _OURS:
            raise self.error("tuning", f"sets {flag}, which compare sets for each cell; name another flag")
        return Tuning(str(flag), values, seeds)

    def primary(self, value: object) -> str:
        from openrlhf_gagpo.metrics import is_documented

        if not isinstance(value, str) or not is_documented(value) or not value.startswith("eval/"):
            raise self.error("primary", f"is {value!r}; it must be a metric of evaluations, such as {PRIMARY}")
        return value


def _dotted(flags: Mapping[Any, Any], prefix: str = "") -> list[str]:
    """Return the dotted names of a recipe's content, and what each would be as a switch that is turned off."""
    names = []
    for key, value in flags.items():
        names += [f"{prefix}{key}", negation(f"{prefix}{key}")]
        if isinstance(value, Mapping):
            names += _dotted(value, f"{prefix}{key}.")
    return names
