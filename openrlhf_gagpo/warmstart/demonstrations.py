"""Noisy-expert episodes, and their steps as token ids with exactly the wording of a rollout."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from agent_envs.base import TextEnv
from openrlhf_gagpo.errors import WarmstartError
from openrlhf_gagpo.rollout.prompt import HistoryEntry, PromptBuilder
from openrlhf_gagpo.rollout.types import Completion, Exchange

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["DemoEpisode", "Example", "check_demonstrable", "encode", "play", "texts"]


@dataclass(frozen=True)
class DemoEpisode:
    """One demonstrated episode."""

    task: str
    """The instruction, as in ``Reset.task``."""
    turns: tuple[HistoryEntry, ...]
    """Observations and actions, in order."""
    admissible_actions: tuple[tuple[str, ...], ...]
    """Admissible actions of each turn."""
    success: bool

    def exchanges(self, builder: PromptBuilder, answer: Callable[[str], list[int]]) -> Iterator[Exchange]:
        """Yield the prompt of each turn and the action, whose token ids ``answer`` gives.

        Raises:
            PromptTooLong: a prompt is beyond the builder's limit.
        """
        previous = None
        for index, (turn, admissible) in enumerate(zip(self.turns, self.admissible_actions, strict=True)):
            prompt = builder.build(self.task, self.turns[:index], turn.observation, admissible, index, previous)
            previous = Exchange(prompt, Completion(answer(turn.action), [], "stop"), turn.action)
            yield previous


@dataclass(frozen=True)
class Example:
    """One demonstrated step: token ids of the prompt, and of the action with the end-of-sequence id."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]


def check_demonstrable(env: TextEnv, split: str) -> None:
    """Raise ``WarmstartError`` unless ``split`` has tasks and the environment has an expert for them."""
    tasks = env.tasks(split)
    if not tasks:
        raise WarmstartError(f"The environment {env.name} has no tasks in its split {split!r}.")
    env.reset(tasks[0], 0)
    if env.expert() is None:
        raise WarmstartError(f"The environment {env.name} has no expert to imitate; a warm start needs one.")


def play(env: TextEnv, *, split: str, episodes: int, noise: float, seed: int) -> Iterator[DemoEpisode]:
    """Play ``episodes`` noisy-expert episodes over the shuffled tasks of ``split``, in rounds.

    With probability ``noise`` a step takes a uniformly random admissible action. That action is executed and becomes
    the label, so that states off the expert's path are demonstrated too, and the cloned policy keeps enough entropy to
    explore.
    """
    rng = random.Random(seed)
    tasks = list(env.tasks(split))
    rng.shuffle(tasks)
    for index in range(episodes):
        yield _play_one(env, tasks[index % len(tasks)], noise, rng)


def _play_one(env: TextEnv, task: str, noise: float, rng: random.Random) -> DemoEpisode:
    start = env.reset(task, rng.randrange(2**31))
    expert = env.expert()
    if expert is None:
        raise WarmstartError(f"The environment {env.name} has no expert for its task {task!r}.")
    observation, admissible = start.observation, start.admissible_actions
    turns: list[HistoryEntry] = []
    choices: list[tuple[str, ...]] = []
    while True:
        action = rng.choice(admissible) if admissible and rng.random() < noise else expert()
        turns.append(HistoryEntry(len(turns), observation, action))
        choices.append(admissible)
        result = env.step(action)
        if result.terminated or result.truncated:
            return DemoEpisode(start.task, tuple(turns), tuple(choices), result.success)
        observation, admissible = result.observation, result.admissible_actions


def texts(episodes: Sequence[DemoEpisode], builder: PromptBuilder) -> Iterator[str]:
    """Yield every text that the tokenizer must know: the rendered prompts and all admissible and taken actions."""
    for episode in episodes:
        played = episode.exchanges(builder, lambda action: [])
        for exchange, admissible in zip(played, episode.admissible_actions, strict=True):
            yield exchange.prompt.text
            yield exchange.response
            yield from admissible


def encode(
    episodes: Sequence[DemoEpisode], builder: PromptBuilder, tokenizer: PreTrainedTokenizerFast
) -> list[list[Example]]:
    """Return the token sequences of the demonstrations in playing order, each as the steps in it.

    A windowed prompt begins a sequence of its own. In a transcript, prompt and action of a step are the beginning of
    those of the next one in its sequence.

    Raises:
        PromptTooLong: a prompt is beyond the builder's limit.
    """

    @cache
    def answer(action: str) -> list[int]:
        return [*tokenizer.encode(action, add_special_tokens=False), tokenizer.eos_token_id]

    sequences: list[list[Example]] = []
    for episode in episodes:
        number = None
        for prompt, completion, _ in episode.exchanges(builder, answer):
            if number is None or prompt.sequence != number:
                sequences.append([])
            number = prompt.sequence
            sequences[-1].append(Example(tuple(prompt.token_ids), tuple(completion.token_ids)))
    return sequences
