"""How often a warm-started model succeeds, sampled and greedy, by the harness that evaluates everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf_gagpo.backends.local_models import eos_ids, load_model
from openrlhf_gagpo.backends.sampler import BatchSampler
from openrlhf_gagpo.evaluation import EvaluationPlan, evaluate, greedy_metrics, play_with
from openrlhf_gagpo.rollout.player import EpisodePlayer
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams
from openrlhf_gagpo.warmstart.settings import WarmstartSettings

__all__ = ["Success", "measure"]


@dataclass(frozen=True)
class Success:
    """Success of one way to play, over the tasks that could be played."""

    kind: str
    """"sampled" (temperature 1) or "greedy"."""
    share: float
    """In [0, 1]; NaN without a task."""
    low: float
    high: float
    """95 % Wilson interval over tasks."""
    tasks: int
    faulted: int
    """Episodes that a failure of the environment ended; they do not count."""

    def __str__(self) -> str:
        if not self.tasks:
            return f"{self.kind}: no episode could be played ({self.faulted} failures of the environment)"
        lost = f", {self.faulted} more failed in the environment" if self.faulted else ""
        return f"{self.kind} success {self.share:.3f} [{self.low:.3f}, {self.high:.3f}] on {self.tasks} tasks{lost}"

    def to_dict(self) -> dict[str, object]:
        """Return the fields in JSON types, null for a share of nothing."""
        return asdict(self) | {"share": self.share if self.tasks else None}


def measure(
    settings: WarmstartSettings, tasks: Sequence[str], answer_tokens: int, on_done: Callable[[Episode], None]
) -> list[Success]:
    """Play each of ``tasks`` once at temperature 1 and once greedily with the model in ``settings.out``.

    Args:
        answer_tokens: longest answer, in tokens; a warm-started model has learned none that are longer.
        on_done: called with every episode as it ends.
    """
    tokenizer = AutoTokenizer.from_pretrained(settings.out)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_model(AutoModelForCausalLM, str(settings.out), "out").to(device)
    sampler = BatchSampler(model.eval(), eos_ids(model, tokenizer), tokenizer.pad_token_id)
    sampling = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=answer_tokens)
    plan = EvaluationPlan(settings.eval_split or settings.split, tasks, 1, sampling, settings.seed)
    rollout = settings.rollout(len(tasks))
    with play_with(sampler, EpisodePlayer(rollout, tokenizer)) as play_all:

        def play(
            requests: Sequence[EpisodeRequest], sampling: SamplingParams, on_done: Callable[[Episode], None]
        ) -> list[Episode]:
            def ended(episode: Episode) -> None:
                sampler.episode_done()
                on_done(episode)

            sampler.begin(len(requests), rollout.concurrency)
            return play_all(requests, sampling, ended)

        sampled = evaluate(play, plan, "sampled", on_done).metrics
        greedy = greedy_metrics(evaluate(play, plan.greedy(), "greedy", on_done).episodes)
    return [_success("sampled", sampled, ""), _success("greedy", greedy, "greedy_")]


def _success(kind: str, metrics: dict[str, float], prefix: str) -> Success:
    share, low, high, tasks, faulted = (
        metrics[f"eval/{prefix}{name}"] for name in ("success", "success_low", "success_high", "tasks", "faulted")
    )
    return Success(kind, share, low, high, int(tasks), int(faulted))
