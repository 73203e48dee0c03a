"""What a run is told about itself: every rule on both sides of its threshold, recorded runs, and a run that fails."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from agent_envs import make, registry
from openrlhf_gagpo.cli.main import main
from openrlhf_gagpo.cli.show import main as show
from openrlhf_gagpo.config.flags import all_flags
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import loop_settings
from openrlhf_gagpo.credit import LoneStates
from openrlhf_gagpo.metrics import is_documented
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.stats import wilson_interval
from openrlhf_gagpo.training.regime import Facts, History, Watch, advise
from openrlhf_gagpo.warmstart.pipeline import warm_start
from openrlhf_gagpo.warmstart.settings import WarmstartSettings
from support import tiny_vault
from support.paths import DATA, REPOSITORY

_CALCULATOR = REPOSITORY / "tests/support/calculator.py"

FACTS = Facts(
    estimator="mine",
    lone_states=LoneStates("", "--algo.advantage.broadcast_coef 1"),
    compares=True,
    penalises=True,
    group_size=8,
    stateless=("grpo", "rloo"),
)
SOUND = {
    "rollout/success": 0.4,
    "rollout/episodes": 64,
    "rollout/steps": 640,
    "rollout/faulted_episodes": 0,
    "rollout/prompts_too_long": 0,
    "rollout/truncated_share": 0.6,
    "rollout/format_invalid_share": 0.0,
    "rollout/inadmissible_share": 0.05,
    "rollout/length_capped_share": 0.0,
    "rollout/equal_return_group_share": 0.25,
    "rollout/unknown_token_share": 0.0,
    "credit/singleton_share": 0.1,
    "credit/lone_start_share": 0.0,
    "credit/rejoined_share": 0.5,
    "credit/degenerate_group_share": 0.25,
    "credit/reward_free_group_share": 0.125,
    "credit/penalty_only_group_share": 0.0,
    "credit/rows_dropped": 0,
    "policy/rows_trained": 640,
    "policy/lr": 5e-4,
    "policy/entropy": 0.2,
    "policy/grad_norm": 0.3,
    "critic/explained_variance": 0.4,
}


def rows(*changes: Mapping[str, float | None]) -> list[dict[str, object]]:
    return [{"iteration": number, **SOUND, **change} for number, change in enumerate(changes, 1)]


def kinds(*changes: Mapping[str, float | None], facts: Facts = FACTS) -> list[str]:
    return [advice.kind for advice in advise(History.of(rows(*changes)), facts)]


def said(*changes: Mapping[str, float | None], facts: Facts = FACTS) -> str:
    (advice,) = advise(History.of(rows(*changes)), facts)
    return advice.text


def alone(**changes: object) -> Facts:
    return Facts(**{**{name: getattr(FACTS, name) for name in FACTS.__dataclass_fields__}, **changes})  # type: ignore[arg-type]


def test_the_rules_read_documented_metrics_and_find_nothing_in_a_sound_run() -> None:
    assert all(is_documented(name) for name in SOUND)
    assert kinds(*[{}] * 12) == []
    assert advise(History.of([]), FACTS) == []


LONE = {"credit/singleton_share": 0.97, "credit/rejoined_share": 0.02}
PAST = {"credit/singleton_share": 0.7, "credit/rejoined_share": 0.005}
FAIL = {"rollout/equal_return_group_share": 1.0, "rollout/success": 0.0}
DROPPED = {"policy/rows_trained": 0, "credit/rows_dropped": 640, "credit/reward_free_group_share": 1.0}


@pytest.mark.parametrize(
    ("kind", "found", "not_found"),
    [
        ("no_update_reward_free", [DROPPED], [{**DROPPED, "policy/rows_trained": 1}]),
        (
            "no_update_estimator",
            [{**DROPPED, "credit/reward_free_group_share": 0.5}],
            [{**DROPPED, "policy/rows_trained": 1}],
        ),
        ("malformed", [{"rollout/format_invalid_share": 0.9}] * 3, [{"rollout/format_invalid_share": 0.89}] * 3),
        ("malformed", [{"rollout/format_invalid_share": 1.0}] * 3, [{"rollout/format_invalid_share": 1.0}] * 2),
        ("inadmissible", [{"rollout/inadmissible_share": 0.9}] * 3, [{"rollout/inadmissible_share": 0.89}] * 3),
        ("unknown_tokens", [{"rollout/unknown_token_share": 0.01}], [{"rollout/unknown_token_share": 0.009}]),
        ("faults", [{"rollout/faulted_episodes": 16}], [{"rollout/faulted_episodes": 15}]),
        ("prompts_too_long", [{"rollout/prompts_too_long": 16}], [{"rollout/prompts_too_long": 15}]),
        ("all_fail", [FAIL] * 3, [{**FAIL, "rollout/equal_return_group_share": 0.94}] * 3),
        ("all_fail", [FAIL] * 3, [FAIL] * 2),
        ("all_succeed", [{**FAIL, "rollout/success": 1.0}] * 3, [{**FAIL, "rollout/success": 0.9}] * 3),
        ("equal_returns", [{**FAIL, "rollout/success": 0.5}] * 3, [{**FAIL, "rollout/success": 1.0}] * 3),
        ("distinct_states", [LONE] * 3, [{**LONE, "credit/singleton_share": 0.94}] * 3),
        ("history_keys", [PAST] * 3, [{**PAST, "credit/rejoined_share": 0.02}] * 3),
        ("history_keys", [PAST] * 3, [{**PAST, "credit/singleton_share": 0.59}] * 3),
        (
            "penalty_only",
            [{"credit/penalty_only_group_share": 0.375}] * 3,
            [{"credit/penalty_only_group_share": 0.374}] * 3,
        ),
        ("not_finite", [{"policy/grad_norm": None}], [{"policy/grad_norm": 1e6}]),
        ("blind_critic", [{"critic/explained_variance": 0.02}] * 8, [{"critic/explained_variance": 0.03}] * 8),
        ("collapse", [{"rollout/success": 0.2}] * 3 + [{"rollout/success": 0.02}] * 3, [{}] * 6),
        ("collapse", [{}] * 3 + [{"rollout/success": 0.1}] * 3, [{}] * 3 + [{"rollout/success": 0.28}] * 3),
    ],
)
def test_both_sides_of_a_threshold(
    kind: str, found: list[Mapping[str, float]], not_found: list[Mapping[str, float]]
) -> None:
    assert kind in kinds(*found)
    assert kind not in kinds(*not_found)


def test_an_iteration_without_update_says_why() -> None:
    empty = {name: None for name in SOUND if name.startswith(("credit/", "policy/"))}
    nothing = {key: value for key, value in rows({})[0].items() if key not in empty}

    def why(**changes: float) -> str:
        row = nothing | {name.replace("__", "/"): value for name, value in changes.items()}
        return next(a.text for a in advise(History.of([row]), FACTS) if a.kind.startswith("no_update"))

    assert "the filter kept none of 32 groups" in why(rollout__groups_drawn=32, rollout__groups_kept=0)
    assert "60 faulted, 0 without room, of 64" in why(rollout__faulted_episodes=60)
    warming = alone(critic_warmup=2)
    assert "critic alone" in said({"policy/rows_trained": 0}, facts=warming)
    assert kinds({}, {}, {"policy/rows_trained": 640}, facts=warming) == []


def test_what_lone_states_mean_depends_on_the_estimator() -> None:
    assert kinds(*[LONE] * 3, facts=alone(lone_states=None)) == []
    assert kinds(*[PAST] * 3, facts=alone(lone_states=None)) == []
    text = said(*[{**LONE, "credit/lone_start_share": 1.0}] * 3)
    assert "97% of the steps" in text
    assert "even first states differ" in text
    assert "set --algo.advantage.broadcast_coef 1" in text
    assert "--algo.advantage.estimator grpo or rloo" in text
    part = alone(lone_states=LoneStates("the episode's advantage"))
    assert "only the episode's advantage is left" in said(*[LONE] * 3, facts=part)
    # A state that contains the past is shared at the start, and one kind of advice is enough.
    assert kinds(*[{**LONE, "credit/rejoined_share": 0.0}] * 3) == ["history_keys"]
    assert kinds(*[{**LONE, "credit/rejoined_share": 0.0, "credit/lone_start_share": 1.0}] * 3) == ["distinct_states"]


def test_penalties_are_harmless_where_there_are_none() -> None:
    loud = [{"credit/penalty_only_group_share": 1.0, "credit/degenerate_group_share": 0.0}] * 3
    assert kinds(*loud) == ["penalty_only"]
    assert kinds(*loud, facts=alone(penalises=False)) == []
    assert kinds(*loud, facts=alone(compares=False)) == []


def test_the_remedy_fits_what_was_seen() -> None:
    assert "--env.max_steps" in said(*[{**FAIL, "rollout/truncated_share": 1.0}] * 3)
    assert "--env.max_steps" not in said(*[FAIL] * 3)
    capped = {"rollout/format_invalid_share": 1.0, "rollout/length_capped_share": 0.8}
    assert "--rollout.max_new_tokens, which 80% reach" in said(*[capped] * 3)
    assert "now 0.0005" in said(*[{}] * 3, *[{"rollout/success": 0.0}] * 3)
    assert "entropy 0.2 at first, 3 now" in said(*[{}] * 3, *[{"rollout/success": 0.0, "policy/entropy": 3.0}] * 3)


@pytest.mark.parametrize(("after", "collapsed"), [(20, True), (60, True), (75, False), (128, False)])
def test_an_evaluation_that_fell(after: int, collapsed: bool) -> None:
    def evaluated(iteration: int, successes: int, split: str = "valid") -> dict[str, object]:
        low, high = wilson_interval(successes, 256)
        return {
            "iteration": iteration,
            "split": split,
            "eval/success": successes / 256,
            "eval/success_low": low,
            "eval/success_high": high,
        }

    history = History.of(rows({}), [evaluated(0, 40), evaluated(4, 110), evaluated(8, after)])
    assert [advice.kind for advice in advise(history, FACTS)] == ["collapse"] * collapsed
    # Another split may just be harder.
    other = History.of(rows({}), [evaluated(0, 40), evaluated(4, 110), evaluated(8, after, "test")])
    assert advise(other, FACTS) == []


def _recorded() -> list[Path]:
    return sorted(path.parent for path in REPOSITORY.glob("results/*/*/metrics.jsonl") if "study" not in path.parts)


def _kinds(path: Path) -> set[str]:
    """All kinds of advice that a recorded run gets in its course."""
    run = RunFolder.open(path)
    settings = loop_settings(resolve(["--config", str(run.config_path)]), ["a"], [])
    evals = [row for row in run.evals() if row["split"] == run.evals()[0]["split"]]
    metrics = run.metrics()
    histories = (
        History.of(metrics[:played], [row for row in evals if row["iteration"] <= played])
        for played in range(1, len(metrics) + 1)
    )
    return {advice.kind for history in histories for advice in advise(history, Facts.of(settings))}


def test_recorded_runs_get_advice_only_where_something_is_wrong() -> None:
    found = {path: _kinds(path) for path in _recorded()}
    blind = {path for path in found if path.name.startswith("constant")}
    assert len(found) - len(blind) >= 7
    for path, kinds in found.items():
        warmup = {"critic_warmup"} if path.parent.name == "vault_ppo" else set()
        # One whose episodes all succeed is told so.
        learned = {"all_succeed"} if _ever_perfect(path) else set()
        # A constant critic predicts nothing, and some of those runs collapse.
        expected = warmup | {"blind_critic"} if path in blind else warmup
        assert kinds - {"collapse" if path in blind else ""} - learned == expected, path


def _ever_perfect(path: Path) -> bool:
    return any(row["rollout/success"] == 1.0 for row in RunFolder.open(path).metrics())


class _Silent:
    def phase(self, *_: object) -> None: ...

    episode = iteration = evaluation = phase


def test_each_kind_is_said_once_and_again_after_going_back(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {}, "")
    heard: list[str] = []

    def iterate(iteration: int) -> None:
        run.append_metrics(iteration, SOUND | {"rollout/unknown_token_share": 0.5, "policy/grad_norm": math.nan})
        # A watch has no memory: a resumed run gets a new one.
        Watch(_Silent(), run, FACTS, heard.append).iteration(iteration, {})

    iterate(1)
    iterate(2)
    assert [(row["iteration"], row["kind"]) for row in run.advice()] == [(1, "unknown_tokens"), (1, "not_finite")]
    assert len(heard) == 2
    assert heard[0].startswith("advice: 50% of the prompts")
    run.resume(0)
    assert run.advice() == []
    iterate(1)
    assert len(run.advice()) == 2


def test_facts_come_from_the_settings() -> None:
    def facts(*flags: str) -> Facts:
        return Facts.of(loop_settings(resolve(["--env.name", "vault", *flags]), ["a"], []))

    assert facts("--algo.advantage.estimator", "gagpo").lone_states == LoneStates(
        "", "--algo.advantage.broadcast_coef 1"
    )
    assert facts("--algo.advantage.estimator", "grpo").lone_states is None
    assert not facts("--algo.advantage.estimator", "gae").compares
    assert facts("--algo.advantage.invalid_penalty", "0.1").penalises
    assert not facts("--algo.advantage.invalid_penalty", "0").penalises
    assert {"grpo", "rloo"} <= set(facts().stateless)
    assert not {"gagpo", "gigpo", "gae"} & set(facts().stateless)


def test_a_clone_too_weak_for_the_calculator_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real run of which no episode ever succeeds."""
    registry.load_plugin(str(_CALCULATOR))
    model, run = tmp_path / "model", tmp_path / "run"
    settings = WarmstartSettings(
        "calculator",
        model,
        episodes=40,
        noise=1.0,
        hidden=32,
        heads=1,
        ffn=64,
        max_positions=128,
        steps=30,
        device="cpu",
    )
    warm_start(settings, make("calculator"), lambda line: None)
    flags = {
        "env__name": "calculator",
        "env__plugin": _CALCULATOR,
        "env__options": "{}",
        "env__max_steps": 3,
        "train__num_iterations": 4,
        "algo__advantage__drop_reward_free_groups": True,
        "algo__advantage__inadmissible_penalty": 0.0,
        "eval__steps": -1,
        "eval__after_train": False,
        "ckpt__save_steps": -1,
    }
    assert main(tiny_vault.arguments(model, run, **flags)) == 0
    out = capsys.readouterr().out
    folder = RunFolder.open(run)
    assert [(row["iteration"], row["kind"]) for row in folder.advice()] == [
        (1, "no_update_reward_free"),
        (3, "all_fail"),
    ]
    weak = folder.advice()[1]["text"]
    assert "100% of the groups of the last 3 iterations" in weak
    assert "gagpo warmstart" in weak
    assert "--env.max_steps, which nearly every episode reached" in weak
    assert out.count(f"advice: {weak}\n") == 1
    assert out.count(f"advice since iteration 3: {weak}\n") == 1
    assert html.escape(weak) in folder.report_path.read_text(encoding="utf-8")
    assert show([str(run)]) == 0
    assert " ".join(weak.split()) in " ".join(capsys.readouterr().out.split())


def test_advice_names_flags_that_exist() -> None:
    sources = [
        *(REPOSITORY / "openrlhf_gagpo/training/regime").glob("*.py"),
        *(REPOSITORY / "openrlhf_gagpo/credit/estimators").glob("*.py"),
    ]
    named = {word for path in sources for word in re.findall(r"--([a-z_]+(?:\.[a-z_0-9]+)+)", path.read_text())}
    assert {"actor.adam.lr", "algo.advantage.broadcast_coef"} <= named
    assert named <= set(all_flags())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vault_demo", []),
        ("history_keys", [(3, "history_keys"), (8, "collapse"), (16, "no_update_reward_free")]),
    ],
)
def test_runs_recorded_with_all_metrics(name: str, expected: list[tuple[int, str]]) -> None:
    """The demo's recipe, and GAGPO on a vault whose states contain the past, which took success from 0.17 to 0.02."""
    logged = [json.loads(line) for line in (DATA / "regime" / f"{name}.jsonl").read_text().splitlines()]
    metrics = [row for row in logged if "split" not in row]
    found: dict[str, int] = {}
    for played in range(1, len(metrics) + 1):
        evals = [row for row in logged if "split" in row and row["iteration"] <= played]
        for advice in advise(History.of(metrics[:played], evals), alone(penalises=False)):
            found.setdefault(advice.kind, played)
    assert [(iteration, kind) for kind, iteration in found.items()] == expected
