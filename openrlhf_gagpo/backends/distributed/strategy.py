"""OpenRLHF's DeepSpeed strategy, for optimizer steps that the driver plans.

Only the workers import this module (see ``workers``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import deepspeed
import torch
from openrlhf.models import Actor
from openrlhf.utils.deepspeed import DeepspeedStrategy
from openrlhf.utils.distributed_util import torch_dist_barrier_and_cuda_sync
from peft import PeftModel
from torch import Tensor

from openrlhf_gagpo.backends.adapters import Adapters
from openrlhf_gagpo.backends.distributed import compat
from openrlhf_gagpo.backends.distributed.workers import answers
from openrlhf_gagpo.training.objective import merge_sums

__all__ = ["DEFAULT_BUCKET", "StepStrategy", "use_available_attention"]

DEFAULT_BUCKET = 500_000_000
"""DeepSpeed's own number of gradients that are reduced together."""


class StepStrategy(DeepspeedStrategy):
    """OpenRLHF's DeepSpeed strategy for optimizer steps of any number of micro-batches.

    Args:
        args: OpenRLHF's arguments of the run.
        engines_asleep: references to what engines on the same GPUs answer once they have given their memory back.
    """

    def __init__(self, args: Any, engines_asleep: Sequence[Any]) -> None:
        super().__init__(
            seed=args.train.seed,
            full_determinism=args.train.full_determinism_enable,
            max_norm=args.actor.max_norm,
            micro_train_batch_size=args.train.micro_batch_size,
            train_batch_size=args.train.batch_size,
            zero_stage=args.ds.zero_stage,
            args=args,
        )
        self._engines_asleep = list(engines_asleep)
        self._bucket = DEFAULT_BUCKET

    def wait_for_memory(self) -> None:
        """Wait until the engines have given their memory back, which they reserve while they start."""
        answers(self._engines_asleep, "the start of the rollout engines", self.args.train.worker_timeout)
        self._engines_asleep = []

    def setup_ring_attn(self, ds_device_mesh: Any) -> None:
        if self.ring_attn_size > 1 and self.ring_attn_group is not None:
            # Another model of this process has put it in place, in a ring of the same ranks. The package that changes
            # transformers for it would not find there what it knows a second time.
            self.ring_attn_rank = torch.distributed.get_rank(self.ring_attn_group)
            return
        super().setup_ring_attn(ds_device_mesh)

    def prepare(self, *models: Any) -> Any:
        # Here a model moves from the machine's memory to the GPU's.
        self.wait_for_memory()
        trained = (parameter for given in models if isinstance(given, tuple) for parameter in given[0].parameters())
        # In ZeRO-3 a parameter itself is empty.
        sizes = [getattr(each, "ds_numel", each.numel()) for each in trained if each.requires_grad]
        self._bucket = min(DEFAULT_BUCKET, sum(sizes))
        return super().prepare(*models)

    def get_ds_train_config(self, optim_dict: dict | None = None, *, max_norm: float | None = None) -> dict:
        config = super().get_ds_train_config(optim_dict, max_norm=max_norm)
        # The number of micro-batches differs between steps, so the trainer says where a step ends
        # (set_gradient_accumulation_boundary) and divides by the step's own totals.
        config.pop("train_batch_size", None)
        config["train_micro_batch_size_per_gpu"] = 1
        config["gradient_accumulation_steps"] = 1
        # DeepSpeed allocates a buffer for this many gradients, however few are trained.
        config["zero_optimization"]["reduce_bucket_size"] = self._bucket
        if optim_dict is not None and not compat.cuda_available() and optim_dict.get("type") == "AdamW":
            # torch's AdamW instead of DeepSpeed's C++ one, which takes over a minute to compile here.
            config["optimizer"]["params"]["torch_adam"] = True
        return config

    def get_ds_eval_config(self, offload: bool = False) -> dict:
        config = super().get_ds_eval_config(offload)
        # It has no meaning for a model that is never trained, and DeepSpeed would check that it divides evenly.
        config.pop("train_batch_size", None)
        config["train_micro_batch_size_per_gpu"] = 1
        return config

    def save_model(self, model: Any, tokenizer: Any, output_dir: str, **kwargs: Any) -> None:
        module = self._unwrap_model(model)
        if not isinstance(module, PeftModel):
            super().save_model(model, tokenizer, output_dir, **kwargs)
            return
        if self.is_rank_0():
            # OpenRLHF would write the adapters alone.
            adapters = Adapters(module)
            module.get_base_model().save_pretrained(output_dir, state_dict=adapters.state())
            tokenizer.save_pretrained(output_dir)
            adapters.save(Path(output_dir))
        torch_dist_barrier_and_cuda_sync()

    def accumulate(self, loss: Tensor, model: Any, optimizer: Any, boundary: bool) -> None:
        """Run the backward pass of a micro-batch; ``boundary`` marks the last one before an optimizer step."""
        # DeepSpeed averages gradients over the data-parallel ranks; the totals in the loss already span them.
        ranks = self.world_size // self.ring_attn_size // self.ds_tensor_parallel_size
        _engine(model).set_gradient_accumulation_boundary(boundary)
        self.backward(loss * ranks, model, optimizer)

    def reduce_sums(self, totals: dict[str, float]) -> dict[str, float]:
        """Merge the sums of all data-parallel ranks."""
        if self.world_size == 1 or not totals:
            return totals
        group = self.ds_device_mesh["dp"].get_group()
        shards: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(shards, totals, group=group)
        merged: dict[str, float] = {}
        for shard in shards:
            merge_sums(merged, shard)
        return merged

    def take_step(self, model: Any) -> float | None:
        """Step the optimizer but not the learning-rate schedule, because schedules count iterations here.

        Returns:
            The gradient norm before clipping; or None, on all ranks alike, if the gradient was not finite and the step
            was therefore skipped.
        """
        engine = _engine(model)
        # By itself DeepSpeed looks for such gradients only in half precision, in ZeRO-3 only in fp16. What a rank finds
        # is shared with the others, and the step that follows drops the gradients and changes nothing.
        if self.stage > 0:
            engine.optimizer.check_overflow()
        scheduler, engine.lr_scheduler = engine.lr_scheduler, None
        try:
            engine.step()
        finally:
            engine.lr_scheduler = scheduler
        return self.get_grad_norm(model) if engine.was_step_applied() else None

    def whole_parameters(self, model: Any) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter of a model with its name; all ranks have to go through all of them.

        In ZeRO-3 each rank holds a part of a parameter, so what is yielded is a copy that is put together for it.
        """
        parted = self.stage == 3
        for name, parameter in _engine(model).module.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=parted):
                yield name, parameter.detach().clone() if parted else parameter.detach()

    def write_state(self, model: Any, folder: str, name: str, more: dict[str, str]) -> None:
        """Write this rank's part of a model's weights, optimizer and schedule, and ``more``, to ``folder/name``.

        OpenRLHF's ``save_ckpt`` would remove the older checkpoints before this one is there.
        """
        _engine(model).save_checkpoint(folder, tag=name, client_state=more, save_latest=False)

    def read_state(self, model: Any, folder: str, name: str) -> dict[str, Any]:
        """Restore what ``write_state`` wrote, and return what came with it.

        Raises:
            FileNotFoundError: it is not there. What DeepSpeed raises for other damage is anything.
        """
        if not (Path(folder) / name).is_dir():
            raise FileNotFoundError(f"the folder {name} is missing")
        path, states = self.load_ckpt(_engine(model), folder, tag=name)
        if path is None:
            raise FileNotFoundError(f"the weights in {name} are missing")
        found: dict[str, Any] = states
        return found


def _engine(model: Any) -> Any:
    """Return the DeepSpeed engine of a model; only the policy is wrapped.

    Asking for ``model.model`` instead would not do: a critic's engine passes that on to the module inside it.
    """
    return model.model if isinstance(model, Actor) else model


def use_available_attention(strategy: StepStrategy) -> None:
    """Choose the attention kernel in the worker, because the driver does not know whether the worker has a GPU."""
    if not compat.cuda_available() and "flash" in strategy.args.ds.attn_implementation:
        strategy.args.ds.attn_implementation = "sdpa"
