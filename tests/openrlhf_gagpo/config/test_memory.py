"""The estimate of memory: against live tensors of the local backend, and its rules for workers and engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from openrlhf_gagpo.config.memory import BLOCK, Passes, activation_bytes, estimate, logit_bytes
from openrlhf_gagpo.config.placement import place
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.shapes import ModelShape, find_shape
from openrlhf_gagpo.training import token_scores
from support import local_checks
from support.benchmarks import load
from support.local_checks import DEEP, LARGE, WIDE


@pytest.mark.parametrize(
    ("model", "dtype", "extra"),
    [
        pytest.param(WIDE, "fp32", (), id="logits"),
        pytest.param(DEEP, "fp32", ("--algo.kl.init_coef", "0.1"), id="activations"),
        pytest.param(LARGE, "fp32", (), id="weights"),
        pytest.param(DEEP, "bf16", ("--actor.gradient_checkpointing_enable",), id="checkpointing, bf16"),
        pytest.param(WIDE, "fp32", ("--train.logit_chunk", "16"), id="chunks"),
        pytest.param(LARGE, "fp32", ("--ds.lora.rank", "8", "--algo.kl.init_coef", "0.1"), id="adapters"),
        pytest.param(DEEP, "fp32", ("--ds.lora.rank", "16", "--ds.lora.dropout", "0.1"), id="adapters, dropout"),
        pytest.param(LARGE, "bf16", ("--ds.lora.rank", "8"), id="adapters, bf16"),
        pytest.param(LARGE, "bf16", ("--ds.lora.rank", "4", "--actor.gradient_checkpointing_enable"), id="all three"),
    ],
)
def test_estimates_are_close_to_what_lives(
    tmp_path: Path, model: tuple[tuple[object, ...], tuple[int, ...]], dtype: str, extra: tuple[str, ...]
) -> None:
    bench = load("gpu_local")
    sizes, work = bench.Sizes(*model[0]), bench.Work(*model[1])
    found = local_checks.estimate_and_peak(tmp_path, "cpu", dtype, sizes, work, load("logits").peak_bytes, *extra)
    for phase, (guess, peak) in found.items():
        assert guess == pytest.approx(peak, rel=0.15), phase


def shape(words: int = 1000, *, tied: bool = True) -> ModelShape:
    return ModelShape(words, 64, 128, 3, 64, 32, 4, 2, tied, biases=False, head_norms=False)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [False, True])
def test_shapes_of_saved_models_have_their_parameters(tmp_path: Path, kind: str, tied: bool) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        kind, vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, tie_word_embeddings=tied,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    found = find_shape(str(tmp_path))
    assert isinstance(found, ModelShape)
    assert found.parameters == sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"model_type": "mamba"}', "is of the type 'mamba'"),
        ("{}", "is of the type 'unknown'"),
        ('{"model_type": "llama"}', "does not give the sizes of a model (KeyError"),
        ("[", "does not give the sizes of a model (JSONDecodeError"),
    ],
)
def test_a_model_without_known_sizes_is_told_of(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert words in str(find_shape(str(tmp_path)))


def test_models_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert "is not at hand" in str(find_shape("someone/some-model"))
    assert "is not at hand" in str(find_shape(str(tmp_path)))
    assert "does not give the sizes of a model (OSError" in str(find_shape("a" * 300))
    assert find_shape(None) == "no model is given"
    snapshot = tmp_path / "models--someone--some-model" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(
        '{"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, '
        '"num_attention_heads": 2}'
    )
    found = find_shape("someone/some-model")
    assert isinstance(found, ModelShape)
    assert (found.keys, found.head_size, found.tied) == (8, 4, False)
    # Those that the recipes name are known without a file; their authors give 1.54 and 7.61 billion.
    for name, parameters in (("1.5B", 1_543_714_304), ("7B", 7_615_616_512)):
        published = find_shape(f"Qwen/Qwen2.5-{name}-Instruct")
        assert isinstance(published, ModelShape)
        assert published.parameters == parameters


def passes(**changes: object) -> Passes:
    given = Passes(4, 100, 80, 4, 4, checkpointing=False, chunk=0, float_logits=False, masked=False)
    return replace(given, **changes)  # type: ignore[arg-type]


def test_logits_and_their_gradient() -> None:
    assert BLOCK == token_scores._BLOCK
    plain = logit_bytes(shape(), passes(), backward=True)
    # 80 x 1000 logits, their gradient, and two float32 copies of what is read at a time, here all.
    assert plain == 80 * 1000 * 4 * 4
    assert logit_bytes(shape(), passes(), backward=False) == 80 * 1000 * 4 * 3
    assert logit_bytes(shape(), passes(chunk=20), backward=True) == plain / 4
    # Half the bytes, but for the float32 copies.
    assert logit_bytes(shape(), passes(number_bytes=2), backward=True) == 80 * 1000 * (2 * 2 + 2 * 4)
    # Workers make them float32 as a whole, next to the rounded ones.
    rounded = passes(number_bytes=2, float_logits=True)
    assert logit_bytes(shape(), rounded, backward=True) == plain
    assert logit_bytes(shape(), rounded, backward=False) == 80 * 1000 * (2 + 4 + 2 * 4)


def test_checkpointing_keeps_one_layer() -> None:
    deep = replace(shape(), layers=30)
    assert activation_bytes(deep, passes(checkpointing=True)) < 0.15 * activation_bytes(deep, passes())


FLAGS = [
    "--env.name", "vault", "--actor.model_name_or_path", "model", "--actor.num_gpus_per_node", "4",
    "--train.colocate_all", "--vllm.num_engines", "4", "--ds.attn_implementation", "flash_attention_2",
]  # fmt: skip


def parts(*extra: str) -> dict[tuple[str, str], dict[str, float]]:
    config = resolve([*FLAGS, *extra])
    found = estimate(config, place(config), shape())
    return {(phase.holder, phase.name): dict(phase.parts) for phase in found.phases}


def test_deepspeed_divides_what_its_stage_says() -> None:
    count = shape().parameters
    stages = {stage: parts("--ds.zero_stage", str(stage))["policy", "update"] for stage in (1, 2, 3)}
    assert [stage["optimizer"] for stage in stages.values()] == [count * 12 / 4] * 3
    largest = 2 * shape().largest
    assert [stage["gradients"] - largest for stage in stages.values()] == [count * 2, count * 2 / 4, count * 2 / 4]
    assert [stage["weights"] for stage in stages.values()] == [count * 2, count * 2, count * 2 / 4]
    assert parts("--ds.adam_offload")["policy", "update"]["optimizer"] == 0


def test_adapters_alone_have_gradients_and_states() -> None:
    base = shape().parameters
    count = 4 * 3 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    found = parts("--ds.lora.rank", "4")
    update = found["policy", "update"]
    assert update["weights"] == (base + count) * 2
    assert update["gradients"] == count * 2 / 4 + 4 * 128 * 2
    assert update["optimizer"] == count * 12 / 4
    plain = parts()
    per_token = (update["activations"] - plain["policy", "update"]["activations"]) / resolve(FLAGS).data.max_len
    assert per_token == pytest.approx(4 * 3 * 7 * 2)
    # Reference and engine have none: there they are merged or absent.
    for name in (("reference", "update"), ("vLLM engine", "update")):
        assert found[name] == plain[name]
    some = parts("--ds.lora.rank", "4", "--ds.lora.target_modules", "v_proj", "layers.2.mlp.up_proj")
    few = 4 * (3 * (64 + 32) + 64 + 128)
    assert some["policy", "update"]["optimizer"] == few * 12 / 4
    critic = parts("--ds.lora.rank", "4", "--algo.advantage.estimator", "gae")["critic", "update"]
    assert critic["optimizer"] == (count + 4 * (64 + 1)) * 12 / 4


def test_sleeping_processes_take_nothing() -> None:
    found = parts()
    assert found["vLLM engine", "update"] == found["vLLM engine", "rollout"]
    config = resolve(FLAGS)
    episodes = config.rollout.batch_size * config.rollout.n_samples_per_prompt / 4
    # Keys and values of three layers in two bytes each.
    assert found["vLLM engine", "rollout"]["cache"] == episodes * config.data.max_len * 2 * 3 * 32 * 2
    assert ("vLLM engine", "update") not in parts("--vllm.enable_sleep")
    assert parts("--ds.enable_sleep")["policy", "rollout"] == {}
    assert parts("--ref.offload")["reference", "update"] == {}
    assert "reference" not in {holder for holder, _ in parts("--algo.kl.init_coef", "0")}


def test_a_shared_device_holds_the_sum() -> None:
    config = resolve(FLAGS)
    found = estimate(config, place(config), shape())
    assert found.shared["update"] == sum(phase.total for phase in found.phases if phase.name == "update")
    assert "of its GPU" in found.notes[0]
    apart = resolve([*FLAGS, "--train.no_colocate_all"])
    assert not estimate(apart, place(apart), shape()).shared


def test_a_critic_has_no_logits() -> None:
    found = parts("--algo.advantage.estimator", "gae")
    assert found["critic", "update"]["logits"] == 0
    assert found["critic", "update"]["optimizer"] == found["policy", "update"]["optimizer"]
