"""Precedence, origins and recipes."""

from __future__ import annotations

import pickle

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo import losses, machine
from openrlhf_gagpo.config.families import families
from openrlhf_gagpo.config.flag import Disposition, negation
from openrlhf_gagpo.config.flags import all_flags
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.credit import registry
from openrlhf_gagpo.errors import ConfigError
from support.paths import REPOSITORY

RECIPES = REPOSITORY / "examples" / "recipes"


@pytest.fixture
def recipe(tmp_path):
    def write(text: str, name: str = "recipe.yaml") -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def fails(argv: list[str], *parts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(argv)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_each_layer_overrides_the_one_before(recipe):
    name = "algo.advantage.lambd"
    base = recipe("algo: {advantage: {lambd: 0.5}}\nrollout.batch_size: 4\n", "base.yaml")
    child = recipe("base: base.yaml\nalgo.advantage.lambd: 0.6\n", "child.yaml")
    preset = resolve([])
    assert (preset.get(name), preset.origin(name)) == (0.8, "estimator gagpo")
    config = resolve(["--config", child])
    assert (config.get(name), config.origin(name)) == (0.6, child)
    assert (config.rollout.batch_size, config.origin("rollout.batch_size")) == (4, base)
    config = resolve(["--config", child, f"--{name}", "0.7"])
    assert (config.get(name), config.origin(name)) == (0.7, "command line")
    assert config.options(families()[0]).lambd == 0.7
    assert (config.rollout.temperature, config.origin("rollout.temperature")) == (1.0, "default")


def test_sections_and_get_are_the_same_value_and_survive_pickling():
    config = resolve(["--env.name", "vault"])
    assert config.algo.kl.init_coef == config.get("algo.kl.init_coef") == 0.01
    assert config.env.options == {}
    with pytest.raises(AttributeError):
        _ = config.no_such_section
    with pytest.raises(KeyError):
        config.get("no.such")
    copy = pickle.loads(pickle.dumps(config))
    assert copy.to_dict() == config.to_dict()
    assert copy.actor.eps_clip == 0.2


def test_namespace_is_complete_and_independent():
    config = resolve([])
    args = config.namespace()
    assert args.critic.model_name_or_path is None
    assert args.reward.clip_range == [-10, 10]
    args.actor.eps_clip = 9
    args.env.options["x"] = 1
    assert config.actor.eps_clip == 0.2
    assert config.env.options == {}
    assert resolve([]).env.options == {}


def test_booleans_have_one_rule():
    assert negation("a.b") == "a.no_b"
    assert negation("a.no_b") == "a.b"
    assert negation("report") == "no_report"
    config = resolve(["--no_report", "--rollout.no_think", "--ds.overlap_comm", "--ds.no_overlap_comm"])
    assert not config.report
    assert not config.rollout.think
    assert not config.ds.overlap_comm
    assert resolve(["--actor.muon.no_nesterov"]).actor.muon.nesterov is False
    fails(["--report=true"], "--report", "takes no value", "--no_report")


def test_no_flag_is_the_negation_of_another():
    flags = all_flags()
    assert not {negation(flag.name) for flag in flags.values() if flag.kind is bool} & set(flags)


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--rollout.batchsize", "3"], ["--rollout.batchsize is not a flag", "--rollout.batch_size"]),
        (["--rollout.batch", "3"], ["--rollout.batch is not a flag"]),
        (["--adam.lr", "3"], ["--actor.adam.lr"]),
        (["--qqqq"], ["--qqqq is not a flag", "--help"]),
        (["stray"], ["'stray'"]),
        (["--config", "a.yaml", "--config", "b.yaml"], ["--config is given 2 times", "base: FILE"]),
        (["--train.seed", "-1"], ["--train.seed is -1; it must be from 0 to 2^32 - 1"]),
        (["--actor.adam.betas", "0.9", "1"], ["--actor.adam.betas is 1.0", "from 0 to below 1"]),
        (["--train.seed", "abc"], ["--train.seed wants a whole number, not 'abc'"]),
        (["--train.seed", "1.5"], ["--train.seed wants a whole number"]),
        (["--actor.adam.lr", "nan"], ["--actor.adam.lr wants a number"]),
        (["--train.seed"], ["--train.seed", "expected one argument"]),
        (["--actor.adam.betas", "0.9"], ["--actor.adam.betas", "2"]),
        (["--backend", "remote"], ["--backend must be one of distributed, local, not 'remote'"]),
        (["--algo.advantage.estimator", "gea"], ["must be one of", "gae"]),
        (["--algo.advantage.gamma", "3"], ["algo.advantage.gamma", "between 0 and 1"]),
        (["--env.options", "size"], ["--env.options", "key=value"]),
        (["--env.options", "{bad"], ["--env.options is not valid JSON"]),
        (["--critic.max_norm", "2"], ["--critic.max_norm is not an option of gagpo", "belongs to gae"]),
        (["--train.colocate_critic_reward"], ["--train.colocate_critic_reward is not supported", "no reward model"]),
        (["--train.async_enable"], ["--train.async_enable is not supported"]),
        (["--data.prompt_dataset", "x"], ["not supported", "--env.name"]),
        (["--ds.load_in_4bit"], ["not supported", "--ds.lora.rank"]),
    ],
)
def test_bad_command_lines_give_one_sentence(argv, parts):
    fails(argv, *parts)


def test_a_refused_flag_at_its_default_passes():
    resolve(["--critic.max_norm", "1.0", "--reward.clip_range", "-10", "10"])


def test_the_one_word_of_a_list_is_the_same_however_it_is_given(tmp_path):
    config = resolve(["--ds.lora.target_modules", "all-linear"])
    assert config.ds.lora.target_modules == resolve([]).ds.lora.target_modules == "all-linear"
    config.save(tmp_path / "config.yaml")
    assert resolve(["--config", str(tmp_path / "config.yaml")]).to_dict()["values"] == config.to_dict()["values"]
    assert resolve(["--ds.lora.target_modules", "q_proj", "v_proj"]).ds.lora.target_modules == ["q_proj", "v_proj"]


def test_a_critic_follows_the_policy_unless_it_is_set():
    config = resolve(["--algo.advantage.estimator", "gae", "--actor.model_name_or_path", "here"])
    assert config.critic.model_name_or_path == "here"
    assert config.critic.lr_scheduler == "constant"
    assert config.critic.num_gpus_per_node == 8
    assert config.origin("critic.lr_scheduler") == "estimator gae"
    line = "--algo.advantage.estimator gae --train.colocate_all --actor.num_gpus_per_node 2 --critic.adam.lr 1e-3"
    config = resolve(line.split())
    assert config.critic.num_gpus_per_node == 2
    assert config.critic.adam.lr == 1e-3


def test_a_recipe_of_ppo_can_be_run_with_another_estimator(tmp_path):
    recipe = tmp_path / "ppo.yaml"
    recipe.write_text("algo.advantage.estimator: gae\ncritic: {adam.lr: 0.001, freezing_steps: 2}\n")
    assert resolve(["--config", str(recipe)]).critic.freezing_steps == 2
    config = resolve(["--config", str(recipe), "--algo.advantage.estimator", "grpo"])
    assert "critic.adam.lr" not in config.names()
    assert config.critic.freezing_steps == -1


def test_every_refused_flag_is_refused():
    other = {bool: None, int: "77", float: "0.77", str: "something"}
    for flag in all_flags().values():
        if flag.disposition is not Disposition.REFUSED:
            continue
        count = flag.nargs if isinstance(flag.nargs, int) else 1
        value = flag.choices[-1] if flag.choices else other[flag.kind]
        name = negation(flag.name) if flag.kind is bool and flag.default else flag.name
        fails([f"--{name}", *([] if value is None else [value] * count)], flag.name, "is not supported: ")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("rollout: {batchsize: 3}", ["rollout.batchsize in", "rollout.batch_size"]),
        ("train.seed: abc", ["train.seed in", "whole number"]),
        ("train.seed: true", ["train.seed in", "whole number"]),
        ("report: 'no way'", ["report in", "true or false"]),
        ("backend: remote", ["backend in", "must be one of"]),
        ("actor.adam.betas: [0.9]", ["wants 2 values"]),
        ("train.seed:", ["train.seed in", "needs a value", "42"]),
        ("reward.remote_url: http://x", ["reward.remote_url in", "not supported"]),
        ("dry_run: true", ["belongs on the command line"]),
        ("train: {seed: 1}\ntrain.seed: 2", ["train.seed twice"]),
        ("train.seed: 1\ntrain.seed: 2", ["'train.seed' twice"]),
        ("train: {seed: 1", ["line", "not valid YAML"]),
        ("- a\n- b", ["flag: value lines"]),
        ("base: nowhere.yaml", ["cannot read", "nowhere.yaml"]),
        ("base: recipe.yaml", ["its own base"]),
        ("base: 3", ["path of a recipe"]),
        ("algo.advantage.step_coef: 1", ["is not an option of gagpo (algo.advantage.estimator)", "gigpo"]),
    ],
)
def test_bad_recipes_give_one_sentence(recipe, text, parts):
    fails(["--config", recipe(text)], *parts)


def test_recipe_values_are_typed_like_the_command_line(recipe):
    path = recipe("actor.adam.lr: 1e-5\nenv.plugin: a.py\nckpt.max_mem: .inf\nalgo.kl.target: null\nenv.name: 7\n")
    config = resolve(["--config", path])
    assert config.actor.adam.lr == 1e-5
    assert config.env.plugin == ["a.py"]
    assert config.env.name == "7"


def test_environment_options_merge_by_key_and_end_with_the_environment(recipe):
    path = recipe("env: {name: vault, options: {size: 3, keys: 2}}")
    argv = ["--config", path, "--env.options", "size=4", "label=x", "--env.options", '{"deep": [1]}']
    assert resolve(argv).env.options == {"size": 4, "keys": 2, "label": "x", "deep": [1]}
    assert resolve(["--config", path, "--env.name", "vault"]).env.options == {"size": 3, "keys": 2}
    assert resolve(["--config", path, "--env.name", "alfworld"]).env.options == {}


def test_changing_the_estimator_later_leaves_the_old_ones_options_out(recipe):
    path = recipe("algo.advantage: {estimator: gagpo, lambd: 0.5, invalid_penalty: 0.3}")
    config = resolve(["--config", path, "--algo.advantage.estimator", "grpo"])
    assert config.options(families()[0]).invalid_penalty == 0.3
    assert "algo.advantage.lambd" not in config.names()
    assert config.actor.policy_loss_type == "ppo"
    fails(
        ["--algo.advantage.estimator", "grpo", "--algo.advantage.lambd", "0.5"],
        "--algo.advantage.lambd is not an option of grpo (algo.advantage.estimator); it belongs to gae, gagpo",
    )


def test_every_estimator_resolves_to_its_own_options():
    for name in registry.names():
        config = resolve(["--algo.advantage.estimator", name])
        entry = registry.get(name)
        assert config.options(families()[0]) == entry.options_cls()
        for flag, value in entry.presets.items():
            assert config.get(flag) == value
            assert config.origin(flag) == f"estimator {name}"


@pytest.mark.parametrize(
    ("rule", "invalid", "inadmissible"), [("format", 0.3, 0.0), ("action", 0.0, 0.3), ("either", 0.3, 0.3)]
)
def test_the_rule_for_invalid_steps_still_works_and_says_what_follows_it(rule, invalid, inadmissible, capsys):
    config = resolve(["--algo.advantage.invalid_penalty", "0.3", "--algo.advantage.invalid_rule", rule])
    advantage = config.algo.advantage
    assert (advantage.invalid_penalty, advantage.inadmissible_penalty) == (invalid, inadmissible)
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "algo.advantage.invalid_rule (command line) is deprecated; use --algo.advantage.invalid_penalty" in warning
    assert "algo.advantage.invalid_rule" not in config.names()
    resolve([])
    assert not capsys.readouterr().err


def test_a_deprecated_rule_and_the_price_that_follows_it_contradict_each_other(recipe):
    path = recipe("algo.advantage: {invalid_rule: either, invalid_penalty: 0.1}")
    fails(["--config", path, "--algo.advantage.inadmissible_penalty", "0.5"], "contradict each other", "invalid_rule")


def test_plugins_of_all_layers_are_kept(recipe):
    path = recipe("env.plugin: a.py")
    assert resolve(["--config", path, "--env.plugin", "b.py", "--env.plugin", "a.py"]).env.plugin == ["a.py", "b.py"]


def test_an_unset_option_in_a_saved_configuration_is_the_estimators_default(recipe):
    path = recipe("algo.advantage: {estimator: gagpo, inadmissible_penalty: null}")
    assert resolve(["--config", path]).algo.advantage.inadmissible_penalty == 0.0


def test_derived_values_follow_and_yield_to_explicit_ones(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: 0)
    config = resolve(
        [
            "--env.name",
            "vault",
            "--run_dir",
            "r/x",
            "--actor.eps_clip",
            "0.3",
            "--train.colocate_all",
            "--actor.num_gpus_per_node",
            "2",
        ]
    )
    assert config.ckpt.path == "r/x/checkpoints"
    assert config.logger.wandb.run_name == "x"
    assert config.actor.eps_clip_low_high == [0.3, 0.3]
    assert config.ref.num_gpus_per_node == 2
    assert config.ds.attn_implementation == "sdpa"
    assert config.origin("ds.attn_implementation") == "machine"
    config = resolve(["--ckpt.path", "c", "--ds.attn_implementation", "eager", "--train.dynamic_batch_enable"])
    assert config.ckpt.path == "c"
    assert config.ds.attn_implementation == "eager"
    assert config.ds.packing_samples


def test_bounds_of_the_ratio_are_the_losss_own_unless_they_are_given():
    recipe = str(REPOSITORY / "examples/recipes/vault_demo.yaml")
    asked = ["--config", recipe, "--actor.policy_loss_type", "cispo"]
    assert resolve(asked).actor.eps_clip_low_high == resolve(asked[2:]).actor.eps_clip_low_high != [0.2, 0.2]
    assert resolve([*asked, "--actor.eps_clip", "0.2"]).actor.eps_clip_low_high == [0.2, 0.2]
    before = losses.registry.snapshot()
    try:
        losses.register("unclipped", losses.LossOptions, token_advantages=True)(lambda batch, options: None)
        # OpenRLHF's workers read the pair whatever the loss is.
        config = resolve(["--config", recipe, "--actor.policy_loss_type", "unclipped"])
        assert config.actor.eps_clip_low_high == [0.2, 0.2]
    finally:
        losses.registry.restore(before)


def test_flash_attention_stays_where_it_can_run(monkeypatch):
    monkeypatch.setattr(machine, "has_flash_attention", lambda: True)
    assert resolve([]).ds.attn_implementation == "flash_attention_2"


def test_cuda_visible_devices_hides_devices(monkeypatch):
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert machine.gpus() == 0
        assert not machine.has_cuda()


def test_a_saved_configuration_is_a_recipe_and_keeps_no_secret(tmp_path):
    path = tmp_path / "config.yaml"
    argv = [
        "--env.name",
        "vault",
        "--env.options",
        "size=4",
        "--actor.adam.lr",
        "1e-7",
        "--no_report",
        "--logger.wandb.key",
        "hush",
    ]
    config = resolve(argv)
    config.save(path)
    assert "hush" not in path.read_text()
    stored = yaml.safe_load(path.read_text())
    assert stored["origins"]["actor.adam.lr"] == "command line"
    assert stored == config.to_dict()
    again = resolve(["--config", str(path)])
    assert again.to_dict()["values"] == stored["values"]
    moved = resolve(["--config", str(path), "--run_dir", "elsewhere"])
    assert moved.ckpt.path == "elsewhere/checkpoints"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_of_the_project_resolve(path):
    config = resolve(["--config", str(path)])
    # A recipe for an environment of the user's own leaves the name to them, and brings no environment's option.
    assert bool(config.env.name) is not path.name.startswith("own_")
    assert config.env.name or not config.env.options
    assert config.options(families()[0]) is not None


def test_recipe_directory_is_not_empty():
    assert len(list(RECIPES.glob("*.yaml"))) >= 2


@given(
    st.integers(0, 2**32 - 1),
    st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False),
    st.sampled_from(["ppo", "gspo"]),
)
def test_values_come_back_as_given(seed, rate, loss):
    argv = [f"--train.seed={seed}", f"--actor.adam.lr={rate!r}", f"--actor.policy_loss_type={loss}"]
    config = resolve(argv)
    assert (config.train.seed, config.actor.adam.lr, config.actor.policy_loss_type) == (seed, rate, loss)


@given(st.dictionaries(st.text("abc_", min_size=1), st.integers() | st.booleans() | st.text("xyz", min_size=1)))
def test_options_as_json_and_as_pairs_agree(options):
    import json

    pairs = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    given = resolve(["--env.options", *pairs]).env.options if pairs else {}
    assert given == resolve(["--env.options", json.dumps(options)]).env.options == options
