"""Information gains of a run on generated questions, against one pass per prompt and answer."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from agent_envs import make
from agent_envs.search_qa.generator import generate
from agent_envs.search_qa.levels import LEVELS
from openrlhf_gagpo.cli.main import main
from openrlhf_gagpo.rollout.records import read_records
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.warmstart.pipeline import warm_start
from openrlhf_gagpo.warmstart.settings import WarmstartSettings


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    generate(root, replace(LEVELS["tiny"], tasks=(60, 20, 20)))
    return root


@pytest.fixture(scope="module")
def model(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    settings = WarmstartSettings(
        "search_qa",
        folder,
        env_options={"data_dir": str(world)},
        episodes=60,
        noise=0.3,
        history_length=4,
        steps=40,
        device="cpu",
    )
    warm_start(settings, make("search_qa", data_dir=str(world)), lambda line: None)
    return folder


def _flags(world: Path, model: Path, run: Path, **more: object) -> list[str]:
    flags = {
        "backend": "local", "train.device": "cpu", "train.threads": 1, "ds.param_dtype": "fp32",
        "env.name": "search_qa", "env.options": f"data_dir={world}", "env.workers": 1, "env.eval_split": "valid",
        "rollout.batch_size": 2, "rollout.n_samples_per_prompt": 4, "rollout.max_new_tokens": 8,
        "rollout.history_length": 4, "rollout.chat_template": "none", "data.max_len": 400,
        "train.num_iterations": 2, "train.batch_size": 32, "train.micro_batch_size": 32,
        "algo.advantage.estimator": "a2tgpo", "actor.model_name_or_path": model, "actor.adam.lr": 1e-3,
        "run_dir": run, **{name.replace("__", "."): value for name, value in more.items()},
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    switches = ("rollout.no_think", "rollout.no_action_tags", "rollout.no_list_actions", "no_report")
    return ["train", *words, *(f"--{name}" for name in (*switches, "eval.no_before_train", "eval.no_after_train"))]


@pytest.mark.parametrize(("context", "estimator"), [("window", "a2tgpo"), ("transcript", "igpo")])
def test_gains_are_those_of_one_pass_per_prompt_and_answer(
    world: Path, model: Path, tmp_path: Path, context: str, estimator: str
) -> None:
    more = {"rollout__context": context, "algo__advantage__estimator": estimator}
    assert main(_flags(world, model, tmp_path / "run", **more)) == 0
    run = RunFolder.open(tmp_path / "run")
    assert all(row["policy/rows_trained"] > 0 for row in run.metrics())
    episodes, credit = read_records(run.rollout_path(1))
    tokenizer, policy = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)

    def likely(prompt: list[int], answer: str) -> float:
        ids = tokenizer(f"answer {answer}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            scores = policy(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        # The first token is the word that leads to the answer.
        return sum(float(scores[len(prompt) + k - 1, ids[k]]) for k in range(1, len(ids))) / (len(ids) - 1)

    compared = 0
    for episode in episodes:
        answer = episode.info["answers"][0]
        levels = [likely(step.prompt_ids, answer) for step in episode.steps]
        for step in episode.steps:
            found = credit[episode.group, episode.trajectory, step.index].get("ig", math.nan)
            if step.index + 1 < len(levels):
                assert found == pytest.approx(levels[step.index + 1] - levels[step.index], abs=1e-5)
                compared += 1
            else:
                assert math.isnan(found) == step.terminated
    assert compared > 5


def test_an_environment_without_answers_is_refused(
    world: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = _flags(world, model, tmp_path / "run", env__name="vault", env__options="size=3")
    assert main(flags) == 2
    assert "a2tgpo asks how likely the golden answer becomes, and vault has none" in capsys.readouterr().err
