"""What is said before a run starts, and the placement plan."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from openrlhf_gagpo import losses, machine
from openrlhf_gagpo.config import machine_checks
from openrlhf_gagpo.config.checks import check
from openrlhf_gagpo.config.placement import place
from openrlhf_gagpo.config.reading import env_options
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.credit import registry
from openrlhf_gagpo.errors import ConfigError
from support.models import model_folder, safetensors

IS = "--algo.advantage.is_correction"
PPO = f"--actor.policy_loss_type ppo {IS}_level"
SHARED = "--actor.num_gpus_per_node 1 --vllm.num_engines 1 --train.colocate_all"
APART = "--train.no_colocate_all"

GAE = "--algo.advantage.estimator gae"


@pytest.fixture(autouse=True)
def cpu_machine(monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: 0)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def model(tmp_path):
    return model_folder(tmp_path / "model")


@pytest.fixture
def base(model, tmp_path):
    return f"--env.name vault --actor.model_name_or_path {model} --run_dir {tmp_path / 'run'} {SHARED}"


def fails(line: str, *parts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(resolve(line.split()))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def test_a_sound_configuration_passes(base):
    plan = check(resolve(base.split()))
    assert plan.gpus == 1
    assert plan.device == "cpu"
    check(resolve([*base.split(), "--ds.zero_stage", "3"]))
    # The GPUs of models that the run does not have are no matter.
    check(resolve(f"{base} --ds.zero_stage 3 --train.no_colocate_all --algo.kl.init_coef 0".split()))


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ("--rollout.batch_size 0", ["--rollout.batch_size is 0", "at least 1"]),
        ("--train.batch_size -4", ["--train.batch_size is -4"]),
        ("--eval.steps 0", ["--eval.steps is 0", "-1 for never"]),
        ("--actor.adam.lr 0", ["--actor.adam.lr", "more than 0"]),
        ("--actor.adam.lr inf", ["--actor.adam.lr", "more than 0"]),
        ("--rollout.top_p 1.5", ["--rollout.top_p", "at most 1"]),
        ("--rollout.temperature 0", ["--rollout.temperature"]),
        ("--actor.adam.betas 0.9 1", ["--actor.adam.betas"]),
        ("--actor.eps_clip -0.1", ["--actor.eps_clip"]),
        ("--ds.zero_stage 4", ["--ds.zero_stage"]),
        ("--rollout.n_samples_per_prompt 1", ["--rollout.n_samples_per_prompt is 1", "gagpo", "2 or more"]),
        ("--rollout.max_new_tokens 2048", ["data.max_len (2048)", "more than rollout.max_new_tokens (2048)"]),
        ("--train.micro_batch_size 999", ["--train.micro_batch_size is 999"]),
        ("--algo.kl.no_use_loss", ["KL inside the reward", "algo.kl.init_coef to 0"]),
        ("--algo.kl.target 1 --algo.kl.init_coef 0", ["algo.kl.target"]),
        ("--actor.lr_scheduler wavy", ["--actor.lr_scheduler", "cosine"]),
        ("--algo.advantage.inadmissible_penalty -1", ["inadmissible_penalty is -1", "0 or more"]),
        ("--rollout.n_samples_per_prompt 1 --algo.dynamic_filtering_enable --algo.advantage.estimator gagpo", ["2 or"]),
        ("--algo.dynamic_filtering_enable --algo.dynamic_filtering_range 1 0", ["1 to 0", "the smaller number first"]),
        (
            "--algo.dynamic_filtering_enable --algo.dynamic_filtering_rule spread --algo.dynamic_filtering_range 0 9",
            ["--algo.dynamic_filtering_range belongs to", "remove it"],
        ),
        ("--algo.dynamic_filtering_rule narrow", ["--algo.dynamic_filtering_rule", "range, spread"]),
        ("--algo.dynamic_filtering_max_rounds 0", ["at least 1"]),
        ("--algo.advantage.is_correction_level word", ["off, token, seq, seq-product"]),
        (f"{PPO} token {IS}_threshold 1 2 3", ["HIGH or LOW HIGH", "not 3"]),
        (f"{PPO} token {IS}_threshold 2 1", ["2 to 1", "the larger one last"]),
        (f"{PPO} token {IS}_threshold -1 1", ["not negative"]),
        (f"{PPO} seq {IS}_mode clip", ["is_correction_mode clip", "use algo.advantage.is_correction_mode mask"]),
        (f"{PPO} token {IS}_mode clip {IS}_gating tv {IS}_threshold 1", ["clip moves a ratio"]),
        (f"{PPO} token {IS}_gating binary_kl", ["only an upper bound"]),
        (f"{PPO} seq-product {IS}_gating tv {IS}_threshold 1", ["ratio of a whole action"]),
        (f"--actor.policy_loss_type gspo {IS}_level token {IS}_mode clip", ["gspo", f"{IS}_mode", "remove it"]),
        ("--actor.dual_clip 0.5", ["--actor.dual_clip is 0.5", "1 or more"]),
        ("--eval_only", ["--eval_only needs a split", "--env.eval_split"]),
        (
            "--rollout.transcript_overflow drop",
            ["--rollout.transcript_overflow has no effect without --rollout.context"],
        ),
        ("--eval.greedy ends --eval.temperature 0", ["--eval.greedy is ends", "eval.temperature 0"]),
        ("--eval.greedy start", ["--eval.greedy", "ends, always, never"]),
        ("--eval.tasks_between -1", ["--eval.tasks_between is -1", "0 or more"]),
        ("--eval.steps 5", ["eval.steps needs a split"]),
        ("--train.threads 2", ["--train.threads", "the local backend only"]),
        ("--vllm.num_engines 2", ["train.colocate_all", "(2)", "(1)"]),
        ("--train.no_colocate_all --vllm.num_engines 0", ["--vllm.num_engines", "--backend local"]),
        ("--ref.num_gpus_per_node 2", ["share GPUs", "ref.num_gpus_per_node"]),
        ("--ds.ring_attn_size 2", ["cannot be divided"]),
        ("--vllm.enable_sleep", ["--vllm.enable_sleep needs a GPU"]),
        ("--ds.enable_sleep", ["--ds.enable_sleep needs a GPU"]),
        ("--train.no_colocate_all --vllm.enable_sleep", ["--train.colocate_all"]),
        ("--train.overlap one_step", ["--train.overlap is one_step", "set --train.no_colocate_all"]),
        (
            "--train.no_colocate_all --train.overlap one_step --env.eval_split valid --eval.steps 1",
            ["--eval.steps is 1", "raise it"],
        ),
        (
            "--train.no_colocate_all --train.overlap one_step --ckpt.save_steps 1",
            ["--ckpt.save_steps is 1", "raise it"],
        ),
        ("--train.overlap two_steps", ["--train.overlap", "none, one_step"]),
        ("--ds.attn_implementation flash_attention_2", ["needs a GPU", "sdpa"]),
        ("--ds.attn_implementation flash_attention_2 --ds.param_dtype fp32", ["fp32", "sdpa"]),
        ("--ds.zero_stage 0", ["ds.zero_stage 0", "use 1 or 2"]),
        (
            "--ds.ring_attn_size 2 --actor.num_gpus_per_node 2 --vllm.num_engines 2",
            ["--ds.ring_attn_size 2 needs GPUs"],
        ),
        ("--vllm.tensor_parallel_size 2 --actor.num_gpus_per_node 2", ["--vllm.tensor_parallel_size 2 needs GPUs"]),
        ("--actor.optim muon", ["actor.max_norm 1", "set actor.max_norm to 0"]),
        (f"{GAE} --critic.optim muon --actor.max_norm 0", ["critic.max_norm 1"]),
        ("--actor.optim muon --actor.max_norm 0 --ds.adam_offload", ["ds.adam_offload", "actor.optim to adam"]),
        ("--actor.optim muon --actor.max_norm 0 --ds.zero_stage 3", ["ds.zero_stage 3", "actor.optim to adam"]),
        ("--vllm.sync_backend gloo", ["--vllm.sync_backend gloo", "leave it at nccl"]),
        ("--ds.zero_stage 3 --actor.num_gpus_per_node 2 --vllm.num_engines 2", ["ds.zero_stage 3", "stage 2"]),
        (f"{APART} --ds.zero_stage 3 --actor.num_gpus_per_node 2 --ref.num_gpus_per_node 1", ["(actor)"]),
        (f"{APART} --ds.zero_stage 3 --ref.num_gpus_per_node 2", ["ds.zero_stage 3", "(ref)", "stage 2"]),
        (f"{APART} {GAE} --ds.zero_stage 3 --ref.num_gpus_per_node 1 --critic.num_nodes 2", ["(critic)", "stage 2"]),
        ("--ray.num_gpus 0", ["ray.num_gpus is 0", "needs 1"]),
        ("--ray.num_gpus 1 --ray.address auto", ["ray.num_gpus", "ray.address"]),
        (f"{IS}_mode clip", [f"{IS}_mode has no effect without {IS}_level"]),
        (f"{PPO} seq {IS}_gating tv {IS}_threshold 5", ["total variation is at most 1"]),
        ("--algo.dynamic_filtering_rule spread", ["no effect without --algo.dynamic_filtering_enable"]),
        ("--ds.lora.rank -1", ["--ds.lora.rank is -1", "0 or more"]),
        ("--ds.lora.rank 8 --ds.lora.dropout 1", ["--ds.lora.dropout", "below 1"]),
        ("--ds.lora.alpha 8", ["--ds.lora.alpha has no effect without --ds.lora.rank"]),
        ("--ds.lora.target_modules q_proj", ["--ds.lora.target_modules has no effect without --ds.lora.rank"]),
        ("--ds.lora.rank 8 --ds.zero_stage 3", ["--ds.lora.rank 8 needs weights", "ds.zero_stage to 2"]),
        ("--ds.lora.rank 8 --ds.tensor_parallel_size 2 --actor.num_gpus_per_node 2", ["ds.tensor_parallel_size to 1"]),
        ("--ds.lora.rank 8 --actor.optim muon --actor.max_norm 0", ["Muon", "actor.optim to adam"]),
        (f"{GAE} --ds.lora.rank 8 --critic.optim muon --critic.max_norm 0", ["Muon", "critic.optim to adam"]),
        ("--ds.lora.rank 8 --ds.lora.target_modules", ["--ds.lora.target_modules names no layer"]),
        ("--ds.lora.rank 8 --ds.lora.target_modules q_proj all-linear", ["all-linear includes the others"]),
        (f"{GAE} --ds.lora.rank 8 --ds.lora.target_modules q_proj", ["leaves out the critic's head", "add score"]),
        (f"{GAE} --ds.lora.rank 8 --ds.lora.target_modules score", ["names no layer of the policy"]),
        ("--algo.advantage.estimator gae --critic.lr_scheduler foo", ["critic.lr_scheduler", "foo"]),
        ("--env.name valt", ["valt", "vault"]),
        ("--env.split tran", ["env.split is 'tran'", "train, valid, test"]),
        ("--env.eval_split later", ["env.eval_split is 'later'"]),
        ("--env.options sise=3", ["sise", "size"]),
        ("--env.options size=99", ["size is 99"]),
        ("--env.max_steps 5 --env.options max_steps=6", ["given twice"]),
        ("--env.plugin nowhere.py", ["nowhere.py"]),
        ("--backend local", ["--vllm.num_engines is for the distributed backend only"]),
    ],
)
def test_bad_settings_are_named(base, extra, parts):
    if "--backend local" in extra:
        parts = ["for the distributed backend only"]
    fails(f"{base} {extra}", *parts)


def test_layers_that_a_model_lacks_are_named_before_anything_starts(base, model):
    base += " --ds.lora.rank 8 --ds.lora.target_modules"
    # Of a model of another type, only loading it says which layers it has.
    check(resolve(f"{base} q_prog".split()))
    sizes = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "num_attention_heads": 2} | sizes))
    has = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    for name in ("q_prog", "proj", "layers.2.mlp.up_proj", "lm_head", "score"):
        fails(f"{base} q_proj {name}", f"--ds.lora.target_modules names {name}", has)
    check(resolve(f"{base} layers.1.mlp.up_proj v_proj".split()))
    check(resolve(f"{base} q_proj score {GAE}".split()))


def test_a_loss_that_ignores_the_correction_is_refused(base):
    losses.register("own", losses.LossOptions, token_advantages=True)(lambda batch, options: None)
    fails(f"{base} --actor.policy_loss_type own {IS}_level token", "own does not correct for the sampler", "to off")
    check(resolve(f"{base} --actor.policy_loss_type own".split()))


@pytest.mark.parametrize(
    "extra",
    [
        f"{PPO} token {IS}_mode clip",
        f"{PPO} seq",
        f"{PPO} seq-product {IS}_mode clip {IS}_threshold 2",
        f"{PPO} seq {IS}_gating binary_kl {IS}_threshold 0.01",
        f"--actor.policy_loss_type cispo {IS}_level token",
        f"--actor.policy_loss_type gspo {IS}_level seq",
        "--algo.dynamic_filtering_enable --algo.dynamic_filtering_range 0 10",
        "--algo.dynamic_filtering_enable --algo.dynamic_filtering_rule spread",
    ],
)
def test_corrections_and_filters_that_go_together_pass(base, extra):
    check(resolve(f"{base} {extra}".split()))


def test_models(base, model, monkeypatch):
    line = f"--env.name vault {SHARED} --run_dir {model.parent / 'run'}"
    fails(line, "no model is given", "--actor.model_name_or_path")
    fails(f"{line} --actor.model_name_or_path {model}x", "there is no model folder")
    fails(f"{line} --actor.model_name_or_path ./gone", "there is no model folder")
    # Nothing is asked of the hub before the configuration is only shown.
    check(resolve(f"{line} --actor.model_name_or_path someone/some-model --dry_run".split()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(model.parent))
    fails(f"{line} --actor.model_name_or_path someone/some-model", "HF_HUB_OFFLINE")
    (model.parent / "hub" / "models--someone--some-model").mkdir(parents=True)
    check(resolve(f"{line} --actor.model_name_or_path someone/some-model".split()))
    for name, words in (
        ("model.safetensors", "weights"),
        ("tokenizer.json", "tokenizer"),
        ("config.json", "config.json"),
    ):
        (model / name).unlink()
        fails(base, words)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", b"{", ["config.json cannot be read", "save the model again"]),
        ("config.json", b"[]", ["config.json does not hold a JSON object"]),
        ("tokenizer_config.json", b"\xff", ["tokenizer_config.json cannot be read"]),
        ("model.safetensors", safetensors()[:-1], ["model.safetensors is cut short or damaged"]),
        ("model.safetensors", safetensors() + b"x", ["model.safetensors is cut short or damaged"]),
        ("model.safetensors", b"", ["cut short or damaged"]),
        ("model.safetensors", b"\xff" * 40, ["cut short or damaged"]),
        ("more.bin", b"PK\x03\x04 and no more", ["more.bin is cut short or damaged"]),
        ("more.bin", b"", ["more.bin is cut short or damaged"]),
        ("model.safetensors.index.json", b'{"weight_map":{"w":"gone-1.safetensors"}}', ["lacks gone-1.safetensors"]),
        ("model.safetensors.index.json", b"{}", ["is not an index"]),
    ],
)
def test_a_damaged_model_is_named_before_torch_is_imported(base, model, name, content, words):
    (model / name).write_bytes(content)
    fails(base, *words)


def test_a_hub_model_without_a_network_is_refused_at_once(base, model, monkeypatch):
    import huggingface_hub

    def unreachable(self, name, timeout):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setenv("HF_HOME", str(model.parent / "empty"))
    line = base.replace(str(model), "someone/some-model")
    fails(line, "the hub cannot be reached (ConnectionError)", "give a local folder")


def test_a_run_folder_that_cannot_be_used(base, tmp_path):
    elsewhere = base.replace(str(tmp_path / "run"), "{}").format
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").touch()
    fails(elsewhere(tmp_path / "notes"), "is not empty and holds no run (thesis.txt is there)", "--run_dir")
    fails(elsewhere(tmp_path / "notes" / "thesis.txt" / "run"), "cannot be made", "cannot be written")


def test_an_estimator_that_needs_what_the_backend_lacks_is_refused(base, monkeypatch):
    entry = replace(registry.get("grpo"), needs=frozenset({"hindsight"}))
    monkeypatch.setattr(registry, "get", lambda name: entry)
    fails(f"{base} --algo.advantage.estimator grpo", "grpo needs hindsight of every step", "choose another")


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        ("--critic.num_gpus_per_node 2", ["policy and critic share GPUs", "critic.num_gpus_per_node"]),
        ("--critic.model_name_or_path nowhere/at/all", ["there is no model folder", "--critic.model_name_or_path"]),
        ("--critic.freezing_steps 160", ["--critic.freezing_steps is 160", "none of the 160 iterations", "lower it"]),
        ("--critic.freezing_steps 0", ["--critic.freezing_steps is 0", "-1 for never"]),
        ("--critic.value_clip 0", ["--critic.value_clip is 0"]),
        (
            "--algo.advantage.gae_level token --actor.policy_loss_type gspo",
            ["gae gives every token an advantage", "gspo takes one per action", "--actor.policy_loss_type"],
        ),
    ],
)
def test_bad_settings_of_a_critic_are_named(base, extra, parts):
    fails(f"{base} --algo.advantage.estimator gae {extra}", *parts)


def test_a_critic_needs_no_tokenizer_of_its_own(base, tmp_path):
    critic = model_folder(tmp_path / "critic")
    (critic / "tokenizer.json").unlink()
    line = f"{base} --algo.advantage.estimator gae --critic.model_name_or_path {critic}"
    check(resolve(line.split()))
    (critic / "config.json").unlink()
    fails(line, "has no config.json", "--critic.model_name_or_path")


def test_ppo_trains_single_episodes_too(base):
    check(resolve(f"{base} --algo.advantage.estimator gae --rollout.n_samples_per_prompt 1".split()))


@pytest.mark.parametrize("name", ["a2tgpo", "igpo"])
@pytest.mark.parametrize("backend", ["local", "distributed"])
def test_information_gain_is_refused_without_golden_answers_before_anything_starts(model, tmp_path, name, backend):
    line = f"--env.name vault --actor.model_name_or_path {model} --run_dir {tmp_path / 'run'} --backend {backend}"
    shared = SHARED if backend == "distributed" else ""
    fails(
        f"{line} {shared} --algo.advantage.estimator {name}",
        f"{name} asks how likely the golden answer becomes, and vault has none",
        "choose another",
    )
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_refused_unless_resumed(base, tmp_path):
    (tmp_path / "run").mkdir()
    check(resolve(base.split()))
    (tmp_path / "run" / "config.yaml").write_text("")
    fails(base, "already holds a run", "--run_dir", "--ckpt.load_enable")
    check(resolve(f"{base} --ckpt.load_enable".split()))


def test_an_environment_must_be_named(base):
    fails(base.replace("--env.name vault", ""), "no environment is given", "--env.name")


def test_a_plugin_brings_its_environment(base, tmp_path):
    plugin = tmp_path / "corridor.py"
    plugin.write_text(
        "from agent_envs.registry import register\n"
        "from agent_envs.vault import VaultEnv\n"
        "@register('config_test_corridor')\n"
        "class Corridor(VaultEnv):\n"
        "    pass\n"
    )
    check(resolve(f"{base} --env.plugin {plugin} --env.name config_test_corridor".split()))


def test_the_step_limit_is_an_option_of_the_environment():
    config = resolve(["--env.name", "vault", "--env.max_steps", "9", "--env.options", "size=4"])
    assert env_options(config) == {"size": 4, "max_steps": 9}


@pytest.mark.parametrize("extra", ["", "--ds.param_dtype bf16", "--rollout.top_p 0.9", f"{IS}_level off"])
def test_the_local_backend_has_a_sampler_to_correct_only_where_it_may_differ(model, tmp_path, extra):
    line = f"--env.name vault --actor.model_name_or_path {model} --run_dir {tmp_path / 'run'} --backend local"
    line += f" --ds.param_dtype fp32 {PPO} token {extra}"
    if extra:
        check(resolve(line.split()))
    else:
        fails(line, f"{IS}_level token has nothing to correct", "fp32", "to off")


def test_a_recipe_for_both_backends_is_no_error_on_the_local_one(base, model, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("vllm.num_engines: 1\ntrain.colocate_all: true\nds.zero_stage: 3\n")
    line = f"--config {recipe} --backend local --env.name vault --actor.model_name_or_path {model}"
    config = resolve(f"{line} --run_dir {tmp_path / 'run'}".split())
    plan = check(config)
    assert plan.groups == ()
    assert plan.device == "cpu"
    assert set(config.unused()) == {"vllm.num_engines", "train.colocate_all", "ds.zero_stage"}
    fails(f"{line} --train.device cuda", "--train.device cpu")


def test_more_gpus_than_there_are(base, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: 1)
    monkeypatch.setattr(machine, "torch_has_cuda", lambda: True)
    check(resolve(base.split()))
    fails(f"{base} --train.no_colocate_all", "needs 10 GPUs", "shows 1", "--train.colocate_all")
    check(resolve(f"{base} --train.no_colocate_all --ray.address auto".split()))


def test_ring_attention_needs_its_package(base, monkeypatch):
    monkeypatch.setattr(machine, "gpus", lambda: 2)
    monkeypatch.setattr(machine, "torch_has_cuda", lambda: True)
    line = f"{base} --ds.ring_attn_size 2 --actor.num_gpus_per_node 2 --vllm.num_engines 2"
    monkeypatch.setattr(machine_checks, "find_spec", lambda name: None)
    fails(line, "ring-flash-attn")
    monkeypatch.setattr(machine_checks, "find_spec", lambda name: object())
    check(resolve(line.split()))


@pytest.mark.parametrize(
    ("line", "gpus", "shares"),
    [
        ("--train.colocate_all --vllm.num_engines 2", 2, [[0.2, 0.2]]),
        ("--train.colocate_all --vllm.num_engines 1 --vllm.tensor_parallel_size 2", 2, [[0.2, 0.4]]),
        ("--train.colocate_actor_ref --vllm.num_engines 3", 5, [[0.2], [1]]),
        ("--ref.num_gpus_per_node 1 --vllm.num_engines 1 --vllm.tensor_parallel_size 2", 5, [[1], [1], [2]]),
        ("--algo.kl.init_coef 0 --vllm.num_engines 1", 3, [[1], [1]]),
        (f"{GAE} --train.colocate_all --vllm.num_engines 2", 2, [[0.2, 0.2, 0.2]]),
        (
            f"{GAE} --train.colocate_actor_ref --critic.num_gpus_per_node 1 --vllm.num_engines 3",
            6,
            [[0.2], [1], [1]],
        ),
        (f"{GAE} --algo.kl.init_coef 0 --critic.num_gpus_per_node 2 --vllm.num_engines 1", 5, [[1], [1], [1]]),
    ],
)
def test_placement(line, gpus, shares):
    plan = place(resolve(["--actor.num_gpus_per_node", "2", *line.split()]))
    assert plan.gpus == gpus
    assert [[process.gpus_each for process in group.processes] for group in plan.groups] == shares


def test_work_of_an_iteration():
    plan = place(resolve(["--rollout.batch_size", "16", "--train.batch_size", "256", "--train.max_epochs", "2"]))
    assert plan.episodes == 128
    assert plan.updates == "2 x ceil(environment steps / 256)"
    assert plan.iterations == 160
    assert place(resolve(["--eval_only"])).iterations == 0
