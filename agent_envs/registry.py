"""Environments by name, including those of other repositories.

A built-in environment is a folder of this package with an ``env.py``, and has the folder's name. It is imported when it
is first used, so that listing names does not import any environment.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, UnionType
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from agent_envs.base import PromptTemplate, TextEnv
from agent_envs.errors import RegistryError
from agent_envs.importing import import_file
from agent_envs.limit import ObservationLimit, StepLimit

__all__ = [
    "Limits",
    "RegistryError",
    "check_options",
    "get",
    "load_plugin",
    "make",
    "names",
    "options",
    "prompt",
    "register",
    "register_lazy",
    "resolve",
]

EnvClass = TypeVar("EnvClass", bound=type[TextEnv])

_STEPS = "max_steps"
_OBSERVATION = "max_observation"
_LIMITS = (_STEPS, _OBSERVATION)
"""The options that every environment has; ``make`` wraps those whose class lacks them."""
_PLAIN: Mapping[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "nothing"
}  # fmt: skip
"""Types of options that are checked, and how an error names them."""


def _built_in() -> dict[str, type[TextEnv] | str]:
    """Return name -> module of each environment of this package."""
    folders = sorted(file.parent.name for file in Path(__file__).parent.glob("*/env.py"))
    return {name: f"{__package__}.{name}.env" for name in folders}


_entries: dict[str, type[TextEnv] | str] = _built_in()
"""Name -> class, or its place: ``module`` or ``module:Class``."""


def register(name: str) -> Callable[[EnvClass], EnvClass]:
    """Make a ``TextEnv`` subclass available as ``name``; a decorator. Raises ``RegistryError`` on a taken name."""

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
    """Return all registered names, sorted."""
    return tuple(sorted(_entries))


def get(name: str) -> type[TextEnv]:
    """Return the class of ``name``, importing it if necessary. Raises ``RegistryError``."""
    entry = _entries.get(name)
    if entry is None:
        raise RegistryError(f"There is no environment {name!r}; registered are: {', '.join(names())}.")
    if isinstance(entry, str):
        entry = _entries[name] = _import(name, entry)
    return entry


def options(name: str) -> Mapping[str, inspect.Parameter]:
    """Return the keyword options of an environment: the parameters of its ``__init__``."""
    return inspect.signature(get(name)).parameters


class Limits(NamedTuple):
    """Limits of an instance whose class does not keep them itself."""

    steps: int | None = None
    observation: int | None = None

    def around(self, env: TextEnv) -> TextEnv:
        """Return ``env`` inside the wrappers that keep these limits. Raises ``ValueError`` for a bad limit."""
        limited = env if self.steps is None else StepLimit(env, self.steps)
        return limited if self.observation is None else ObservationLimit(limited, self.observation)


def make(name: str, /, *, max_steps: int | None = None, **values: Any) -> TextEnv:
    """Return a new instance.

    Args:
        name: a registered name.
        max_steps: steps after which an episode is truncated. If the class has such an option, it gets the value;
            otherwise a wrapper limits the instance, which can only shorten an episode.
        values: options of the environment. ``max_observation``, the most characters of an observation that are shown,
            is one of every environment.

    Raises:
        RegistryError: a name or option does not exist, or a required option or package is missing.
    """
    values, limits = resolve(name, values, max_steps)
    check_options(name, values)
    return limits.around(get(name)(**values))


def prompt(name: str, values: Mapping[str, Any]) -> PromptTemplate:
    """Return the prompt template of instances with the options ``values``.

    An instance is made only if the class says that its prompt varies. Raises what ``make`` raises.
    """
    cls = get(name)
    if not cls.prompt_varies:
        return cls.prompt
    env = make(name, **values)
    try:
        return env.prompt
    finally:
        env.close()


def resolve(name: str, values: Mapping[str, Any], max_steps: int | None = None) -> tuple[dict[str, Any], Limits]:
    """Return the options for the class of ``name``, and the limits of the wrappers around its instance.

    A ``max_steps`` among ``values`` counts as the argument of that name.
    """
    given = dict(values)
    found = {_STEPS: given.pop(_STEPS, None) if max_steps is None else max_steps}
    found[_OBSERVATION] = given.pop(_OBSERVATION, None)
    cls = get(name)
    own = {limit: value for limit, value in found.items() if value is not None and _takes(cls, limit)}
    steps, observation = (None if limit in own else found[limit] for limit in _LIMITS)
    return given | own, Limits(steps, observation)


def check_options(name: str, values: Mapping[str, Any]) -> None:
    """Raise ``RegistryError`` unless ``values`` are options of ``name``, no required one is missing and no package is.

    ``max_steps`` and ``max_observation`` are options of every environment.
    """
    hint = get(name).needs.hint()
    if hint:
        raise RegistryError(f"environment {name!r} {hint}")
    known = options(name)
    if not any(option.kind is option.VAR_KEYWORD for option in known.values()):
        unknown = [value for value in values if value not in known and value not in _LIMITS]
        if unknown:
            offer = ", ".join(dict.fromkeys([*known, *_LIMITS]))
            raise RegistryError(f"Environment {name!r} has no option {unknown[0]!r}; its options are: {offer}.")
    for option in known.values():
        required = option.default is option.empty and option.kind not in (option.VAR_KEYWORD, option.VAR_POSITIONAL)
        if required and option.name not in values:
            raise RegistryError(f"Environment {name!r} needs the option {option.name!r}; give it a value.")
    _check_types(name, values)


def _check_types(name: str, values: Mapping[str, Any]) -> None:
    """Raise ``RegistryError`` for a value that its option, annotated with a plain type, cannot be."""
    try:
        hints = get_type_hints(get(name).__init__)
    except NameError:  # an annotation that only a type checker can read
        return
    for option, value in values.items():
        hint = hints.get(option)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if not all(kind in _PLAIN for kind in kinds):
            continue
        fits = type(value) in kinds or (type(value) is int and float in kinds)
        if not fits:
            wanted = " or ".join(_PLAIN[kind] for kind in kinds)
            raise RegistryError(f"Option {option!r} of environment {name!r} wants {wanted}, not {value!r}.")


def load_plugin(source: str) -> None:
    """Import a file (``path/to/file.py``) or module (``package.module``) that registers environments.

    Loading the same one again does nothing. Raises ``RegistryError`` if it cannot be imported or registers nothing;
    names and modules are then as they were before.
    """
    is_file = source.endswith(".py")
    path = Path(os.path.expanduser(source)).resolve()
    if is_file and not path.is_file():
        raise RegistryError(f"There is no plugin file {source!r}; give the path of a .py file or a module name.")
    module_name = f"agent_envs_plugin_{hashlib.sha1(str(path).encode()).hexdigest()[:12]}" if is_file else source
    if is_file and module_name in sys.modules:
        return
    before = dict(_entries)
    try:
        if is_file:
            import_file(module_name, path)
        else:
            importlib.import_module(module_name)
        problem: BaseException | None = None
    # SystemExit too: a script that parses a command line on import must not end this program.
    except (Exception, SystemExit) as error:
        problem = error
    if problem is None and (_entries.keys() != before.keys() or _has_entries(module_name)):
        return
    _entries.clear()
    _entries.update(before)
    if is_file:
        sys.modules.pop(module_name, None)
    if problem is None:
        raise RegistryError(f"Plugin {source!r} registers no environment; decorate a class with @register('name').")
    raise RegistryError(f"Plugin {source!r} failed on import: {type(problem).__name__}: {problem}") from problem


def _has_entries(module_name: str) -> bool:
    """Return whether a registered class is defined in the module or a submodule; it may have been imported before."""
    modules = (entry.partition(":")[0] if isinstance(entry, str) else entry.__module__ for entry in _entries.values())
    return any(module == module_name or module.startswith(f"{module_name}.") for module in modules)


def _add(name: str, entry: type[TextEnv] | str) -> None:
    known = _entries.get(name)
    # The name of a folder is registered before its class is; this may be that class.
    if known is not None and not (isinstance(entry, type) and known == entry.__module__):
        raise RegistryError(f"An environment named {name!r} is registered already; choose another name.")
    _entries[name] = entry


def _import(name: str, target: str) -> type[TextEnv]:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
        return getattr(module, attribute) if attribute else _registered_in(module, name)
    except (ImportError, AttributeError) as error:
        raise RegistryError(f"Environment {name!r} could not be loaded from {target!r}: {error}") from error


def _registered_in(module: ModuleType, name: str) -> type[TextEnv]:
    """Return the class that ``module`` registers as ``name``; the module may have been imported earlier."""
    for found in vars(module).values():
        if isinstance(found, type) and issubclass(found, TextEnv) and vars(found).get("name") == name:
            return found
    raise ImportError(f"no class in it is decorated with @register({name!r})")


def _takes(cls: type[TextEnv], limit: str) -> bool:
    """Return whether ``__init__`` names ``limit``, or passes unnamed arguments on to a base class that does."""
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        known = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
        if any(option.name == limit for option in known):
            return True
        if not any(option.kind is option.VAR_KEYWORD for option in known):
            return False
    return False
