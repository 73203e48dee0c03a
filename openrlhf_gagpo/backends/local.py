"""The local backend: the same episodes, credit and loss in one process, with only transformers and torch."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.utils.logging import disable_progress_bar

from openrlhf_gagpo.backends.checkpoints import read_checkpoint, write_checkpoint
from openrlhf_gagpo.backends.local_critic import LocalCritic
from openrlhf_gagpo.backends.local_models import (
    add_adapters,
    build_optimizer,
    eos_ids,
    load_model,
    run_updates,
    write_model,
)
from openrlhf_gagpo.backends.response_pass import ResponseScores, response_pass
from openrlhf_gagpo.backends.sampler import BatchSampler
from openrlhf_gagpo.backends.trackers import Trackers
from openrlhf_gagpo.machine import GIB
from openrlhf_gagpo.rollout.player import EpisodePlayer, RolloutSettings
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams
from openrlhf_gagpo.training.backend import OnStage, Restored, unnoticed
from openrlhf_gagpo.training.collate import TokenValues, action_tensors, per_row
from openrlhf_gagpo.training.objective import LossScale, finish_metrics, step_loss
from openrlhf_gagpo.training.rows import MicroBatch, TokenRow, TrainingRow, unique_rows
from openrlhf_gagpo.training.settings import BackendSettings, CriticSettings, TrackerSettings
from openrlhf_gagpo.training.steps import StepLog
from openrlhf_gagpo.training.table import LOG_PROB
from openrlhf_gagpo.training.token_scores import Reading
from openrlhf_gagpo.training.values import value_columns
from openrlhf_gagpo.training.watchdog import own_stacks

__all__ = ["LocalBackend"]


class LocalBackend:
    """``training.backend.Backend`` on one CPU or one CUDA device."""

    def __init__(self, settings: BackendSettings, arguments: SimpleNamespace) -> None:
        del arguments  # the settings contain everything that this backend needs of OpenRLHF's flags
        self.settings = settings
        self.objective = settings.objective.build()
        self._runner = asyncio.Runner()
        self._player: EpisodePlayer | None = None
        self._trackers = Trackers(TrackerSettings())
        self._log = StepLog("policy", "actor", settings.optimizer.max_bad_steps)
        self._name_weights()

    @property
    def player(self) -> EpisodePlayer:
        """The episode player of a started backend."""
        if self._player is None:
            raise RuntimeError("the backend has not been started")
        return self._player

    def start(self, on_stage: OnStage = unnoticed) -> dict[str, str]:
        settings = self.settings
        started = time.perf_counter()
        if settings.threads:
            torch.set_num_threads(settings.threads)
        self._trackers = Trackers(settings.trackers)
        set_seed(settings.seed)
        disable_progress_bar()
        wanted = settings.device
        self.device = torch.device(wanted if wanted != "auto" else ("cuda" if torch.cuda.is_available() else "cpu"))
        self.tokenizer = AutoTokenizer.from_pretrained(
            settings.model, trust_remote_code=True, use_fast=settings.use_fast_tokenizer
        )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = self._load_model(settings.model)
        self.adapters = add_adapters(self.model, settings.lora)
        self.reference = (
            self._load_model(settings.model).requires_grad_(False) if settings.objective.kl_coef > 0 else None
        )
        if settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer, self.scheduler = build_optimizer(self.model, settings.optimizer, settings.iterations)
        self.critic = None if settings.critic is None else self._make_critic(settings.critic)
        self.sampler = BatchSampler(self.model, eos_ids(self.model, self.tokenizer), self.tokenizer.pad_token_id)
        self._player = self._runner.run(_make_player(settings.rollout, self.tokenizer))
        loaded = time.perf_counter() - started
        on_stage("model loaded" if self.critic is None else "models loaded", loaded)
        return {"devices": str(self.device), "start_models_s": f"{loaded:.1f}"}

    def _load_model(self, path: str) -> Any:
        return load_model(AutoModelForCausalLM, path, "actor.model_name_or_path").to(self.device)

    def _make_critic(self, settings: CriticSettings) -> LocalCritic:
        return LocalCritic(
            settings,
            self.settings.batches,
            self.settings.lora,
            iterations=self.settings.iterations,
            pad_id=self.tokenizer.pad_token_id,
            device=self.device,
            autocast=self._autocast,
        )

    def _autocast(self) -> torch.autocast:
        """Return the context of passes in ``--ds.param_dtype``; weights stay in float32, as the optimizer needs."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.param_dtype == "bf16")

    def _name_weights(self) -> None:
        """Give the policy's present weights a name that no others have, in this process or another."""
        self._weights = uuid.uuid4().hex

    def _promise(self, sampling: SamplingParams) -> str:
        """Return the name of the weights, if training would compute the log-probabilities that this sampling gives.

        It samples from the training distribution only at the training temperature and without a nucleus; and passes in
        half precision round differently in batches of another shape.
        """
        same = sampling.temperature == self.settings.temperature and sampling.top_p == 1
        return self._weights if same and self.settings.param_dtype != "bf16" else ""

    def rollout(
        self, requests: Sequence[EpisodeRequest], sampling: SamplingParams, on_done: Callable[[Episode], None]
    ) -> list[Episode]:
        self.model.eval()
        self.sampler.begin(len(requests), self.player.settings.concurrency, self._promise(sampling))

        def done(episode: Episode) -> None:
            self.sampler.episode_done()
            on_done(episode)

        with self._autocast():
            return self._runner.run(self.player.play(requests, self.sampler, sampling, done))

    def compute(self, rows: Sequence[TokenRow], columns: Collection[str]) -> dict[str, NDArray[np.float64]]:
        computed: dict[str, NDArray[np.float64]] = {}
        if LOG_PROB in columns:
            values = self._sampled(rows) or self._log_probs(self.model, rows)
            computed[LOG_PROB] = np.concatenate([np.asarray(row, dtype=np.float64) for row in values])
        if self.critic is not None:
            computed |= value_columns(self.critic.values(rows), rows)
        missing = set(columns) - set(computed)
        if missing:
            raise ValueError(f"the local backend cannot compute {', '.join(sorted(missing))} in this run")
        return computed

    def update(self, rows: Sequence[TrainingRow], seed: int, *, policy: bool = True) -> dict[str, float]:
        # What adapters drop depends on the iteration alone, so that a resumed run drops the same.
        torch.manual_seed(seed)
        metrics: dict[str, float] = {}
        if self.critic is not None:
            started = time.perf_counter()
            metrics = self.critic.update(rows, seed)
            metrics["time/critic"] = time.perf_counter() - started
        return metrics | self._update_policy(rows if policy else [], seed)

    def _update_policy(self, rows: Sequence[TrainingRow], seed: int) -> dict[str, float]:
        started = time.perf_counter()
        sampled = self._sampled(rows)
        old = sampled or self._old_log_probs(rows)
        reference = None if self.reference is None else self._log_probs(self.reference, rows)
        forwarded = time.perf_counter()
        plan = self.settings.batches.plan_training(rows, 1, seed)
        self.model.train()
        steps = run_updates(
            self.model,
            self.optimizer,
            self.scheduler,
            self.settings.optimizer.max_norm,
            plan,
            lambda batch, scale: self._loss(rows, batch, old, reference, scale, sampled=sampled is not None),
            self._log,
        )
        self._name_weights()
        metrics = finish_metrics(self._log.totals, self._log.count)
        metrics |= {f"policy/{name}": value for name, value in steps.items()}
        if self.device.type == "cuda":
            metrics["machine/gpu_memory_peak_gib"] = torch.cuda.max_memory_allocated(self.device) / GIB
        return metrics | {"time/forward": forwarded - started, "time/update": time.perf_counter() - forwarded}

    def _sampled(self, rows: Sequence[TokenRow]) -> list[list[float]] | None:
        """Return the sampler's log-probabilities, if it sampled every row with the present weights, or else None."""
        if all(row.sampled_by == self._weights for row in rows):
            return [row.sampling_log_probs for row in rows]
        return None

    def _old_log_probs(self, rows: Sequence[TrainingRow]) -> Sequence[TokenValues]:
        """Return log-probabilities before the first update; reuse those that were computed for credit, if any."""
        known = [row.old_log_probs for row in rows if row.old_log_probs is not None]
        return known if len(known) == len(rows) else self._log_probs(self.model, rows)

    def _forward(self, model: Any, rows: Sequence[TokenRow], *, entropy: bool = False) -> ResponseScores:
        reading = Reading(self.settings.temperature, entropy, self.settings.logit_chunk)
        with self._autocast():
            return response_pass(model, rows, self.tokenizer.pad_token_id, reading)

    @torch.no_grad()
    def _log_probs(self, model: Any, rows: Sequence[TokenRow]) -> list[Tensor]:
        """Compute the log-probabilities of every row's response tokens, in row order."""
        model.eval()
        unique, inverse = unique_rows(rows)
        results: list[Tensor] = [torch.empty(0)] * len(unique)
        for batch in self.settings.batches.plan_by_prompt(unique):
            output = self._forward(model, [unique[row] for row in batch.rows])
            values = per_row(output.log_probs, output.mask)
            for row, value in zip(batch.rows, values, strict=True):
                results[row] = value
        return [results[index] for index in inverse]

    def _loss(
        self,
        rows: Sequence[TrainingRow],
        batch: MicroBatch,
        old: Sequence[TokenValues],
        reference: Sequence[TokenValues] | None,
        scale: LossScale,
        *,
        sampled: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = [rows[row] for row in batch.rows]
        # Equal rows go through the model once; indexing repeats the result, and its gradient adds up.
        unique, inverse = unique_rows(chosen)
        output = self._forward(self.model, unique, entropy=self.objective.entropy_coef is not None)
        repeat = torch.tensor(inverse, device=self.device)
        actions = action_tensors(
            chosen,
            [old[row] for row in batch.rows],
            None if reference is None else [reference[row] for row in batch.rows],
            output.mask[repeat].cpu(),
            sampled=sampled,
        ).to(self.device)
        log_probs = output.log_probs[repeat]
        entropy = None if output.entropy is None else output.entropy[repeat]
        return step_loss(log_probs, entropy, actions, scale, self.objective)

    def sync(self) -> None:
        """Do nothing, because the sampler runs the policy itself."""

    def env_stats(self) -> dict[str, float]:
        return self.player.stats()

    def stacks(self) -> str:
        return own_stacks()

    def track(self, iteration: int, metrics: Mapping[str, float], *, evaluation: bool) -> None:
        self._trackers.track(iteration, metrics, evaluation=evaluation)

    def save_checkpoint(self, tag: str, state: dict[str, Any]) -> None:
        def write(folder: Path) -> None:
            write_model(self.model, folder, self.adapters)
            torch.save(
                {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()},
                folder / "state.pt",
            )
            if self.critic is not None:
                self.critic.save(folder / "critic")
            (folder / "loop.json").write_text(json.dumps(state), encoding="utf-8")

        write_checkpoint(self.settings.checkpoints, tag, write)

    def load_checkpoint(self) -> Restored | None:
        return read_checkpoint(self.settings.checkpoints.path, self._restore)

    def _restore(self, folder: Path) -> dict[str, Any]:
        if self.adapters is None:
            weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            self.model.load_state_dict(weights.state_dict())
        else:
            self.adapters.load(folder)
        self._name_weights()
        states = torch.load(folder / "state.pt", map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(states["optimizer"])
        self.scheduler.load_state_dict(states["scheduler"])
        if self.critic is not None:
            self.critic.load(folder / "critic")
        state: dict[str, Any] = json.loads((folder / "loop.json").read_text(encoding="utf-8"))
        return state

    def export(self) -> None:
        write_model(self.model, self.settings.checkpoints.output_dir, self.adapters)
        self.tokenizer.save_pretrained(self.settings.checkpoints.output_dir)
        if self.critic is not None and self.critic.settings.export:
            self.critic.export(self.settings.checkpoints.critic_dir)

    def parameters(self) -> dict[str, Tensor]:
        """Return copies of all parameters by name (for tests)."""
        return {name: p.detach().float().cpu().clone() for name, p in self.model.named_parameters()}

    def close(self) -> None:
        if self._player is not None:
            self._runner.run(self._player.aclose())
            self._player = None
        self._runner.close()
        # Last, since a tracker may fail for want of a network or of space.
        self._trackers.close()


async def _make_player(settings: RolloutSettings, tokenizer: Any) -> EpisodePlayer:
    return EpisodePlayer(settings, tokenizer)
