"""``gagpo warmstart``: flags, one-sentence errors, and what a wrong call costs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openrlhf_gagpo.cli.warmstart import main, parse
from openrlhf_gagpo.errors import WarmstartError
from openrlhf_gagpo.hygiene import DEFAULTS
from openrlhf_gagpo.output import LIBRARIES_LOG
from openrlhf_gagpo.warmstart import pipeline, success
from openrlhf_gagpo.warmstart.settings import WarmstartSettings


@pytest.fixture(autouse=True)
def _restore_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # The command sets variables of its process, which here is that of all tests.
    for name in (*DEFAULTS, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))


def test_flags_become_settings(tmp_path: Path) -> None:
    flags = "--env.name vault --episodes 9 --lr 1e-3 --rollout.history_length 2 --rollout.list_actions"
    options = ["--env.options", '{"size": 4}', "--env.options", "keys=3", "--env.options", "word=gold"]
    settings = parse([*flags.split(), *options, "--out", str(tmp_path)])
    assert settings == parse([*flags.split(), *options[:1], *options[1::2], "--out", str(tmp_path)])
    assert settings == WarmstartSettings(
        env_name="vault",
        out=tmp_path,
        env_options={"size": 4, "keys": 3, "word": "gold"},
        episodes=9,
        lr=1e-3,
        history_length=2,
        list_actions=True,
    )


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--noise 1.5", "--noise"),
        ("--episodes 0", "--episodes"),
        ("--steps 0", "--steps"),
        ("--eval.tasks -1", "--eval.tasks"),
        ("--env.eval_split nowhere", "nowhere"),
        ("--lr nan", "--lr"),
        ("--rollout.context book", "book"),
        ("--rollout.context transcript --rollout.history_length 2", "--rollout.history_length"),
        ("--hidden 64 --heads 4", "head size of 16"),
        ("--hidden 64 --heads 3", "head size"),
        ("--episode 3", "--episode"),
        ("--episodes many", "--episodes"),
        ("--device tpu", "tpu"),
        ("--env.options size", "key=value"),
        ("--env.options {size", "JSON"),
        ("--env.split nowhere", "nowhere"),
        ("--env.name nowhere", "nowhere"),
        ("--env.options nowhere=1", "nowhere"),
        ("--env.plugin nowhere.py", "nowhere.py"),
    ],
)
def test_bad_input_gives_one_sentence_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, words: str
) -> None:
    assert main(["--env.name", "vault", "--out", str(tmp_path / "m"), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith("gagpo: error: ")
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "m").exists()


def test_missing_flags_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "--env.name" in capsys.readouterr().err


def test_a_filled_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(WarmstartError, match="not an empty folder"):
        WarmstartSettings(env_name="vault", out=tmp_path).check()
    with pytest.raises(WarmstartError, match="not an empty folder"):
        WarmstartSettings(env_name="vault", out=tmp_path / "notes.txt").check()


def test_the_log_of_an_interrupted_attempt_does_not_fill_a_folder(tmp_path: Path) -> None:
    (tmp_path / LIBRARIES_LOG).write_text("a warning")
    WarmstartSettings(env_name="vault", out=tmp_path).check()


def test_a_folder_that_cannot_be_written_is_found_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "warm_start", lambda *_: pytest.fail("the work has begun"))
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "m"
    assert main(["--env.name", "vault", "--out", str(out)]) == 2
    assert (
        capsys.readouterr().err
        == f"gagpo: error: --out {out} cannot be written: Not a directory; name another folder.\n"
    )


SMALL = "--env.name vault --episodes 20 --steps 4 --hidden 32 --heads 1 --ffn 32"


def test_success_of_the_saved_model_is_printed_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL.split(), "--eval.tasks", "6", "--env.eval_split", "test", "--out", str(tmp_path / "m")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "playing 12 episodes in test with it (--eval.tasks 0 skips this)" in lines
    assert re.fullmatch(r"sampled success \d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\] on 6 tasks", lines[-2])
    assert re.fullmatch(r"greedy success \d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\] on 6 tasks", lines[-1])
    record = json.loads((tmp_path / "m" / "warmstart.json").read_text())
    assert [(one["kind"], one["tasks"], one["faulted"]) for one in record["success"]] == [
        ("sampled", 6, 0),
        ("greedy", 6, 0),
    ]


def test_an_interrupted_evaluation_leaves_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(success, "measure", interrupted)
    assert main([*SMALL.split(), "--out", str(tmp_path / "m")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "interrupted; the model is saved"
    assert (tmp_path / "m" / "model.safetensors").exists()
    monkeypatch.setattr(success, "measure", lambda *_: pytest.fail("it was to be skipped"))
    assert main([*SMALL.split(), "--eval.tasks", "0", "--out", str(tmp_path / "n")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"saved to {tmp_path / 'n'}"


def test_help_and_errors_import_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    program = (
        "import sys\n"
        "from openrlhf_gagpo.cli.warmstart import main\n"
        f"status = main(['--env.name', 'vault', '--env.split', 'nowhere', '--out', {str(tmp_path / 'm')!r}])\n"
        f"status += main(['--env.name', 'vault', '--out', {str(tmp_path)!r}])\n"
        "heavy = {'torch', 'transformers', 'tokenizers', 'ray', 'vllm'} & set(sys.modules)\n"
        "sys.exit(f'{status} {heavy}' if heavy or status != 4 else 0)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, capture_output=True)
    help_text = subprocess.run(
        [sys.executable, "-m", "openrlhf_gagpo.cli.warmstart", "--help"], check=True, capture_output=True, text=True
    ).stdout
    assert "--env.name" in help_text
    assert "(default: 1500)" in help_text
