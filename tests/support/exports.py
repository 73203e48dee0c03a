"""A small made-up recording, and the files of ``tests/data/export`` that it gives in every format.

``PYTHONPATH=.:tests python -m support.exports tests/data/export`` writes them again after a format changed;
``make test-interop`` then has to accept them.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from openrlhf_gagpo.comparison.recorded import steps_of
from openrlhf_gagpo.comparison.steps import Source
from openrlhf_gagpo.export import formats
from openrlhf_gagpo.export.recording import Origin, Recorded, Recording
from openrlhf_gagpo.report.episodes import PlayedEpisode
from openrlhf_gagpo.rollout.types import Usage
from support.report_runs import episode

__all__ = ["CHAT", "FILES", "chat_tokenizer", "recording", "write_all"]

FILES = {"messages": "messages.jsonl", "jsonl": "steps.jsonl", "inspect": "log.json", "atif": "trajectories"}

CHAT = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} </{{ message.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def chat_tokenizer(template: str = CHAT) -> Any:
    """A tokenizer of single bytes, which reproduces every text, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def recording(tokenizer: Any, folder: Path) -> Recording:
    """A success and a failure of one task with credit, and a faulted episode; ``folder`` is where the tokenizer is."""
    episodes = [episode(0, success=True, steps=2), episode(1, success=False, steps=3), episode(2, success=False)]
    for played in episodes:
        for step in played.steps:
            prompt = [
                {"role": "system", "content": "Think first."},
                {"role": "user", "content": f"{step.observation} {step.index}"},
            ]
            text = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
            step.prompt_ids = tokenizer.encode(text, add_special_tokens=False)
            step.response_ids = tokenizer.encode(step.response, add_special_tokens=False)
            step.sampling_log_probs = [-0.5] * len(step.response_ids)
    faulted = episodes[2]
    faulted.steps, faulted.end_reason, faulted.error = faulted.steps[:1], "env_fault", "EnvError: the door is stuck"
    faulted.steps[0].terminated = faulted.steps[0].truncated = False
    credit = [{"advantage": 0.5 * n - 0.1, "return": 0.25, "value": 1 / 3, "td_residual": -0.125} for n in range(5)]
    rows = [credit[:2], credit[2:], [{}]]
    keyed = {
        (played.group, played.trajectory, step.index): values
        for played, values_of in zip(episodes[:2], rows, strict=False)
        for step, values in zip(played.steps, values_of, strict=True)
    }
    origin = Origin(
        title="made-up",
        environment="vault",
        split="train",
        model="models/tiny",
        started="2026-01-02T03:04:05+00:00",
        ended="2026-01-02T04:05:06+00:00",
        commit="0123abc",
        packages={"openrlhf-gagpo": "0.2.0"},
        settings={"train.seed": 7, "env.options": {"size": 3}},
        chat_template="auto",
        think=False,
        tokenizers=(str(folder),),
    )
    usages: list[Usage | None] = [None, Usage(3, 70, 10, 20), None]
    return Recording(
        origin,
        [
            Recorded(PlayedEpisode(n, played, rows[n]), iteration=3, usage=usages[n])
            for n, played in enumerate(episodes)
        ],
        lambda: Source("made-up", [steps_of(episodes, keyed, 3)]),
    )


def write_all(folder: Path) -> None:
    """Write the recording in every format."""
    with tempfile.TemporaryDirectory() as home:
        tokenizer = chat_tokenizer()
        tokenizer.save_pretrained(home)
        for name, file in FILES.items():
            formats.get(name).write(recording(tokenizer, Path(home)), folder / file)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    write_all(target)
