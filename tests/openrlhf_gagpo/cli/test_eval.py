"""``gagpo eval``: what is played, what it states, and that nothing finished is played again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from openrlhf_gagpo import agents, policies
from openrlhf_gagpo.cli import eval as command
from openrlhf_gagpo.config.evaluating import EvaluationConfig, resolve
from openrlhf_gagpo.errors import ConfigError, EvaluationError, PolicyRefused, RunError
from openrlhf_gagpo.evaluation.store import EvaluationFolder
from support import tiny_vault
from support.evaluations import DOORS, evaluate, numbers, samples
from support.locked_doors import WORDS, door, knowing
from support.paths import REPOSITORY
from support.scripted_endpoint import Reply, chat, serve

VAULT = ("--env.name", "vault", "--env.split", "valid", "--env.workers", "1", "--eval.tasks", "6")
KEY = "sk-secret-0123456789"


def test_expert_and_random_play_the_same_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (*VAULT, "--eval.n_samples_per_prompt", "2")
    best = evaluate(tmp_path / "expert", *flags, "--policy", "expert")
    worst = evaluate(tmp_path / "random", *flags, "--policy", "random")
    assert best["numbers"]["success"]["mean"] == 1.0
    assert worst["numbers"]["success"]["mean"] == 0.0
    for found in (best["numbers"], worst["numbers"]):
        assert (found["tasks"], found["samples"], found["requests"]) == (6, 12, 0)
        assert (found["format_invalid_share"], found["inadmissible_share"]) == (0.0, 0.0)
    # Every task in the order of the split, and evenly spread over it.
    assert list(best["numbers"]["by_task"]) == [f"vault-valid-{n * 128 // 6}" for n in range(6)]
    starts = [
        {sample.identity: sample.episode.steps[0].observation for sample in samples(tmp_path / name)}
        for name in ("expert", "random")
    ]
    assert starts[0] == starts[1]
    assert best["settings"]["environment_sha256"] == worst["settings"]["environment_sha256"]
    assert best["settings"]["prompt_sha256"] == worst["settings"]["prompt_sha256"]
    capsys.readouterr()

    assert command.main(["--results", str(tmp_path / "expert"), str(tmp_path / "random")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| expert | direct | vault valid, 6 x 2 | 0.6 | 1.000 [0.610, 1.000] |")
    assert lines[2] in (tmp_path / "expert" / "result.md").read_text()

    again = [*flags, "--policy", "expert", "--against", str(tmp_path / "random")]
    evaluate(tmp_path / "expert", *again)
    said = capsys.readouterr().out
    assert "0 of 12 samples to play" in said
    assert "paired differences over 6 tasks" in said
    assert "success +1.000 [+1.000, +1.000]" in said
    assert "the two differ in policy" in said


def test_random_play_fills_the_blanks_of_actions() -> None:
    import asyncio
    from types import SimpleNamespace

    from openrlhf_gagpo.rollout.types import Prompt, SamplingParams

    entry = policies.get("random")
    source = entry.make(entry.options_cls(), policies.PolicySetting(False, True, "none", 64, 0))
    source.check(SimpleNamespace(placeholders=("<query>",)), "task")  # type: ignore[arg-type]
    session = SimpleNamespace(admissible_actions=("search[<query>]",), instruction="find a red cotton shirt")
    policy = source.seat(session)  # type: ignore[arg-type]
    answer = asyncio.run(policy.generate(Prompt([], "", []), SamplingParams(8, seed=3)))
    words = str(answer.text).removeprefix("<action>search[").removesuffix("]</action>").split()
    assert len(words) == 3
    assert set(words) <= set(session.instruction.split())


def test_an_endpoint_is_evaluated_with_tokens_and_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("currency: EUR\nmodels: {m: {input: 2.0, output: 10}}\n")
    with serve(knowing) as endpoint:
        flags = (*DOORS, "--policy.base_url", endpoint.url, "--rollout.concurrency", "2", "--prices", str(prices))
        found = numbers(tmp_path / "out", *flags, "--eval.temperature", "0")
    assert found["success"]["mean"] == 0.5
    assert found["requests"] == len(endpoint.bodies) == 3 * 1 + 3 * 2
    assert (found["prompt_tokens"], found["completion_tokens"]) == (90, 45)
    assert found["cost"] == {"currency": "EUR", "total": pytest.approx((90 * 2 + 45 * 10) / 1e6)}
    assert set(found["categories"]) == {"floor 0", "floor 1"}
    assert found["categories"]["floor 1"]["success"]["mean"] == 1.0
    assert endpoint.most_at_once <= 2
    assert "floor 1: success 1.000 [0.439, 1.000] on 3 tasks" in capsys.readouterr().out
    # Tasks are started in their order.
    order = list(dict.fromkeys(door(body) for body in endpoint.bodies))
    assert all(abs(at - place) <= 1 for place, at in enumerate(order))


def test_one_task_that_the_endpoint_cannot_answer_costs_itself_only(tmp_path: Path) -> None:
    def faulty(number: int, body: dict[str, Any]) -> Reply:
        return Reply('{"choices": []}') if door(body) == 2 else knowing(number, body)

    with serve(faulty) as endpoint:
        found = numbers(tmp_path / "out", *DOORS, "--policy.base_url", endpoint.url)
        url = endpoint.url
    assert found["faulted"] == {"environment": 0, "policy": 1}
    assert (found["tasks"], found["samples"], found["requests"]) == (5, 5, 2 + 3 * 1 + 2 * 2)
    (lost,) = [sample for sample in samples(tmp_path / "out") if sample.episode.faulted]
    assert "no choices; sent 2 times" in lost.episode.error

    # A fault is a finished sample, unless it is asked for again.
    plain = ("--policy.base_url", url)
    before = (tmp_path / "out" / "episodes.jsonl").read_bytes()
    assert numbers(tmp_path / "out", *DOORS, *plain)["samples"] == 5
    assert (tmp_path / "out" / "episodes.jsonl").read_bytes() == before


def test_faulted_samples_are_played_again_when_asked_for(tmp_path: Path) -> None:
    broken = True

    def healing(number: int, body: dict[str, Any]) -> Reply:
        return Reply("", 500) if broken and door(body) == 2 else knowing(number, body)

    with serve(healing) as endpoint:
        flags = (*DOORS, "--policy.base_url", endpoint.url)
        assert numbers(tmp_path / "out", *flags)["faulted"]["policy"] == 1
        broken, before = False, len(endpoint.bodies)
        found = numbers(tmp_path / "out", *flags, "--retry_faulted")
        assert {door(body) for body in endpoint.bodies[before:]} == {2}
    assert found["faulted"]["policy"] == 0
    assert found["tasks"] == len(WORDS)


def test_kill_and_resume_repeats_nothing(tmp_path: Path) -> None:
    """Killed without any warning, with a half-written line, and started again by the same command."""
    out, finished = tmp_path / "out", tmp_path / "out" / "episodes.jsonl"

    def slow(number: int, body: dict[str, Any]) -> Reply:
        reply = knowing(number, body)
        reply.delay = 0.15
        return reply

    with serve(slow) as endpoint:
        flags = [*DOORS, "--policy.base_url", endpoint.url, "--rollout.concurrency", "1"]
        words = ["eval", "--out", str(out), *flags]
        process = tiny_vault.start(words)
        deadline = time.monotonic() + 60
        while not (finished.exists() and finished.read_bytes().count(b"\n") >= 2):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.communicate()
        whole = finished.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        done = {json.loads(line)["trials"][0]["task"] for line in kept.splitlines()}
        assert 2 <= len(done) < len(WORDS)
        finished.write_bytes(kept + b'{"trials":[{"task":"door-')
        before = len(endpoint.bodies)
        found = numbers(out, *flags)
        later = {f"door-{door(body)}" for body in endpoint.bodies[before:]}
    assert not later & done
    assert finished.read_bytes().startswith(kept)
    assert len(finished.read_bytes().splitlines()) == len(WORDS)
    assert list(found["by_task"]) == [f"door-{number}" for number in range(len(WORDS))]
    assert found["success"]["mean"] == 0.5
    assert len(EvaluationFolder(out).protocol()["sessions"]) == 2


def test_ctrl_c_says_how_to_go_on(tmp_path: Path) -> None:
    with serve(lambda number, body: Reply(chat("x").body, delay=0.3)) as endpoint:
        words = ["eval", "--out", str(tmp_path / "out"), *DOORS, "--policy.base_url", endpoint.url]
        process = tiny_vault.start(words)
        deadline = time.monotonic() + 60
        while not endpoint.bodies:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert "the same command goes on" in output


def test_a_refusing_endpoint_ends_the_evaluation_at_once(tmp_path: Path) -> None:
    with serve(lambda number, body: Reply("no", 401)) as endpoint, pytest.raises(PolicyRefused, match="OPENAI_API_KEY"):
        evaluate(tmp_path / "out", *DOORS, "--policy.base_url", endpoint.url, "--rollout.concurrency", "1")
    assert len(endpoint.bodies) == 1
    assert samples(tmp_path / "out") == []


def test_a_dead_endpoint_ends_the_evaluation_after_a_few_samples(tmp_path: Path) -> None:
    flags = ("--policy.base_url", "http://127.0.0.1:9/v1", "--policy.retries", "0", "--rollout.concurrency", "2")
    with pytest.raises(RunError, match=r"no answer in 10 samples in a row.*--retry_faulted"):
        evaluate(tmp_path / "out", *DOORS, *flags, "--eval.n_samples_per_prompt", "5")
    assert 10 <= len(samples(tmp_path / "out")) < 14


def test_the_key_is_in_no_file_and_no_output(tmp_path: Path) -> None:
    def telling(number: int, body: dict[str, Any]) -> Reply:
        if door(body) == 0:
            return Reply(f"your key {KEY} is strange", 400)
        return chat(f"<think>{KEY}</think><action>say {KEY}</action>")

    with serve(telling) as endpoint:
        words = ["eval", "--out", str(tmp_path / "out"), *DOORS, "--policy.base_url", endpoint.url]
        process = tiny_vault.start(words, OPENAI_API_KEY=KEY)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    texts = [output, errors]
    texts += [path.read_text(encoding="utf-8") for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(texts) >= 7
    assert not any(KEY in text for text in texts)
    assert any("[key]" in text for text in texts)


def test_a_folder_keeps_one_evaluation(tmp_path: Path) -> None:
    flags = (*VAULT, "--policy", "random", "--eval.temperature", "0")
    evaluate(tmp_path / "out", *flags)
    with pytest.raises(EvaluationError, match=r"started with samples 1, not 2.*give another --out"):
        evaluate(tmp_path / "out", *flags, "--eval.n_samples_per_prompt", "2")
    # How the work is done may change.
    evaluate(tmp_path / "out", *flags, "--rollout.concurrency", "3")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(EvaluationError, match="holds other files"):
        evaluate(tmp_path / "other", *flags)
    folder = EvaluationFolder(tmp_path / "out")
    known = folder.protocol()["settings"]
    with (
        folder.claim(known, {}, ""),
        pytest.raises(EvaluationError, match="another process plays"),
        EvaluationFolder(tmp_path / "out").claim(known, {}, ""),
    ):
        pass


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    flags = (*VAULT, "--policy", "expert")
    evaluate(tmp_path / "out", *flags)
    file = tmp_path / "out" / "episodes.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([lines[0], b'{"trials": []}\n', *lines[2:]]))
    with pytest.raises(EvaluationError, match="damaged in line 2"):
        evaluate(tmp_path / "out", *flags)


def test_results_of_other_data_are_not_compared(tmp_path: Path) -> None:
    evaluate(tmp_path / "a", *VAULT, "--policy", "random")
    evaluate(tmp_path / "b", *VAULT, "--policy", "random", "--env.options", "size=4")
    with pytest.raises(EvaluationError, match="environment_sha256"):
        evaluate(tmp_path / "a", *VAULT, "--policy", "random", "--against", str(tmp_path / "b"))
    with pytest.raises(EvaluationError, match="is not an evaluation"):
        evaluate(tmp_path / "a", *VAULT, "--policy", "random", "--against", str(tmp_path))


def test_a_checkpoint_acts_as_in_the_training_backend(vault_model: Path, tmp_path: Path) -> None:
    """Greedy and sampled, with the environment and prompt settings of a recipe."""
    from openrlhf_gagpo.backends.local import LocalBackend
    from openrlhf_gagpo.config import resolve as training
    from openrlhf_gagpo.config.settings import backend_settings, sampling
    from openrlhf_gagpo.evaluation import evaluation_requests

    words = tiny_vault.arguments(vault_model, tmp_path / "run", eval__temperature=0.7, rollout__concurrency=8)
    config = training.resolve(words[1:])
    config.save(tmp_path / "recipe.yaml")
    given = ("--config", str(tmp_path / "recipe.yaml"), "--policy.model", str(vault_model), "--policy.threads", "1")
    result = evaluate(tmp_path / "out", *given, "--seed", "5", "--eval.n_samples_per_prompt", "2")
    assert result["settings"]["policy"] == "in_process"
    assert result["settings"]["policy_facts"]["weights"]

    backend = LocalBackend(backend_settings(config), config.namespace())
    backend.start()
    try:
        requests = evaluation_requests([f"vault-valid-{n}" for n in range(4)], 2, "", 5)
        episodes = backend.rollout(requests, sampling(config, evaluation=True), lambda episode: None)
    finally:
        backend.close()
    played = {sample.identity: sample.episode for sample in samples(tmp_path / "out")}
    for episode in episodes:
        other = played[episode.trajectory]
        assert [step.prompt_ids for step in other.steps] == [step.prompt_ids for step in episode.steps]
        assert [step.response_ids for step in other.steps] == [step.response_ids for step in episode.steps]
    steps = [step for episode in episodes for step in episode.steps]
    assert result["numbers"]["requests"] == len(steps)
    assert result["numbers"]["prompt_tokens"] == sum(len(step.prompt_ids) for step in steps)


PLUGIN = """
from openrlhf_gagpo import agents, policies
from openrlhf_gagpo.rollout.types import Completion


@policies.register("parrot")
class Parrot(policies.PolicySource):
    def seat(self, session):
        return self

    async def generate(self, prompt, params):
        return Completion([], [], "stop", "<think>x</think><action>" + prompt.messages[-1]["content"] + "</action>")


@agents.register("twice")
class Twice(agents.Agent):
    async def play(self, table):
        await table.ask([{"role": "user", "content": "ready?"}], "question")
        return [await table.play(), await table.play(trial=1)]
"""


def test_agents_and_policies_of_plugins(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PLUGIN)
    registered = agents.registry.snapshot(), policies.registry.snapshot()
    try:
        flags = ("--plugin", str(tmp_path / "own.py"), "--policy", "parrot", "--agent", "twice", "--eval.tasks", "2")
        found = numbers(tmp_path / "out", *VAULT, *flags)
    finally:
        agents.registry.restore(registered[0])
        policies.registry.restore(registered[1])
    assert found["requests"] == 2 * (1 + 2 * 14)
    assert found["inadmissible_share"] == 1.0
    assert all(len(sample.trials) == 2 for sample in samples(tmp_path / "out"))


def test_what_the_page_shows_works(tmp_path: Path) -> None:
    """The example of an agent, and that of a file of prices."""
    from openrlhf_gagpo.evaluation.prices import read_price

    page = (REPOSITORY / "docs" / "evaluation.md").read_text(encoding="utf-8")
    for kind, name in (("python", "own.py"), ("yaml", "prices.yaml")):
        (tmp_path / name).write_text(page.split(f"```{kind}\n")[1].split("```")[0])
    assert read_price(tmp_path / "prices.yaml", "some-model").cached_input == 1.25
    registered = agents.registry.snapshot()
    try:
        flags = (
            "--plugin",
            str(tmp_path / "own.py"),
            "--policy",
            "random",
            "--agent",
            "second_try",
            "--eval.tasks",
            "2",
        )
        with pytest.raises(ConfigError, match="needs a policy that reads its prompt"):
            resolve(["--out", "x", *VAULT, *flags])
        with serve(knowing) as endpoint:
            flags = ("--plugin", str(tmp_path / "own.py"), "--policy.base_url", endpoint.url, "--agent", "second_try")
            found = numbers(tmp_path / "out", *DOORS, *flags)
    finally:
        agents.registry.restore(registered)
    assert found["success_by_trial"] == [0.5, 0.5]
    assert found["requests"] == 3 * 1 + 3 * 4


def test_an_environment_without_an_expert_is_one_sentence(tmp_path: Path) -> None:
    flags = [word for word in DOORS if not word.startswith("--policy")]
    with pytest.raises(ConfigError, match="locked-doors has no expert"):
        evaluate(tmp_path / "out", *flags[:8], "--policy", "expert")


BAD = {
    "nothing plays": (["--env.name", "vault", "--env.split", "valid"], "nothing says what plays"),
    "no environment": (["--policy", "expert", "--env.split", "valid"], "no environment is given"),
    "no split": (["--policy", "expert", "--env.name", "vault"], "no split is given"),
    "unknown split": (["--policy", "expert", *VAULT, "--env.split", "dev"], "has no split 'dev'"),
    "unknown policy": (["--policy", "oracle", *VAULT], "--policy must be one of"),
    "unknown agent": (["--policy", "expert", *VAULT, "--agent", "cot"], "--agent must be one of"),
    "an agent without a reader": (["--policy", "expert", *VAULT, "--agent", "react"], "needs a policy that reads"),
    "an agent without thoughts": (
        ["--policy.model", "m", "--policy.base_url", "http://h/v1", *VAULT, "--agent", "react", "--rollout.no_think"],
        "keep rollout.think",
    ),
    "an option of another policy": (
        ["--policy", "expert", *VAULT, "--policy.model", "m"], "is not an option of expert"),
    "an option of another agent": (["--policy", "expert", *VAULT, "--agent.trials", "2"], "is not an option of direct"),
    "a misspelt flag": (["--policy", "expert", *VAULT, "--env.plugins", "x"], "did you mean --env.plugin"),
    "a missing model": (["--policy.model", "/nowhere/model", *VAULT], "no tokenizer can be loaded"),
    "no model": (["--policy", "in_process", *VAULT], "no model is given"),
    "prices without the model": (["--policy", "expert", *VAULT, "--prices", "/dev/null"], "has no price of"),
    "no room for a prompt": (["--policy", "expert", *VAULT, "--data.max_len", "512"], "no room for the prompt"),
    "another command's folder": (["--config", str(REPOSITORY)], "is not a run folder"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openrlhf_gagpo.errors import GagpoError

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    flags, words = BAD[name]
    with pytest.raises(GagpoError) as caught:
        command.main(["--out", str(tmp_path / "out"), *flags])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_model_and_the_settings_of_a_run_are_taken_over(tmp_path: Path) -> None:
    from openrlhf_gagpo.config import resolve as training
    from openrlhf_gagpo.runfolder import RunFolder

    words = tiny_vault.arguments("start", tmp_path / "run")
    run = RunFolder.create(tmp_path / "run", training.resolve(words[1:]).to_dict(), "")
    with pytest.raises(ConfigError, match="nothing says what plays"):
        resolve(["--out", "x", "--config", str(run.path)])
    run.model_dir.mkdir()
    config = resolve(["--out", "x", "--config", str(run.path), "--eval.temperature", "0", "--rollout.list_actions"])
    assert isinstance(config, EvaluationConfig)
    assert config.policy.name == "in_process"
    assert config.policy_options.model == str(run.model_dir)  # type: ignore[attr-defined]
    assert (config.split, config.samples, config.sampling.temperature) == ("valid", 1, 0.0)
    assert config.sampling.max_new_tokens == 6
    assert config.rollout.env_options["keys"] == 1
    assert config.rollout.env_options["max_steps"] == 10
    assert (config.rollout.think, config.rollout.list_actions, config.rollout.chat_template) == (False, True, "none")
    # Options belong to one environment.
    other = resolve(["--out", "x", "--config", str(run.path), "--env.name", "webshop", "--policy", "random"])
    assert isinstance(other, EvaluationConfig)
    assert "keys" not in other.rollout.env_options


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "ray", "vllm", "matplotlib", "httpx", "scipy", "jinja2", "asyncio"]
    code = (
        "import sys\nfrom openrlhf_gagpo.cli.main import main\n"
        "try:\n    main(['eval', '--help'])\nexcept SystemExit:\n    pass\n"
        f"sys.stderr.write(str([name for name in {heavy!r} if name in sys.modules]))"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stderr == "[]"
    for name in (*policies.names(), *agents.names()):
        assert name in done.stdout
