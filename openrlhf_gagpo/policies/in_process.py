"""A model folder in this process, with only transformers and torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.options import declare
from openrlhf_gagpo.policies.folder import FolderOptions, FolderPolicy
from openrlhf_gagpo.policies.registry import register
from openrlhf_gagpo.rollout.types import Policy

if TYPE_CHECKING:
    from openrlhf_gagpo.backends.sampler import BatchSampler
    from openrlhf_gagpo.rollout.watched import WatchedSession

__all__ = ["InProcessOptions", "InProcessPolicy"]


@dataclass(frozen=True)
class InProcessOptions(FolderOptions):
    """Options of a model in this process."""

    operational = frozenset({"device", "threads"})

    device: str = declare("auto", "device of the model", choices=("auto", "cpu", "cuda"))
    threads: int | None = declare(None, "torch threads; unset: torch's choice", range=(1, 4096))


@register("in_process", InProcessOptions, implied_by=("model",))
class InProcessPolicy(FolderPolicy):
    """Samples with the sampler of the local backend, which batches the turns of all running episodes."""

    _sampler: BatchSampler | None = None

    async def start(self, episodes: int, concurrency: int) -> None:
        try:
            import torch
            from transformers import AutoModelForCausalLM
            from transformers.utils.logging import disable_progress_bar

            from openrlhf_gagpo.backends.local_models import eos_ids, load_model
            from openrlhf_gagpo.backends.sampler import BatchSampler
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"a model in this process needs the package {error.name}, which is not installed; install "
                "openrlhf-gagpo[local]"
            ) from error
        disable_progress_bar()
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        device = self.options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.options.dtype]
        model = load_model(AutoModelForCausalLM, self.options.path, "policy.model").to(device, dtype)
        self._sampler = BatchSampler(model, eos_ids(model, self.tokenizer), self.tokenizer.pad_token_id)
        self._sampler.begin(episodes, concurrency)

    @property
    def _started(self) -> BatchSampler:
        if self._sampler is None:
            raise RuntimeError("the policy has not been started")
        return self._sampler

    def seat(self, session: WatchedSession) -> Policy:
        return self._started

    def done(self) -> None:
        self._started.episode_done()
