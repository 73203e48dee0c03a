"""What the iteration loop asks of a backend."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from numpy import float64
from numpy.typing import NDArray

from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams
from openrlhf_gagpo.training.rows import TokenRow, TrainingRow

__all__ = ["Backend"]


class Backend(Protocol):
    """A policy that can be sampled in environments, updated and saved.

    Life: ``start``, then any order of the others, ``close`` last (also after a failed ``start``).
    """

    def start(self) -> dict[str, str]:
        """Load models, start processes. Returns facts for the run record (devices, versions)."""

    def rollout(
        self, requests: Sequence[EpisodeRequest], sampling: SamplingParams, on_done: Callable[[Episode], None]
    ) -> list[Episode]:
        """Play all episodes with the current weights; results in request order."""

    def compute(self, rows: Sequence[TokenRow], columns: Collection[str]) -> dict[str, NDArray[float64]]:
        """The model columns that credit needs, as ``credit.StepBatch`` takes them.

        Asked before an iteration's first update, and only for columns that the backend's entry in ``backends`` lists.
        """

    def update(self, rows: Sequence[TrainingRow], seed: int) -> dict[str, float]:
        """One iteration of optimizer steps over the rows; returns ``policy/*`` and ``time/*`` metrics."""

    def sync(self) -> None:
        """Give the sampler the policy's weights."""

    def env_stats(self) -> dict[str, float]:
        """Counters of the environment workers since ``start`` (``env/*``)."""

    def track(self, iteration: int, metrics: Mapping[str, float], *, evaluation: bool) -> None:
        """Send metrics to the trackers of the run (TensorBoard, W&B), where it has any."""

    def save_checkpoint(self, tag: str, state: dict[str, Any]) -> None:
        """Save weights, optimizer and schedule under ``--ckpt.path`` with the loop's own state."""

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Restore the newest checkpoint of ``--ckpt.path``; returns the loop's state, or None where there is none."""

    def export(self) -> None:
        """Write the model as a Hugging Face folder to ``--ckpt.output_dir``."""

    def close(self) -> None:
        """Stop what was started. Safe to call twice."""
