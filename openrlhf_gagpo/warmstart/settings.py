"""The settings of one warm start, checked without importing anything heavy."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_gagpo.errors import WarmstartError
from openrlhf_gagpo.machine import cores
from openrlhf_gagpo.output import LIBRARIES_LOG

if TYPE_CHECKING:
    from openrlhf_gagpo.rollout.player import Context, RolloutSettings

__all__ = ["WarmstartSettings"]

_ANSWER_TOKENS = 64
"""Positions reserved for the answer."""

VLLM_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes that the CPU attention backend of vLLM 0.29 supports; they also work on a GPU."""


@dataclass(frozen=True)
class WarmstartSettings:
    """Settings of one warm start. The defaults are for the ``vault`` environment on one CPU thread."""

    env_name: str
    out: Path
    env_options: Mapping[str, Any] = field(default_factory=dict)
    env_plugins: tuple[str, ...] = ()
    split: str = "train"
    episodes: int = 1500
    noise: float = 0.2
    """Probability in [0, 1] that a step takes a uniformly random admissible action instead of the expert's.

    The clone plays about as well as these demonstrations, so this determines how often reinforcement learning sees a
    reward at its start, and how much the policy explores.
    """
    context: Context = "window"
    history_length: int = 0
    list_actions: bool = False
    hidden: int = 64
    layers: int = 2
    heads: int = 2
    ffn: int = 192
    max_positions: int = 2048
    """Tokens of the longest prompt and response together."""
    epochs: float = 1.5
    steps: int | None = None
    """Optimizer steps; overrides ``epochs`` if given."""
    batch_size: int = 64
    """Rows per optimizer step: demonstrated steps or, with transcripts, whole episodes."""
    lr: float = 2e-3
    seed: int = 0
    device: str = "auto"
    threads: int = 1
    eval_tasks: int = 64
    """Tasks on which the saved model's success is measured, each once sampled and once greedy; 0 for none."""
    eval_split: str | None = None
    """Split of those tasks; None for ``split``."""

    def check(self) -> None:
        """Raise ``WarmstartError`` for the first setting that cannot work."""
        for name in (
            "episodes",
            "hidden",
            "layers",
            "heads",
            "ffn",
            "max_positions",
            "epochs",
            "batch_size",
            "lr",
            "threads",
        ):
            if not getattr(self, name) > 0:
                raise WarmstartError(f"--{name} must be above 0, not {getattr(self, name)}.")
        if self.steps is not None and self.steps <= 0:
            raise WarmstartError(f"--steps must be above 0, not {self.steps}.")
        if self.eval_tasks < 0:
            raise WarmstartError(f"--eval.tasks must be 0 or more, not {self.eval_tasks}.")
        if self.context == "transcript" and self.history_length:
            raise WarmstartError(
                "--rollout.history_length is for windowed prompts; a transcript shows all turns, so remove it."
            )
        if self.history_length < 0:
            raise WarmstartError(f"--rollout.history_length must be 0 or more, not {self.history_length}.")
        if not 0.0 <= self.noise <= 1.0:
            raise WarmstartError(f"--noise is a probability between 0 and 1, not {self.noise}.")
        if self.hidden % self.heads or self.hidden // self.heads not in VLLM_CPU_HEAD_SIZES:
            raise WarmstartError(
                f"--hidden {self.hidden} with --heads {self.heads} gives a head size of {self.hidden / self.heads:g}, "
                f"which vLLM cannot run on a CPU; choose them so that hidden / heads is one of "
                f"{', '.join(map(str, VLLM_CPU_HEAD_SIZES))}."
            )
        # What an interrupted attempt leaves is no result.
        if self.out.exists() and (
            not self.out.is_dir() or {item.name for item in self.out.iterdir()} - {LIBRARIES_LOG}
        ):
            raise WarmstartError(f"--out {self.out} exists and is not an empty folder; name a new folder.")

    def rollout(self, episodes: int = 1) -> RolloutSettings:
        """Return how the model's episodes are played and worded.

        Args:
            episodes: number of them that are played at a time.
        """
        from openrlhf_gagpo.rollout.player import RolloutSettings

        return RolloutSettings(
            env_name=self.env_name,
            env_options=self.env_options,
            plugins=self.env_plugins,
            workers=min(cores(), episodes),
            concurrency=episodes,
            context=self.context,
            history_length=self.history_length,
            think=False,
            action_tags=False,
            list_actions=self.list_actions,
            chat_template="none",
            max_prompt_tokens=self.max_positions - _ANSWER_TOKENS,
        )

    def claim_out(self) -> None:
        """Create ``out`` and check that it can be written. Raises ``WarmstartError`` if it cannot."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.out):
                pass
        except OSError as error:
            raise WarmstartError(
                f"--out {self.out} cannot be written: {error.strerror}; name another folder."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the settings in JSON types."""
        return asdict(self) | {"out": str(self.out), "env_options": dict(self.env_options)}
