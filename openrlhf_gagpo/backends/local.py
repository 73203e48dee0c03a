"""The local backend: the same episodes, credit and loss in one process, with transformers and torch alone."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, get_scheduler, set_seed
from transformers.utils.logging import disable_progress_bar

from openrlhf_gagpo.backends.sampler import BatchSampler
from openrlhf_gagpo.rollout.player import EpisodePlayer
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams
from openrlhf_gagpo.training.collate import TokenBatch, collate, per_row, scatter_rows
from openrlhf_gagpo.training.losses import (
    LossScale,
    finish_metrics,
    masked_entropy,
    merge_sums,
    step_loss,
    token_log_probs,
)
from openrlhf_gagpo.training.rows import MicroBatch, TrainingRow, unique_rows
from openrlhf_gagpo.training.schedule import offset_warmup
from openrlhf_gagpo.training.settings import loss_options, plan_forward, plan_training, rollout_settings

__all__ = ["LocalBackend"]

# Parameters without weight decay, by name, as in OpenRLHF's optimizer groups.
_NO_DECAY = ("bias", "layer_norm.weight", "layernorm.weight", "norm.weight", "ln_f.weight")


class LocalBackend:
    """``training.backend.Backend`` on one CPU or one CUDA device."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self.options = loss_options(config)
        self._runner = asyncio.Runner()
        self._player: EpisodePlayer | None = None

    def start(self) -> dict[str, str]:
        config = self.config
        started = time.perf_counter()
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        set_seed(config.train.seed)
        disable_progress_bar()
        wanted = config.train.device
        self.device = torch.device(wanted if wanted != "auto" else ("cuda" if torch.cuda.is_available() else "cpu"))
        path = config.actor.model_name_or_path
        self.tokenizer = AutoTokenizer.from_pretrained(
            path, trust_remote_code=True, use_fast=not config.data.disable_fast_tokenizer
        )
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model = self._load_model(path)
        self.reference = self._load_model(path).requires_grad_(False) if config.algo.kl.init_coef > 0 else None
        if config.actor.gradient_checkpointing_enable:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        self.optimizer, self.scheduler = _optimizer(self.model, config)
        self.sampler = BatchSampler(self.model, _eos_ids(self.model, self.tokenizer), self.tokenizer.pad_token_id)
        self._player = self._runner.run(_make_player(config, self.tokenizer))
        return {"devices": str(self.device), "start_models_s": f"{time.perf_counter() - started:.1f}"}

    def _load_model(self, path: str) -> Any:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation="sdpa",
            trust_remote_code=True,
        )
        return model.to(self.device).eval()

    def _autocast(self) -> torch.autocast:
        """Weights stay in float32, as the optimizer needs them; ``--ds.param_dtype`` is what passes compute in."""
        dtype = self.config.ds.param_dtype
        return torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == "bf16")

    def rollout(
        self, requests: Sequence[EpisodeRequest], sampling: SamplingParams, on_done: Callable[[Episode], None]
    ) -> list[Episode]:
        self.model.eval()
        self.sampler.begin(len(requests), self._player.settings.concurrency)

        def done(episode: Episode) -> None:
            self.sampler.episode_done()
            on_done(episode)

        with self._autocast():
            return self._runner.run(self._player.play(requests, self.sampler, sampling, done))

    def update(self, rows: Sequence[TrainingRow], seed: int) -> dict[str, float]:
        config = self.config
        started = time.perf_counter()
        old = self._log_probs(self.model, rows)
        reference = None if self.reference is None else self._log_probs(self.reference, rows)
        forwarded = time.perf_counter()
        plan = plan_training(rows, config, 1, seed)
        self.model.train()
        totals: dict[str, float] = {}
        norms = []
        learning_rate = self.scheduler.get_last_lr()[0]
        for step in plan:
            scale = LossScale(step.row_normalizer, step.token_normalizer)
            for batch in step.shards[0]:
                loss, sums = self._loss(rows, batch, old, reference, scale)
                loss.backward()
                merge_sums(totals, sums)
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.actor.max_norm or float("inf"))
            norms.append(float(norm))
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        if not plan:
            # Moves nothing without gradients, but the schedule complains unless the optimizer has stepped before it.
            self.optimizer.step()
        self.scheduler.step()
        metrics = finish_metrics(totals, len(plan)) | {"policy/lr": learning_rate}
        if norms:
            metrics["policy/grad_norm"] = sum(norms) / len(norms)
        return metrics | {"time/forward": forwarded - started, "time/update": time.perf_counter() - forwarded}

    def _forward(self, model: Any, tokens: TokenBatch) -> Tensor:
        """Logits (B, T-1, V) that predict tokens 1 to T-1."""
        mask = tokens.attention_mask.to(self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with self._autocast():
            output = model(
                input_ids=tokens.sequences.to(self.device), attention_mask=mask, position_ids=positions, use_cache=False
            )
        return output.logits[:, :-1]

    @torch.no_grad()
    def _log_probs(self, model: Any, rows: Sequence[TrainingRow]) -> list[Tensor]:
        """Log-probabilities of every row's response tokens, in row order."""
        unique, inverse = unique_rows(rows)
        results: list[Tensor] = [torch.empty(0)] * len(unique)
        for batch in (batch for step in plan_forward(unique, self.config) for batch in step.shards[0]):
            tokens = collate([unique[row] for row in batch.rows], pad_id=self.tokenizer.pad_token_id)
            values = self._token_log_probs(self._forward(model, tokens), tokens)
            for row, value in zip(batch.rows, per_row(values, tokens.action_mask), strict=True):
                results[row] = value
        return [results[index] for index in inverse]

    def _token_log_probs(self, logits: Tensor, tokens: TokenBatch) -> Tensor:
        return token_log_probs(logits, tokens.sequences[:, 1:].to(self.device), self.config.rollout.temperature)

    def _loss(
        self,
        rows: Sequence[TrainingRow],
        batch: MicroBatch,
        old: Sequence[Tensor],
        reference: Sequence[Tensor] | None,
        scale: LossScale,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # Equal rows go through the model once; indexing repeats the result, and its gradient adds up.
        unique, inverse = unique_rows([rows[row] for row in batch.rows])
        tokens = collate(unique, pad_id=self.tokenizer.pad_token_id)
        logits = self._forward(self.model, tokens)
        with torch.set_grad_enabled(bool(self.options.entropy_coef)):
            entropy = masked_entropy(logits, tokens.action_mask.to(self.device), self.config.rollout.temperature)
        repeat = torch.tensor(inverse)
        mask = tokens.action_mask[repeat]
        repeat = repeat.to(self.device)

        def spread(values: Sequence[Any]) -> Tensor:
            return scatter_rows([values[row] for row in batch.rows], mask).to(self.device)

        return step_loss(
            self._token_log_probs(logits, tokens)[repeat],
            spread(old),
            None if reference is None else spread(reference),
            spread([row.sampling_log_probs for row in rows]),
            torch.tensor([rows[row].advantage for row in batch.rows], dtype=torch.float32, device=self.device),
            mask.to(self.device),
            entropy[repeat],
            scale,
            self.options,
        )

    def sync(self) -> None:
        """Nothing to do: the sampler runs the policy itself."""

    def env_stats(self) -> dict[str, float]:
        return self._player.stats()

    def track(self, iteration: int, metrics: Mapping[str, float], *, evaluation: bool) -> None:
        """Nothing to do: trackers are OpenRLHF's, which this backend does not import."""

    def save_checkpoint(self, tag: str, state: dict[str, Any]) -> None:
        root = Path(self.config.ckpt.path)
        partial = root / f".{tag}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _save_model(self.model, partial)
        torch.save(
            {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}, partial / "state.pt"
        )
        (partial / "loop.json").write_text(json.dumps(state), encoding="utf-8")
        shutil.rmtree(root / tag, ignore_errors=True)
        os.replace(partial, root / tag)
        # Named last: a checkpoint that is not complete is never the newest.
        (root / ".latest").write_text(tag, encoding="utf-8")
        os.replace(root / ".latest", root / "latest")
        # Nothing else that lies there is ours to remove.
        saved = sorted(root.glob("global_step[0-9]*"), key=lambda path: path.stat().st_mtime)
        for old in saved[: -self.config.ckpt.max_num]:
            shutil.rmtree(old)

    def load_checkpoint(self) -> dict[str, Any] | None:
        root = Path(self.config.ckpt.path)
        if not (root / "latest").exists():
            return None
        folder = root / (root / "latest").read_text(encoding="utf-8").strip()
        weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model.load_state_dict(weights.state_dict())
        states = torch.load(folder / "state.pt", map_location=self.device, weights_only=True)
        self.optimizer.load_state_dict(states["optimizer"])
        self.scheduler.load_state_dict(states["scheduler"])
        return json.loads((folder / "loop.json").read_text(encoding="utf-8"))

    def export(self) -> None:
        _save_model(self.model, Path(self.config.ckpt.output_dir))
        self.tokenizer.save_pretrained(self.config.ckpt.output_dir)

    def parameters(self) -> dict[str, Tensor]:
        """Copies of all parameters by name (for tests)."""
        return {name: p.detach().float().cpu().clone() for name, p in self.model.named_parameters()}

    def close(self) -> None:
        if self._player is not None:
            self._runner.run(self._player.aclose())
            self._player = None
        self._runner.close()


def _save_model(model: Any, folder: Path) -> None:
    """A Hugging Face folder as ``save_pretrained`` writes it, which would import DeepSpeed where it is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})


async def _make_player(config: Any, tokenizer: Any) -> EpisodePlayer:
    return EpisodePlayer(rollout_settings(config), tokenizer)


def _eos_ids(model: Any, tokenizer: Any) -> list[int]:
    """All end-of-sequence ids, as vLLM takes them: the generation config's and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    configured = configured if isinstance(configured, list) else [configured]
    return [token for token in {*configured, tokenizer.eos_token_id} if token is not None]


def _optimizer(model: Any, config: Any) -> tuple[torch.optim.AdamW, Any]:
    """AdamW and a schedule over iterations, with OpenRLHF's flags and parameter groups."""
    adam = config.actor.adam

    def parameters(decayed: bool) -> Iterator[Tensor]:
        for name, parameter in model.named_parameters():
            if any(part in name for part in _NO_DECAY) != decayed:
                yield parameter

    groups = [
        {"params": list(parameters(True)), "weight_decay": adam.weight_decay},
        {"params": list(parameters(False)), "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=adam.lr, betas=tuple(adam.betas), eps=adam.eps)
    iterations = config.train.num_iterations
    has_floor = config.actor.lr_scheduler in ("cosine_with_min_lr", "cosine_warmup_with_min_lr")
    extra = {"min_lr_rate": config.actor.min_lr_ratio} if has_floor else {}
    scheduler = get_scheduler(
        config.actor.lr_scheduler,
        optimizer,
        num_warmup_steps=math.ceil(iterations * config.actor.lr_warmup_ratio),
        num_training_steps=iterations,
        scheduler_specific_kwargs=extra,
    )
    offset_warmup(scheduler, config.actor.lr_warmup_ratio)
    return optimizer, scheduler
