"""Recipes: YAML files of flag values, nested or dotted, that may build on one another with ``base``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from openrlhf_gagpo.config.flag import Flag
from openrlhf_gagpo.config.parser import nearest
from openrlhf_gagpo.errors import ConfigError

__all__ = ["DERIVED_ORIGINS", "Recipe", "check", "load", "plugins", "read"]

DERIVED_ORIGINS = ("derived", "machine")
"""Origins whose values a saved configuration does not pass to a new run, because they follow from others."""


@dataclass(frozen=True)
class Recipe:
    """One file's values."""

    origin: str
    """The path as given."""
    values: Mapping[str, Any]


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, which YAML would resolve silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"{node.start_mark.name} gives {key!r} twice; keep one of them")
        return super().construct_mapping(node, deep)


def read(path: str) -> list[Recipe]:
    """Return the recipe at ``path`` and those it builds on, the furthest base first, with unchecked values.

    A ``config.yaml`` saved by a run is a recipe too.

    Raises:
        ConfigError: a recipe is unreadable, or the bases form a circle.
    """
    chain: list[Recipe] = []
    seen: set[Path] = set()
    current: str | None = path
    while current is not None:
        resolved = Path(current).resolve()
        if resolved in seen:
            raise ConfigError(f"recipe {current} is its own base; remove one of the base: lines")
        seen.add(resolved)
        content = load(current)
        base = content.pop("base", None)
        if base is not None and not isinstance(base, str):
            raise ConfigError(f"base in {current} wants the path of a recipe, not {base!r}")
        chain.append(Recipe(current, content))
        current = None if base is None else str(Path(current).parent / base)
    return chain[::-1]


def check(chain: Sequence[Recipe], flags: Mapping[str, Flag]) -> list[Recipe]:
    """Return the recipes of ``read`` with flat names and checked values.

    Raises:
        ConfigError: a key is unknown or a value is wrong.
    """
    return [
        Recipe(recipe.origin, _check(_flatten(recipe.values, flags, recipe.origin), flags, recipe.origin))
        for recipe in chain
    ]


def plugins(chain: Sequence[Recipe], flag: Flag) -> list[str]:
    """Return the plugins that the recipes name, before the flags that those add are known."""
    named: list[str] = []
    for recipe in chain:
        flat = _flatten(recipe.values, {}, recipe.origin)
        if flag.name in flat:
            named += flag.coerce(flat[flag.name], f"{flag.name} in {recipe.origin}")
    return named


def load(path: str) -> dict[str, Any]:
    """Return the content of one YAML file of settings as it stands. Raises ``ConfigError`` if it cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot read {path}: {reason}") from None
    try:
        loader = _Loader(text)
        loader.name = path
        content = loader.get_single_data()
        loader.dispose()
    except yaml.reader.ReaderError as error:
        raise ConfigError(f"{path} is not valid YAML: it has the control character #x{error.character:02x}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{place} is not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path} has a value that is none, such as a date that does not exist: {error}") from None
    try:
        json.dumps(content, skipkeys=True, default=str)
    except ValueError:
        raise ConfigError(f"{path} has a section that contains itself; write out what its alias stands for") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} wants flag: value lines, not a {type(content).__name__}")
    if set(content) == {"values", "origins"}:
        values, origins = content["values"], content["origins"]
        if not isinstance(values, dict) or not isinstance(origins, dict):
            raise ConfigError(f"{path} is not what a run saves: values and origins want flag: value lines")
        return {name: value for name, value in values.items() if origins.get(name) not in DERIVED_ORIGINS}
    return content


def _flatten(content: Mapping[Any, Any], flags: Mapping[str, Flag], path: str, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        is_section = isinstance(value, dict) and name not in flags
        for inner, item in (_flatten(value, flags, path, f"{name}.") if is_section else {name: value}).items():
            if inner in flat:
                raise ConfigError(f"{path} gives {inner} twice; keep one of them")
            flat[inner] = item
    return flat


def _check(values: Mapping[str, Any], flags: Mapping[str, Flag], path: str) -> dict[str, Any]:
    checked = {}
    for name, value in values.items():
        flag = flags.get(name)
        if flag is None:
            near = nearest(name, flags)
            hint = f"; did you mean {' or '.join(near)}?" if near else "; gagpo train --help lists them all"
            raise ConfigError(f"{name} in {path} is not a flag{hint}")
        if flag.command_line_only:
            raise ConfigError(f"{name} in {path} belongs on the command line; remove it")
        checked[name] = flag.coerce(value, f"{name} in {path}")
    return checked
