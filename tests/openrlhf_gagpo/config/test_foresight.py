"""A dry run: what this machine lacks is told of, what no machine could run is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from openrlhf_gagpo.config import evaluating
from openrlhf_gagpo.config.foresight import foresee
from openrlhf_gagpo.config.memory import Estimate
from openrlhf_gagpo.config.render import show
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import rollout_settings
from openrlhf_gagpo.errors import ConfigError


@pytest.fixture(autouse=True)
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


VAULT = "--dry_run --env.name vault --env.eval_split valid --actor.model_name_or_path Qwen/Qwen2.5-1.5B-Instruct"
SHARED = "--actor.num_gpus_per_node 2 --vllm.num_engines 2 --train.colocate_all"


def test_settings_for_gpus_are_placed_on_gpus() -> None:
    ahead = foresee(resolve(f"{VAULT} {SHARED} --vllm.enable_sleep --ds.adam_offload".split()))
    assert (ahead.plan.device, ahead.plan.gpus) == ("cuda", 2)
    assert isinstance(ahead.memory, Estimate)
    # The settings that need GPUs are not named one by one beside it.
    assert [text.split(",")[0] for text in ahead.warnings] == [
        "this machine has no GPU",
        "there is no model folder Qwen/Qwen2.5-1.5B-Instruct",
    ]


def test_settings_for_a_cpu_stay_there() -> None:
    ahead = foresee(resolve(f"{VAULT} {SHARED}".split()))
    assert ahead.plan.device == "cpu"
    assert not any("no GPU" in text for text in ahead.warnings)


def test_environments_on_other_nodes_are_shown_there(capsys: pytest.CaptureFixture[str]) -> None:
    for extra, where in (("", "CPU "), ("--env.placement ray", "nodes without GPUs, or all if each has some ")):
        config = resolve(f"{VAULT} {SHARED} {extra}".split())
        show(config, foresee(config), Console(width=200))
        lines = capsys.readouterr().out.splitlines()
        assert [line.startswith(f"{where} ") for line in lines if "environment worker" in line] == [True]
    assert rollout_settings(config).placement == "ray"
    with pytest.raises(ConfigError, match=r"^--env\.placement is for the distributed backend only"):
        foresee(resolve(f"{VAULT} --backend local --env.placement ray".split()))
    with pytest.raises(ConfigError, match=r"^--env\.placement is not a flag"):
        evaluating.parse(["--env.name", "vault", "--env.placement", "ray"])


def test_a_device_that_is_missing_here_is_a_warning_for_the_local_backend() -> None:
    ahead = foresee(resolve(f"{VAULT} --backend local --train.device cuda".split()))
    assert any("needs an NVIDIA GPU" in text for text in ahead.warnings)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("--train.batch_size 2 --train.micro_batch_size 4", "more than train.batch_size"),
        ("--env.name valt", "There is no environment 'valt'"),
        ("--env.options sise=3", "has no option 'sise'"),
        ("--env.max_steps 15 --env.options max_steps=16", "given twice"),
        ("--ds.ring_attn_size 2 --train.logit_chunk 64", "train.logit_chunk does not work with ds.ring_attn_size"),
    ],
)
def test_what_no_machine_could_run_is_refused(extra: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        foresee(resolve(f"{VAULT} {SHARED} {extra}".split()))
