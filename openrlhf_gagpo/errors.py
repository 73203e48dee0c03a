"""Every error that this package raises on purpose, in one tree. Environments have their own tree in ``agent_envs``.

Each message is one sentence for the user that says what is wrong and what to do. The command line prints it without a
traceback and exits with ``exit_status``; any other exception is a defect and keeps its traceback.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "CreditError",
    "DivergenceError",
    "EpisodeFileError",
    "EvaluationError",
    "EstimatorError",
    "GagpoError",
    "LossError",
    "PluginError",
    "PolicyFault",
    "PolicyRefused",
    "PromptTemplateError",
    "PromptTooLong",
    "RolloutError",
    "RunError",
    "RunFolderError",
    "StepBatchError",
    "StepFileError",
    "WarmstartError",
]


class GagpoError(Exception):
    """Root of the tree."""

    exit_status = 2
    """2 if the input cannot be used, 1 if the run failed."""


class ConfigError(GagpoError):
    """A configuration that cannot run; the message names the flag."""


class WarmstartError(ConfigError):
    """A setting or an environment that a warm start cannot use."""


class PluginError(ConfigError):
    """A plugin file or module that cannot be imported, or that registers nothing."""


class LossError(ConfigError, ValueError):
    """A policy loss whose name is taken or unknown, or that cannot take the advantages it is given."""


class PromptTemplateError(ConfigError, ValueError):
    """A prompt template that cannot be read or rendered."""


class RunFolderError(GagpoError):
    """The folder is not a usable run."""


class EpisodeFileError(RunFolderError, ValueError):
    """A file that does not hold complete episodes."""


class EvaluationError(GagpoError, ValueError):
    """The result of an evaluation that cannot be read or continued as asked."""


class CreditError(GagpoError, ValueError):
    """Credit cannot be computed as asked."""


class StepBatchError(CreditError):
    """The rows do not form complete, consistent trajectories; the message names the row."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row
        """Index of the given row, if one is wrong."""


class StepFileError(CreditError):
    """A file of steps that cannot be used; the message names the line."""


class EstimatorError(CreditError):
    """An estimator name that is taken or unknown, options of another estimator, or a result that is not credit."""


class RunError(GagpoError):
    """A run that had to stop for a reason that is not a defect of this program."""

    exit_status = 1


class DivergenceError(RunError):
    """Training that cannot go on, because too many gradients in a row are not finite."""


class RolloutError(RunError, RuntimeError):
    """An episode failed for a reason other than its environment; the cause is chained."""


class PolicyRefused(RunError):
    """An endpoint that refuses every request, for example because of a wrong key."""


class PolicyFault(RunError):
    """A policy that gave no usable answer. It ends one episode."""

    def __init__(self, message: str, requests: int = 1, *, too_long: bool = False) -> None:
        super().__init__(message)
        self.requests = requests
        """Requests that were sent for the answer."""
        self.too_long = too_long
        """Whether the prompt exceeds the context of the model."""


class PromptTooLong(GagpoError, ValueError):
    """A prompt exceeds the token limit even without any history. It ends one episode."""

    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(
            f"the prompt needs {tokens} tokens without any history but only {limit} are allowed: "
            f"raise the prompt length or shorten the template"
        )
        self.tokens = tokens
        self.limit = limit

    def __reduce__(self) -> tuple[type[PromptTooLong], tuple[int, int]]:
        return type(self), (self.tokens, self.limit)
