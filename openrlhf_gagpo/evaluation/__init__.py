"""Evaluation: the choice of episodes, their playing, and their metrics. It does not depend on optimizers."""

from __future__ import annotations

from openrlhf_gagpo.evaluation.harness import Evaluation, EvaluationPlan, Play, evaluate, play_with
from openrlhf_gagpo.evaluation.requests import evaluation_requests, plays_greedily, spread
from openrlhf_gagpo.evaluation.summary import evaluation_metrics, greedy_metrics

__all__ = [
    "Evaluation",
    "EvaluationPlan",
    "Play",
    "evaluate",
    "evaluation_metrics",
    "evaluation_requests",
    "greedy_metrics",
    "play_with",
    "plays_greedily",
    "spread",
]
