"""The interface between the iteration loop and a backend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy import float64
from numpy.typing import NDArray

from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams
from openrlhf_gagpo.training.rows import TokenRow, TrainingRow

__all__ = ["Backend", "OnStage", "Restored", "unnoticed"]

OnStage = Callable[[str, float], None]
"""Called when a stage of the start has ended, with its name ("model loaded") and its seconds."""


def unnoticed(text: str, seconds: float) -> None:
    """Take no notice of a stage."""


@dataclass(frozen=True)
class Restored:
    """What a backend found in its checkpoints."""

    state: dict[str, Any]
    """The loop's state, as given to ``save_checkpoint``."""
    path: Path
    """The checkpoint that was taken."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Newer checkpoints that were passed over, newest first, and why each could not be read."""


class Backend(Protocol):
    """A policy that can be sampled in environments, updated and saved.

    Call ``start`` first, then the others in any order, and ``close`` last (also after a failed ``start``).
    """

    def start(self, on_stage: OnStage = unnoticed) -> dict[str, str]:
        """Load models and start processes. Returns facts for the run record (devices, versions)."""

    def rollout(
        self, requests: Sequence[EpisodeRequest], sampling: SamplingParams, on_done: Callable[[Episode], None]
    ) -> list[Episode]:
        """Play all episodes with the current weights and return them in request order.

        In a run that overlaps, it is called in a thread while ``compute`` and ``update`` are called in another one.
        """

    def compute(self, rows: Sequence[TokenRow], columns: Collection[str]) -> dict[str, NDArray[float64]]:
        """Compute the model columns that credit needs, in the form that ``credit.StepBatch`` takes.

        Called before an iteration's first update, and only for columns that the backend's entry in ``backends`` lists.
        A critic's columns, ``value`` and ``token_value``, come from one pass; asking for one returns both.
        """

    def update(self, rows: Sequence[TrainingRow], seed: int, *, policy: bool = True) -> dict[str, float]:
        """Run one iteration of optimizer steps over the rows and return ``policy/*``, ``critic/*``, ``time/*`` metrics.

        Args:
            policy: False trains only the critic; the policy's learning-rate schedule advances all the same.
        """

    def sync(self) -> None:
        """Give the sampler the policy's weights."""

    def env_stats(self) -> dict[str, float]:
        """Return the counters of the environment workers since ``start`` (``env/*``)."""

    def stacks(self) -> str:
        """Return what all threads of all processes are doing, as text; may be called from another thread."""

    def track(self, iteration: int, metrics: Mapping[str, float], *, evaluation: bool) -> None:
        """Send metrics to the trackers of the run (TensorBoard, W&B), if it has any."""

    def save_checkpoint(self, tag: str, state: dict[str, Any]) -> None:
        """Save weights, optimizer and schedule under ``--ckpt.path``, together with the loop's own state."""

    def load_checkpoint(self) -> Restored | None:
        """Restore the newest checkpoint of ``--ckpt.path`` that can be read; None if there is none at all."""

    def export(self) -> None:
        """Write the model as a Hugging Face folder to ``--ckpt.output_dir``."""

    def close(self) -> None:
        """Stop everything that ``start`` started. Safe to call twice."""
