"""What requests cost, from a table of prices that the user gives."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.rollout.types import Usage

__all__ = ["Price", "read_price"]

_PER = 1e6


@dataclass(frozen=True)
class Price:
    """Prices of one model per million tokens."""

    currency: str
    input: float
    output: float
    cached_input: float
    """Price of prompt tokens that the endpoint read from its cache."""

    def of(self, usage: Usage) -> float:
        """Return what ``usage`` cost."""
        fresh = usage.prompt_tokens - usage.cached_tokens
        return (
            fresh * self.input + usage.cached_tokens * self.cached_input + usage.completion_tokens * self.output
        ) / _PER


def read_price(path: Path, model: str) -> Price:
    """Read the price of ``model`` from a YAML file.

    The file maps ``models`` to a name -> ``input`` and ``output`` (and ``cached_input``) per million tokens, and may
    name the ``currency``, by default USD.

    Raises:
        ConfigError: the file cannot be read, or has no price of the model.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entry = content["models"][model]
        given = {name: float(entry[name]) for name in ("input", "output")}
        cached = float(entry.get("cached_input", given["input"]))
        currency = str(content.get("currency", "USD"))
    except OSError as error:
        raise ConfigError(f"--prices: {path} cannot be read: {error.strerror}; check the path") from error
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(
            f"--prices: {path} has no price of {model!r}; it looks like "
            "{models: {" + model + ": {input: 1.0, output: 2.0}}}"
        ) from None
    if min(*given.values(), cached) < 0:
        raise ConfigError(f"--prices: {path} has a negative price of {model!r}; correct it")
    return Price(currency, given["input"], given["output"], cached)
