"""The warm start on the environment it was sized for."""

from __future__ import annotations

import pytest

from agent_envs import registry
from openrlhf_gagpo.rollout.prompt import PromptBuilder
from openrlhf_gagpo.warmstart.demonstrations import encode, play, texts
from openrlhf_gagpo.warmstart.tokenizer import build_tokenizer


@pytest.mark.parametrize("options", [{}, {"size": 4, "keys": 3, "max_steps": 18}])
def test_held_out_episodes_hold_no_unknown_word(options: dict[str, int]) -> None:
    env = registry.make("vault", **options)

    def builder(tokenizer: object) -> PromptBuilder:
        return PromptBuilder(
            env.prompt,
            tokenizer,
            history_length=0,
            think=False,
            action_tags=False,
            list_actions=False,
            chat_template="none",
            max_prompt_tokens=200,
        )

    seen = list(play(env, split="train", episodes=100, noise=0.2, seed=0))
    tokenizer = build_tokenizer(texts(seen, builder(build_tokenizer([]))))
    assert len(tokenizer) < 60

    unseen = list(play(env, split="test", episodes=100, noise=0.5, seed=1))
    turns = [turn for episode in unseen for turn in episode.turns]
    for (row,), turn in zip(encode(unseen, builder(tokenizer), tokenizer), turns, strict=True):
        assert tokenizer.unk_token_id not in row.prompt_ids + row.response_ids
        assert tokenizer.decode(row.response_ids, skip_special_tokens=True) == turn.action


def test_the_decoded_action_is_accepted_by_the_environment() -> None:
    env = registry.make("vault")
    tokenizer = build_tokenizer(
        action
        for episode in play(env, split="train", episodes=50, noise=0.2, seed=0)
        for choices in episode.admissible_actions
        for action in choices
    )
    task = env.tasks("test")[0]
    env.reset(task, 0)
    expert = env.expert()
    for _ in range(env.max_steps):
        ids = tokenizer.encode(expert(), add_special_tokens=False)
        result = env.step(tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True))
        assert result.admissible
        if result.terminated:
            break
    assert result.success
