"""DeepSpeed workers: OpenRLHF's policy and reference actors with step-level updates.

OpenRLHF provides model construction, distributed set-up, forward passes, DeepSpeed engine and checkpoints. Ours are the
update, which runs a plan of optimizer steps made by the driver, and the weights' way to the engines (see ``routes``).

Only the workers import this module (see ``workers``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from openrlhf.models import Actor
from openrlhf.trainer.ray import launcher, ppo_actor
from openrlhf.utils.distributed_util import torch_dist_barrier_and_cuda_sync
from peft import PeftModel
from torch import Tensor

from openrlhf_gagpo.backends.adapters import Adapters
from openrlhf_gagpo.backends.distributed import compat
from openrlhf_gagpo.backends.distributed.batches import PassInputs, UpdateStep
from openrlhf_gagpo.backends.distributed.checkpoints import POLICY
from openrlhf_gagpo.backends.distributed.response_pass import response_pass
from openrlhf_gagpo.backends.distributed.routes import Route, gpu_route
from openrlhf_gagpo.backends.distributed.strategy import StepStrategy, use_available_attention
from openrlhf_gagpo.backends.distributed.weights import weight_file
from openrlhf_gagpo.backends.distributed.workers import answers
from openrlhf_gagpo.training.collate import ActionTensors, TokenBatch
from openrlhf_gagpo.training.objective import LossScale, add_sums, finish_metrics, read_sums, step_loss
from openrlhf_gagpo.training.schedule import offset_warmup
from openrlhf_gagpo.training.settings import ObjectiveSettings
from openrlhf_gagpo.training.steps import StepLog

__all__ = [
    "ModelRank",
    "PolicyActorBase",
    "ReferenceActorBase",
    "TrainedRank",
    "step_log",
]


def step_log(args: Any, model: str, flags: str) -> StepLog:
    """Return the log of a model's optimizer steps with the run's limit of skipped ones (see ``StepLog``)."""
    # In fp16 DeepSpeed skips steps while it looks for a loss scale, and itself ends the run if there is none.
    return StepLog(model, flags, 0 if args.ds.param_dtype == "fp16" else args.train.max_bad_steps)


def route_from_here(args: Any) -> Route:
    """Return how a policy in this process sends its weights."""
    return gpu_route(args) if compat.cuda_available() else "file"


class StepPolicyTrainer(ppo_actor.ActorPPOTrainer):
    """Runs planned optimizer steps on the policy and sends its weights to the engines."""

    actor: Any

    def __init__(self, strategy: StepStrategy, *args: Any, **kwargs: Any) -> None:
        self.route = route_from_here(strategy.args)
        engines = kwargs.get("vllm_engines")
        if self.route != "openrlhf":
            # It would open its group to the engines here.
            kwargs["vllm_engines"] = None
        super().__init__(strategy, *args, **kwargs)
        self.vllm_engines = engines
        self._source: Any = None
        self._transfer: Any = None
        self._receivers: list[Any] = []
        offset_warmup(self.actor_scheduler, self.args.actor.lr_warmup_ratio)
        self.planned: list[UpdateStep] = []
        self.log = step_log(self.args, "policy", "actor")
        settings: ObjectiveSettings = self.args.gagpo_objective
        self.objective = settings.build()

    def ppo_train(self, kl_ctl: float) -> dict[str, float]:
        """Run one iteration's updates: every planned step once, then advance the learning-rate schedule by one.

        Raises:
            DivergenceError: too many steps in a row had a gradient that is not finite.
        """
        self.log.begin()
        learning_rate = self.actor_scheduler.get_last_lr()[0]
        for step in self.planned:
            sums: dict[str, Tensor] = {}
            for index, (tokens, actions) in enumerate(step.micro_batches):
                boundary = index + 1 == len(step.micro_batches)
                add_sums(sums, self._backward(tokens, actions, step.scale, boundary))
            norm = self.strategy.take_step(self.actor)
            self.log.end_step(read_sums(sums), norm)
        self.actor_scheduler.step()
        metrics = finish_metrics(self.strategy.reduce_sums(self.log.totals), self.log.count)
        metrics |= {f"policy/{name}": value for name, value in self.log.metrics().items()}
        metrics["policy/lr"] = learning_rate
        self.planned = []
        return metrics

    def _backward(
        self, tokens: TokenBatch, actions: ActionTensors, scale: LossScale, boundary: bool
    ) -> dict[str, Tensor]:
        actions = actions.to(torch.device(torch.cuda.current_device()))
        self.actor.train()
        log_probs, entropy = response_pass(
            self.actor,
            tokens.sequences,
            tokens.attention_mask,
            tokens.action_mask,
            self.strategy,
            entropy=self.objective.entropy_coef is not None,
        )
        # A model reads sequences; the loss gets one row per action, and the gradients of equal rows add up.
        log_probs = tokens.responses.read(log_probs)
        entropy = None if entropy is None else tokens.responses.read(entropy)
        loss, sums = step_loss(log_probs, entropy, actions, scale, self.objective)
        self.strategy.accumulate(loss, self.actor, self.actor_optim, boundary)
        return sums

    def broadcast_to_vllm(self) -> None:
        """Send the weights to every engine, then drop the cached prefixes that were computed with the old ones."""
        if self.route == "file":
            self._send_weight_file()
            return
        if self.route == "openrlhf":
            with self._merged():
                super().broadcast_to_vllm()
        else:
            self._send_buffers()
        if torch.distributed.get_rank() == 0:
            self._tell_engines("reset_prefix_cache")
        # Only now: a rank that failed on the way must raise, whatever the others wait for, and the run ends.
        torch_dist_barrier_and_cuda_sync()

    def _send_weight_file(self) -> None:
        weights = self._plain_weights()
        try:
            if torch.distributed.get_rank() == 0:
                with weight_file(weights) as path:
                    self._tell_engines("load_weight_file", path)
            else:
                # Putting the parameters together takes all ranks.
                for _ in weights:
                    pass
        finally:
            # Also if an engine failed: it is started again, and the ranks have to be ready to send once more.
            torch_dist_barrier_and_cuda_sync()

    def _send_buffers(self) -> None:
        from openrlhf_gagpo.backends.distributed.transfer import PolicySource, Transfer

        engines = list(self.vllm_engines or ())
        if self._source is None:
            self._source = PolicySource(self._plain_weights)
        if self._transfer is None or engines != self._receivers:
            self._transfer = Transfer(self.route, self._source, engines, self.args)
            self._receivers = engines
        # The buffers need room beside the engines, and are given back to them.
        torch.cuda.empty_cache()
        self._transfer.send()
        torch.cuda.empty_cache()

    def _plain_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights of a model without adapters, which are all that an engine knows."""
        module = self.actor.model.module
        if not isinstance(module, PeftModel):
            yield from self.strategy.whole_parameters(self.actor)
            return
        for name, weight in Adapters(module).parameters():
            yield name, weight.data

    @contextmanager
    def _merged(self) -> Iterator[None]:
        """Let OpenRLHF send merged weights where there are adapters; it reads one parameter after the other."""
        actor = self.actor
        if isinstance(actor.model.module, PeftModel):
            plain = SimpleNamespace(named_parameters=Adapters(actor.model.module).parameters)
            self.actor = SimpleNamespace(model=SimpleNamespace(module=plain))
        try:
            yield
        finally:
            self.actor = actor

    def _tell_engines(self, method: str, *args: Any) -> None:
        refs = [getattr(engine, method).remote(*args) for engine in self.vllm_engines or ()]
        answers(refs, "sending the weights to the engines", self.args.train.worker_timeout)

    def replace_engine(self, number: int, handle: Any) -> None:
        """Put ``handle`` in the place of engine ``number``, and send it the weights; the other engines may be busy."""
        engines = list(self.vllm_engines or ())
        engines[number] = handle
        self.vllm_engines = [handle]
        try:
            self.broadcast_to_vllm()
        finally:
            self.vllm_engines = engines


# Ray decorates OpenRLHF's classes where they are defined.
_OpenrlhfPolicy: Any = compat.plain_class(ppo_actor.PolicyModelActor)
_OpenrlhfReference: Any = compat.plain_class(launcher.ReferenceModelActor)


class ModelRank:
    """What the driver asks of every rank, on top of one of OpenRLHF's model actors."""

    if TYPE_CHECKING:
        # OpenRLHF's actors have these.
        def init_model_from_pretrained(self, strategy: StepStrategy, *args: Any) -> None: ...

        def forward(self, sequences: Tensor, action_mask: Tensor, attention_mask: Tensor) -> Tensor: ...

        def empty_cache(self) -> None: ...

    def load(self, args: Any, engines_asleep: Sequence[Any], *given: Any) -> None:
        """Load the model side by side with engines that start, and put it on the GPU when they sleep.

        Args:
            args, engines_asleep: see ``StepStrategy``.
            given: what OpenRLHF's actor needs besides.
        """
        strategy = StepStrategy(args, engines_asleep)
        use_available_attention(strategy)
        if strategy.stage == 3:
            # Its parameters are made on the GPU.
            strategy.wait_for_memory()
        self.init_model_from_pretrained(strategy, *given)

    def forward_passes(self, batches: Sequence[PassInputs], *, release: bool) -> list[Tensor]:
        """Return the model's output for each batch, (S, T-1) where the batch's mask is 1.

        Args:
            release: whether cached GPU memory is given back afterwards, to another process on the same GPU.
        """
        outputs = [self.forward(*batch) for batch in batches]
        if release:
            self.empty_cache()
        return outputs


class TrainedRank(ModelRank):
    """The same for a model that is trained."""

    strategy: StepStrategy
    trainer: Any

    if TYPE_CHECKING:

        def fit(self) -> dict[str, float]: ...

        def reload_states(self) -> None: ...

        def offload_states(self) -> None: ...

    def train(self, steps: Sequence[Any]) -> dict[str, float]:
        """Run planned optimizer steps and return their metrics."""
        self.trainer.planned = list(steps)
        with self.states_at_hand():
            return self.fit()

    @contextmanager
    def states_at_hand(self) -> Iterator[None]:
        """Have the optimizer's states on the device, from which they are away otherwise with ``ds.enable_sleep``."""
        sleeps = self.strategy.args.ds.enable_sleep
        if sleeps:
            self.reload_states()
        try:
            yield
        finally:
            if sleeps:
                self.offload_states()


class PolicyActorBase(TrainedRank, _OpenrlhfPolicy):
    """OpenRLHF's policy actor with the step-level trainer."""

    def init_model_from_pretrained(self, strategy: StepStrategy, *args: Any) -> None:
        # If weights travel over NCCL, OpenRLHF would import vLLM to learn its version, for a variable that the pinned
        # one does not need. Only the trainer needs to know how they travel.
        vllm = strategy.args.vllm
        route, vllm.sync_backend = vllm.sync_backend, ""

        def make_trainer(*given: Any, **named: Any) -> StepPolicyTrainer:
            vllm.sync_backend = route
            return StepPolicyTrainer(*given, **named)

        # OpenRLHF builds its trainer through this module global.
        ppo_actor.ActorPPOTrainer, original = make_trainer, ppo_actor.ActorPPOTrainer
        try:
            _OpenrlhfPolicy.init_model_from_pretrained(self, strategy, *args)
        finally:
            ppo_actor.ActorPPOTrainer = original

    def forward(self, sequences: Tensor, action_mask: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute the log-probabilities (S, T-1) where ``action_mask`` is 1."""
        return _log_probs(self.actor, sequences, action_mask, attention_mask, self.strategy)

    def weight_route(self) -> Route:
        """Return how the weights travel to the engines."""
        route: Route = self.trainer.route
        return route

    def replace_engine(self, number: int, handle: Any) -> None:
        """Send the weights to an engine that takes the place of one that died, and to it from now on."""
        self.trainer.replace_engine(number, handle)

    def parameters(self) -> dict[str, Tensor]:
        """Return copies of all parameters by name (for tests and small models)."""
        return {name: value.float().cpu().clone() for name, value in self.strategy.whole_parameters(self.actor)}

    def write_checkpoint(self, folder: str, loop: str) -> None:
        """Write this rank's part of the policy, and the loop's state."""
        self.strategy.write_state(self.actor, folder, POLICY, {"loop": loop})

    def read_checkpoint(self, folder: str) -> str:
        """Restore this rank's part of the policy, and return the loop's state."""
        with self.states_at_hand():
            loop: str = self.strategy.read_state(self.actor, folder, POLICY)["loop"]
        return loop

    def write_model(self, folder: str) -> None:
        """Write the policy as a Hugging Face folder; all ranks take part."""
        self.strategy.save_model(self.actor, self.tokenizer, folder)


class ReferenceActorBase(ModelRank, _OpenrlhfReference):
    """OpenRLHF's reference actor."""

    def forward(self, sequences: Tensor, action_mask: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute the log-probabilities (S, T-1) where ``action_mask`` is 1."""
        return _log_probs(self.model, sequences, action_mask, attention_mask, self.strategy)


@torch.no_grad()
def _log_probs(
    model: Actor, sequences: Tensor, action_mask: Tensor, attention_mask: Tensor, strategy: StepStrategy
) -> Tensor:
    model.eval()
    log_probs, _ = response_pass(model, sequences, attention_mask, action_mask, strategy)
    return log_probs.cpu()
