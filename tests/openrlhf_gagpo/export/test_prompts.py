"""Prompts as messages again: through chat templates of several kinds, and one step of training on the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent_envs.base import PromptTemplate
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.export import formats
from openrlhf_gagpo.export.prompts import PromptReader
from openrlhf_gagpo.rollout.prompt import ChatTemplate, HistoryEntry, PromptBuilder
from openrlhf_gagpo.rollout.types import Message, Step
from support.exports import CHAT, chat_tokenizer, recording

NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[{{ m.role }}]{{ m.content | trim }}[end]{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
THINKING = CHAT + "{% if add_generation_prompt and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<system> Be helpful. </system>\n{% endif %}" + CHAT


def step(ids: list[int], index: int = 0, dropped: int = 0) -> Step:
    return Step(
        index, "s", "t", "o", "a", 0.0, False, False, True, True, ids, [1], [0.0], "answer", history_dropped=dropped
    )


def builder(tokenizer: Any, system: str, chat_template: ChatTemplate = "auto", *, think: bool = False) -> PromptBuilder:
    template = PromptTemplate(
        system=system, turn="{{ observation }}\n{% for h in history %}{{ h.action }};{% endfor %}"
    )
    return PromptBuilder(
        template,
        tokenizer,
        history_length=4,
        think=think,
        action_tags=False,
        list_actions=False,
        chat_template=chat_template,
        max_prompt_tokens=500,
    )


@pytest.mark.parametrize("think", [False, True])
@pytest.mark.parametrize("system", ["", "Act.\nBe brief."])
@pytest.mark.parametrize("template", [CHAT, NO_SYSTEM, THINKING, DEFAULT_SYSTEM])
def test_messages_give_the_same_prompt_again(template: str, system: str, think: bool) -> None:
    """Those that the chat template was given, or others from which it makes the same text."""
    tokenizer = chat_tokenizer(template)
    prompts = builder(tokenizer, system, think=think)
    observation = "a </b> $1 (x|y)*\nç ❤ {{ x }}"
    built = prompts.build("", [HistoryEntry(0, "before", "go")], observation, [], 1)
    for known in (think, None):
        reader = PromptReader(tokenizer, chat_template="auto", think=known)
        found = reader.messages(step(built.token_ids, 1))
        text = tokenizer.apply_chat_template(found, tokenize=False, add_generation_prompt=True, enable_thinking=think)
        assert tokenizer.encode(text, add_special_tokens=False) == built.token_ids
        assert found[-1]["role"] == "user"
        assert found[-1]["content"].endswith(f"{observation}\ngo;")
        if system and template != NO_SYSTEM:
            assert found == built.messages


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Act."}]])
def test_a_conversation_keeps_its_turns(system: list[Message]) -> None:
    tokenizer = chat_tokenizer()
    talk: list[Message] = [*system, {"role": "user", "content": "one"}]
    for number in range(3):
        talk += [{"role": "assistant", "content": f"do {number}"}, {"role": "user", "content": f"seen {number}"}]
    prompt = builder(tokenizer, "Act." if system else "").render(talk)
    reader = PromptReader(tokenizer, chat_template="auto", think=False)
    assert reader.messages(step(prompt.token_ids, index=3)) == talk
    assert reader.messages(step(prompt.token_ids, index=5, dropped=2)) == talk


def test_messages_with_nothing_between_them_are_one() -> None:
    tokenizer = chat_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}\n")
    built = builder(tokenizer, "Act.").build("", [], "door", [], 0)
    reader = PromptReader(tokenizer, chat_template="auto", think=False)
    (found,) = reader.messages(step(built.token_ids))
    assert found["role"] == "user"
    assert found["content"].startswith("Act.door")


def test_without_a_chat_template_all_is_the_users() -> None:
    tokenizer = chat_tokenizer()
    built = builder(tokenizer, "Act.", "none").build("", [], "door", [], 0)
    expected = [{"role": "user", "content": "Act.\n\ndoor"}]
    for setting in ("none", ""):
        reader = PromptReader(tokenizer, chat_template=setting, think=False)
        assert [
            {**message, "content": message["content"].strip()} for message in reader.messages(step(built.token_ids))
        ] == expected
    with pytest.raises(ConfigError, match="does not have the form of the tokenizer's chat template"):
        PromptReader(tokenizer, chat_template="auto", think=False).messages(step(built.token_ids))


def test_one_step_of_fine_tuning_on_the_messages(tmp_path: Path) -> None:
    """The tokens that a trainer makes of a line are those that the run recorded, and the loss on them goes down."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

    chat_tokenizer().save_pretrained(tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    made = recording(tokenizer, tmp_path / "tokenizer")
    formats.get("messages").write(made, tmp_path / "sft.jsonl")
    rows = []
    for line in (tmp_path / "sft.jsonl").read_text(encoding="utf-8").splitlines():
        *prompt, answer = json.loads(line)["messages"]
        text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids, reply = (tokenizer.encode(part, add_special_tokens=False) for part in (text, answer["content"]))
        rows.append((ids, reply))
    steps = [step for item in made.episodes if not item.episode.faulted for step in item.episode.steps]
    assert rows == [(step.prompt_ids, step.response_ids) for step in steps]

    def collate(items: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(item["input_ids"]) for item in items)
        pads = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {
            name: torch.tensor([item[name] + [pad] * (longest - len(item[name])) for item in items])
            for name, pad in pads.items()
        }

    data = [{"input_ids": p + r, "attention_mask": [1] * len(p + r), "labels": [-100] * len(p) + r} for p, r in rows]
    set_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **size))
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"),
        max_steps=1,
        per_device_train_batch_size=len(data),
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    batch = collate(data)
    before = model(**batch).loss.item()
    trained = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate).train()  # type: ignore[arg-type]
    assert trained.global_step == 1
    assert model(**batch).loss.item() < before
