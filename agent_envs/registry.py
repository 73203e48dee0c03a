"""Environments by name, those of other repositories included.

A name stands for a class, or for ``"module:Class"`` that is imported when first asked for, so that listing names never
pays for an environment's heavy packages.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from agent_envs.base import TextEnv

__all__ = [
    "RegistryError",
    "check_options",
    "get",
    "load_plugin",
    "make",
    "names",
    "options",
    "register",
    "register_lazy",
]

EnvClass = TypeVar("EnvClass", bound=type[TextEnv])

_entries: dict[str, type[TextEnv] | str] = {
    "alfworld": "agent_envs.alfworld:AlfworldEnv",
    "vault": "agent_envs.vault:VaultEnv",
    "webshop": "agent_envs.webshop:WebShopEnv",
}


class RegistryError(ValueError):
    """A name, option or plugin that cannot be used; the message says which and what there is instead."""


def register(name: str) -> Callable[[EnvClass], EnvClass]:
    """Class decorator: make a ``TextEnv`` subclass available as ``name``. Raises ``RegistryError`` on a taken name."""

    def decorate(cls: EnvClass) -> EnvClass:
        if not (isinstance(cls, type) and issubclass(cls, TextEnv)):
            raise RegistryError(f"{cls!r} cannot be registered as {name!r}: it is not a subclass of TextEnv.")
        _add(name, cls)
        cls.name = name
        return cls

    return decorate


def register_lazy(name: str, target: str) -> None:
    """Make ``target`` ("module:Class") available as ``name`` without importing it."""
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise RegistryError(f"Environment {name!r} needs a target of the form 'module:Class', not {target!r}.")
    _add(name, target)


def names() -> tuple[str, ...]:
    """All registered names, sorted."""
    return tuple(sorted(_entries))


def get(name: str) -> type[TextEnv]:
    """The class behind ``name``, imported if need be. Raises ``RegistryError``."""
    entry = _entries.get(name)
    if entry is None:
        raise RegistryError(f"There is no environment {name!r}; registered are: {', '.join(names())}.")
    if isinstance(entry, str):
        entry = _entries[name] = _resolve(name, entry)
    return entry


def options(name: str) -> Mapping[str, inspect.Parameter]:
    """Keyword options of an environment: the parameters of its ``__init__``."""
    return inspect.signature(get(name)).parameters


def make(name: str, **values: Any) -> TextEnv:
    """A new instance with the given options. Raises ``RegistryError`` for a name or option that does not exist."""
    cls = get(name)
    check_options(name, values)
    return cls(**values)


def check_options(name: str, values: Mapping[str, Any]) -> None:
    """Raise ``RegistryError`` unless ``values`` are options of ``name`` and hold every required one."""
    known = options(name)
    if not any(option.kind is option.VAR_KEYWORD for option in known.values()):
        unknown = [value for value in values if value not in known]
        if unknown:
            offer = ", ".join(known) or "none"
            raise RegistryError(f"Environment {name!r} has no option {unknown[0]!r}; its options are: {offer}.")
    for option in known.values():
        required = option.default is option.empty and option.kind not in (option.VAR_KEYWORD, option.VAR_POSITIONAL)
        if required and option.name not in values:
            raise RegistryError(f"Environment {name!r} needs the option {option.name!r}; give it a value.")


def load_plugin(source: str) -> None:
    """Import a file (``path/to/file.py``) or module (``package.module``) that registers environments.

    Loading the same one again does nothing. Raises ``RegistryError`` if it cannot be imported or registers nothing.
    """
    is_file = source.endswith(".py")
    path = Path(source).expanduser().resolve()
    if is_file and not path.is_file():
        raise RegistryError(f"There is no plugin file {source!r}; give the path of a .py file or a module name.")
    module_name = f"agent_envs_plugin_{hashlib.sha1(str(path).encode()).hexdigest()[:12]}" if is_file else source
    if module_name in sys.modules:
        return
    before = set(_entries)
    try:
        if is_file:
            _import_file(module_name, path)
        else:
            importlib.import_module(module_name)
    except Exception as error:
        for name in set(_entries) - before:
            del _entries[name]
        raise RegistryError(f"Plugin {source!r} failed on import: {type(error).__name__}: {error}") from error
    if set(_entries) == before:
        raise RegistryError(f"Plugin {source!r} registers no environment; decorate a class with @register('name').")


def _add(name: str, entry: type[TextEnv] | str) -> None:
    if name in _entries:
        raise RegistryError(f"An environment named {name!r} is registered already; choose another name.")
    _entries[name] = entry


def _resolve(name: str, target: str) -> type[TextEnv]:
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RegistryError(f"Environment {name!r} could not be loaded from {target!r}: {error}") from error


def _import_file(module_name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    # Known by name before it runs: dataclasses and pickle look their module up.
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module
