"""TensorBoard and Weights & Biases, under OpenRLHF's flags and with its names of series and folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from openrlhf_gagpo.training.settings import TrackerSettings, WandbSettings

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

__all__ = ["Trackers"]

_WITHOUT_ACCOUNT = ("offline", "dryrun", "disabled")
"""Values of ``WANDB_MODE`` with which nothing is sent, so that no key is needed."""


class _Tracker(Protocol):
    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        """Store one value for each series."""

    def close(self) -> None:
        """Write what is not written yet."""


class Trackers:
    """All trackers of a run; none if no flag asks for one."""

    def __init__(self, settings: TrackerSettings) -> None:
        self._every = settings.every
        self._trackers: list[_Tracker] = []
        if settings.tensorboard is not None:
            self._trackers.append(_TensorBoard(settings.tensorboard))
        # Last, so that no run stays open there if another tracker cannot start.
        if settings.wandb is not None:
            self._trackers.append(_Wandb(settings.wandb))

    def track(self, iteration: int, metrics: Mapping[str, float | None], *, evaluation: bool) -> None:
        """Log evaluations as ``eval/NAME`` and, every so many iterations, training as ``train/NAME``.

        None, which stands for a quantity that an iteration does not have, leaves a gap.
        """
        if not evaluation and iteration % self._every:
            return
        kind = "eval" if evaluation else "train"
        values = {f"{kind}/{name}": value for name, value in metrics.items() if value is not None}
        for tracker in self._trackers:
            tracker.log(iteration, {**values, f"{kind}/global_step": iteration})

    def close(self) -> None:
        """End all of them. Safe to call twice."""
        while self._trackers:
            self._trackers.pop().close()


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(log_dir=str(folder))

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            # The position on the axis is the iteration already.
            if not name.endswith("/global_step"):
                self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, settings: WandbSettings) -> None:
        import wandb

        quiet = wandb.Settings(console="off", silent=True)
        if wandb.setup().settings.mode not in _WITHOUT_ACCOUNT and not wandb.api.api_key:
            wandb.login(key=settings.key)
        self._run: Run = wandb.init(
            entity=settings.entity,
            project=settings.project,
            group=settings.group,
            name=settings.name,
            config=dict(settings.config),
            settings=quiet,
        )
        for kind in ("train", "eval"):
            self._run.define_metric(f"{kind}/global_step")
            self._run.define_metric(f"{kind}/*", step_metric=f"{kind}/global_step", step_sync=True)

    def log(self, iteration: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values))

    def close(self) -> None:
        self._run.finish()
