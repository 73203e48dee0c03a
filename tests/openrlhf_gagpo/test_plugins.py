"""Estimators and losses from outside."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from openrlhf_gagpo import credit, losses
from openrlhf_gagpo.config.families import families
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import objective_settings
from openrlhf_gagpo.errors import ConfigError, PluginError
from openrlhf_gagpo.plugins import load_algo_plugin
from openrlhf_gagpo.training.objective import LossScale, step_loss
from support.objectives import actions, objective
from support.paths import REPOSITORY

EXAMPLES = REPOSITORY / "examples" / "plugins"
ESTIMATOR, LOSS = str(EXAMPLES / "surprising_tokens.py"), str(EXAMPLES / "plain_gradient.py")


def plugin(folder: Path, text: str) -> str:
    path = folder / "plugin.py"
    path.write_text(text)
    return str(path)


def test_a_plugin_brings_names_options_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--algo.plugin", ESTIMATOR, "--algo.plugin", LOSS]
    config = resolve(
        [*flags, "--algo.advantage.estimator", "surprising_tokens", "--algo.advantage.sharpness", "2",
         "--actor.policy_loss_type", "plain_gradient", "--actor.max_log_ratio", "0.5"]
    )  # fmt: skip
    assert config.options(families()[0]).sharpness == 2
    settings = objective_settings(config)
    assert settings.plugins == (ESTIMATOR, LOSS)
    assert settings.build().options.max_log_ratio == 0.5
    assert config.origin("algo.kl.init_coef") == "estimator surprising_tokens"
    with pytest.raises(SystemExit):
        resolve([*flags, "--help"])
    page = capsys.readouterr().out
    assert "--algo.advantage.sharpness" in page
    assert "[plain_gradient]" in page
    with pytest.raises(ConfigError, match="max_log_ratio is not an option of ppo"):
        resolve([*flags, "--actor.policy_loss_type", "ppo", "--actor.max_log_ratio", "1"])
    with pytest.raises(ConfigError, match=r"--algo\.advantage\.sharpness is 11\.0; it must be between 0 and 10"):
        resolve([*flags, "--algo.advantage.sharpness", "11"])


def test_a_recipe_names_plugins_too(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"algo: {{plugin: [{ESTIMATOR}], advantage: {{estimator: surprising_tokens, sharpness: 3}}}}\n")
    config = resolve(["--config", str(recipe)])
    assert config.options(families()[0]).sharpness == 3
    saved = tmp_path / "config.yaml"
    config.save(saved)
    assert resolve(["--config", str(saved)]).options(families()[0]).sharpness == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 / 0", "failed on import: ZeroDivisionError"),
        ("x = 1", "registers no estimator and no policy loss"),
        (
            "from openrlhf_gagpo.credit import EstimatorOptions, register\n"
            "register('half', EstimatorOptions)(lambda batch, options: None)\nraise KeyError('late')",
            "failed on import: KeyError",
        ),
        (
            "from openrlhf_gagpo.losses import LossOptions, register\n"
            "register('ppo', LossOptions, token_advantages=True)(lambda batch, options: None)",
            "'ppo' exists already",
        ),
    ],
)
def test_a_broken_plugin_is_one_sentence_and_leaves_nothing(tmp_path: Path, text: str, words: str) -> None:
    before = credit.names(), losses.names()
    with pytest.raises(PluginError, match=words) as stop:
        load_algo_plugin(plugin(tmp_path, text))
    assert "\n" not in str(stop.value)
    assert (credit.names(), losses.names()) == before


def test_a_plugin_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"there is no plugin file .*gone\.py"):
        load_algo_plugin(str(tmp_path / "gone.py"))
    with pytest.raises(PluginError, match="ModuleNotFoundError"):
        load_algo_plugin("no.such.module")


def test_loading_twice_does_nothing() -> None:
    load_algo_plugin(ESTIMATOR)
    load_algo_plugin(ESTIMATOR)
    assert "surprising_tokens" in credit.names()


LOSS_WITH = (
    "from dataclasses import dataclass\n"
    "from openrlhf_gagpo.losses import LossOptions, register\n"
    "from openrlhf_gagpo.options import declare\n"
    "@dataclass(frozen=True)\nclass Options(LossOptions):\n    {}\n"
    "register('other', Options, token_advantages=True)(lambda batch, options: None)\n"
)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("max_norm: float = declare(1.0, 'text')", "would be the flag --actor.max_norm of the run"),
        ("loss_agg_mode: str = declare('sum', 'text', choices=('sum', 'max'))", "described differently"),
        ("width: int | str = declare(1, 'text')", "which a flag cannot hold"),
    ],
)
def test_options_that_cannot_be_flags_are_refused(tmp_path: Path, option: str, words: str) -> None:
    with pytest.raises(PluginError, match=words) as stop:
        resolve(["--algo.plugin", plugin(tmp_path, LOSS_WITH.format(option))])
    assert "\n" not in str(stop.value)


def test_a_module_or_file_without_anything_is_refused_every_time(tmp_path: Path) -> None:
    empty = plugin(tmp_path, "x = 1")
    for source in (empty, empty, "json"):
        with pytest.raises(PluginError, match="registers no estimator and no policy loss"):
            load_algo_plugin(source)
    with pytest.raises(PluginError, match="SystemExit"):
        load_algo_plugin(plugin(tmp_path, "raise SystemExit(3)"))


def test_a_plugin_without_postponed_annotations_may_share_options(tmp_path: Path) -> None:
    source = plugin(
        tmp_path,
        "from dataclasses import dataclass\n"
        "from openrlhf_gagpo.credit import EstimatorOptions, option, register\n"
        "@dataclass(frozen=True)\nclass Options(EstimatorOptions):\n    gamma: float = option('gamma', 0.9)\n"
        "register('plain', Options)(lambda batch, options: None)\n",
    )
    load_algo_plugin(source)
    assert "plain" in credit.names()


def test_two_meanings_of_one_option_are_refused(tmp_path: Path) -> None:
    other = plugin(
        tmp_path,
        "from dataclasses import dataclass\n"
        "from openrlhf_gagpo.losses import LossOptions, register\n"
        "from openrlhf_gagpo.options import declare\n"
        "@dataclass(frozen=True)\nclass Options(LossOptions):\n    dual_clip: str = declare('x', 'text')\n"
        "register('other', Options, token_advantages=True)(lambda batch, options: None)\n",
    )
    with pytest.raises(PluginError, match="option dual_clip of"):
        resolve(["--algo.plugin", other])


def test_the_example_estimator_spreads_an_episodes_advantage() -> None:
    load_algo_plugin(ESTIMATOR)
    batch = credit.StepBatch.from_columns(
        group=["g", "g"], traj=["a", "b"], step=[0, 0], state=["s", "s"], next_state=["e", "e"], reward=[1.0, 0.0],
        terminated=[True, True], truncated=[False, False], n_tokens=[2, 1], log_prob=[-1.0, -3.0, -5.0],
    )  # fmt: skip
    entry = credit.get("surprising_tokens")
    result = entry(batch, entry.options_cls(sharpness=0.5))
    assert result.advantage.tolist() == [0.5, -0.5]
    assert result.token_advantage is not None
    assert result.token_advantage.tolist() == [0.25, 0.75, -0.5]


def test_the_example_loss_is_the_plain_gradient() -> None:
    load_algo_plugin(LOSS)
    new = torch.tensor([[-1.0, -2.0], [-0.5, 9.0]], requires_grad=True)
    old = torch.tensor([[-1.5, -6.0], [-0.5, 9.0]])
    given = actions(old, torch.tensor([2.0, -1.0]), torch.tensor([[1, 1], [1, 0]]))
    loss, sums = step_loss(new, None, given, LossScale(2, 3), objective("plain_gradient"))
    (gradient,) = torch.autograd.grad(loss, new)
    # The second token moved by 4, further than counts.
    torch.testing.assert_close(gradient, torch.tensor([[-2 / 3, 0.0], [1 / 3, 0.0]]))
    assert float(sums["clip"]) == 1
