"""Two hundred configurations that cannot run, drawn from the table of flags: one sentence each, and nothing heavy.

Every case is wrong by how it is made, so the table may grow without anything to be kept up here. GAGPO_BAD_CASES sets
another number; there are some five thousand.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent_envs import registry as environments
from openrlhf_gagpo.config.families import families
from openrlhf_gagpo.config.flag import Disposition, Flag, negation
from openrlhf_gagpo.config.flags import all_flags
from support.models import model_folder
from support.paths import REPOSITORY

COUNT = 200
_HEAVY = ("torch", "transformers", "ray", "vllm", "deepspeed", "openrlhf", "matplotlib")
# Each in a folder of its own, as if it had been started there.
_RUN = f"""
import contextlib, io, json, os, sys, traceback
from openrlhf_gagpo import run
from openrlhf_gagpo.cli.main import main
run.run = lambda config: print("passed all checks", file=sys.stderr)
for folder, words in json.load(sys.stdin):
    os.chdir(folder)
    before, said, status = set(sys.modules), io.StringIO(), None
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(["train", *words])
        except BaseException:
            traceback.print_exc()
    print(json.dumps([status, said.getvalue(), [name for name in {_HEAVY!r} if name in {{*sys.modules}} - before]]))
"""


@dataclass
class Case:
    """A command line and the files that it is about, by their names in the folder where it runs."""

    words: list[str]
    files: dict[str, str | bytes] = field(default_factory=dict)
    backend: str = "local"


def _recipe(content: object) -> Case:
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    return Case(["--config", "recipe.yaml"], {"recipe.yaml": text})


def _set(flag: Flag, *values: object) -> Iterator[Case]:
    """The values on the command line, and in a recipe."""
    words = [item if isinstance(item, str) else json.dumps(item) for item in values]
    if flag.kind is not bool:
        yield Case([f"--{flag.name}", *words])
    if not flag.command_line_only:
        yield _recipe({flag.name: list(values) if flag.is_list else values[0]})


def _of_values(flags: dict[str, Flag]) -> Iterator[Case]:
    """Values of the wrong type, count or size, and names that are not among the choices."""
    optional = {name for family in families() for name in family.options}
    for flag in flags.values():
        if flag.deprecated or flag.disposition is Disposition.REFUSED:
            continue
        count = flag.nargs if isinstance(flag.nargs, int) else 1
        if flag.kind in (int, float):
            yield from _set(flag, *["many"] * count)
            yield from _set(flag, *[""] * count)
            yield from _set(flag, *["nan"] * count)
            yield _recipe({flag.name: {"a": 1}})
            yield _recipe({flag.name: [[1]]})
        if flag.kind is int:
            yield from _set(flag, *["2.5"] * count)
            yield _recipe({flag.name: True})
        if flag.kind is bool:
            yield Case([f"--{flag.name}=yes"])
            yield Case([f"--{flag.name}", "true"])
            if not flag.command_line_only:
                yield from (_recipe({flag.name: wrong}) for wrong in ("maybe", 1, [], {}))
        if flag.kind is str and not flag.is_list and not flag.command_line_only:
            yield from (_recipe({flag.name: wrong}) for wrong in ({"a": 1}, [1], True))
        if flag.kind is not bool:
            yield Case([f"--{flag.name}"])
            # Without a value, an option of an algorithm keeps its default.
            if flag.default is not None and not flag.command_line_only and flag.name not in optional:
                yield _recipe({flag.name: None})
        if flag.choices is not None:
            yield from _set(flag, *["neither"] * count)
        if count > 1:
            yield Case([f"--{flag.name}", "1"])
        if flag.bound is not None:
            far = (value for value in (-3, 0, 1, 2.5, 1e9, float("inf")) if not flag.bound.holds(value))
            for value in far:
                if flag.kind is float or isinstance(value, int):
                    yield from _set(flag, *[str(value)] * count)


def _of_names(flags: dict[str, Flag]) -> Iterator[Case]:
    """Flags that do not exist, that nobody acts on, or that belong to another algorithm or backend."""
    for flag in flags.values():
        value = {int: "3", float: "0.5", str: "x", bool: None, dict: "a=1"}[flag.kind]
        for wrong in (flag.name[:-1], flag.name.replace(".", "_"), flag.name.upper(), f"{flag.name}.x"):
            if wrong not in flags and wrong not in map(negation, flags):
                yield Case([f"--{wrong}", *([] if value is None else [value])])
                yield _recipe({wrong: value})
        if flag.disposition is Disposition.REFUSED and not flag.deprecated:
            other = not flag.default if flag.kind is bool else "7"
            if flag.choices is None and other != str(flag.default):
                yield _recipe({flag.name: other})
        if flag.disposition is Disposition.DISTRIBUTED and flag.kind is bool and not (flag.deprecated or flag.default):
            yield Case([f"--{flag.name}"])
        if flag.command_line_only:
            yield _recipe({flag.name: value})
    for family in families():
        for name, owners in family.owners.items():
            for other in set(family.options_cls) - set(owners):
                if (value := _another(flags[name])) is not None:
                    yield Case([f"--{family.chooser}", other, f"--{name}", *value])


def _another(flag: Flag) -> list[str] | None:
    """A sound value that is not the default, where there is an obvious one."""
    if flag.choices:
        return [next(str(choice) for choice in flag.choices if choice != flag.default)]
    if flag.kind is bool:
        return None if flag.default else []
    for value in (1, 0.5, 2):
        sound = flag.bound is None or flag.bound.holds(value)
        if flag.kind in (int, float) and not flag.is_list and sound and value != flag.default:
            return [str(value)] if flag.kind is float or isinstance(value, int) else None
    return None


def _of_files() -> Iterator[Case]:
    """Files that are missing, damaged or in the way."""
    for flag in ("config", "algo.plugin", "env.plugin", "actor.model_name_or_path"):
        for name in ("gone.py", "./gone/model", "a folder/gone.yaml", "x" * 300, "~nobody-at-all/x.py", "."):
            yield Case([f"--{flag}", name])
            if flag != "config":
                yield _recipe({flag: name})
        yield _recipe({flag: "a\x00b"})
    for text in (
        "a: [1", "- 1\n- 2\n", "3", "text", "a: 1\na: 2\n", "base: gone.yaml", "base: recipe.yaml", "base: [x]",
        b"\xff\xfe\x00", "a: \x07", "? [1, 2]\n: 3\n", "{1: 2}", "train: &t {more: *t}", "train: {seed: {seed: 1}}",
        "values: 3\norigins: 4\n", "values: {train.seed: 1}\norigins: []\n", "!!python/object:os.system {}",
        "base: 3", "train.seed: 2001-01-01", "train.seed: 2001-13-45", "train.seed: -1", "train.seed: 4294967296",
        "train:\n\tseed: 1\n", "train: 3", "train: {seed: 1}\ntrain.seed: 2\n", "env: {name: [vault]}", "*unknown",
        "null: 1", "rollout: {batch_size: 99999999999999999999999999}", "env.options: [1]", "env.options: {size: {}}",
        "algo: {plugin: 3}", "algo: {plugin: [[1]]}", "algo.plugin: {a: 1}", 
    ):  # fmt: skip
        yield _recipe(text)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        for content in (b"", b"[", b"[]", b"\xff\xfe", b"nul\x00"):
            yield Case([], {f"model/{name}": content})
    for index in (b"[]", b"{}", b'{"weight_map": 3}', b'{"weight_map": {"a": "gone.safetensors"}}', b"\xff"):
        yield Case([], {"model/model.safetensors.index.json": index})
    yield Case(["--run_dir", "mine"], {"mine/notes.txt": "x"})
    yield Case(["--run_dir", "run"], {"run/run.json": "{}"})
    for flag in ("run_dir", "ckpt.path", "ckpt.output_dir", "logger.tensorboard_dir"):
        yield _recipe({flag: "in\x00it"})
        for path in ("file", "file/in", "/proc/self/in", "x" * 300, "/dev/null"):
            yield Case([f"--{flag}", path], {"file": "x"})


def _of_environments() -> Iterator[Case]:
    """Environments, splits and options that do not exist."""
    for name in environments.names():
        for option in ("sise=3", "=3", "size", "{", "[1]", '{"size": [1]}', "size=big", "max_steps=none"):
            yield Case(["--env.name", name, "--env.options", option, "--env.split", "nosuch"])
    yield from (Case(["--env.name", name]) for name in ("", "valt", "vault ", "../vault", "VAULT"))
    yield from (Case([flag, "nosuch"]) for flag in ("--env.split", "--env.eval_split"))


def _of_conflicts() -> Iterator[Case]:
    """Sound values that contradict one another."""
    for words in (
        "--data.max_len 64 --rollout.max_new_tokens 64", "--train.micro_batch_size 9 --train.batch_size 8",
        "--rollout.n_samples_per_prompt 1", "--eval_only", "--eval.steps 1", "--config a.yaml --config b.yaml", "vault",
        "--eval.greedy always --eval.temperature 0 --env.eval_split valid", "--rollout.transcript_overflow drop",
        "--algo.dynamic_filtering_range 0 0.5", "--algo.dynamic_filtering_enable --algo.dynamic_filtering_range 1 0",
        "--env.max_steps 3 --env.options max_steps=4", "--ds.param_dtype fp16", "--train.device cuda",
        "--vllm.num_engines 2", "--ray.address auto", "--algo.kl.no_use_loss --algo.kl.init_coef 1", "--=3", "-x",
    ):  # fmt: skip
        yield Case(words.split())
    for words in (
        "--vllm.num_engines 0", "--train.colocate_all --vllm.num_engines 9", "--vllm.enable_sleep", "--ds.enable_sleep",
        "--train.dynamic_batch_enable --ds.no_packing_samples", "--ray.num_gpus 0", "--train.threads 2",
        "--ray.address a:1 --ray.num_gpus 2", "--ds.zero_stage 3 --actor.num_gpus_per_node 2 --vllm.num_engines 2",
        "--ds.ring_attn_size 3", "--train.device cpu", "--ds.use_liger_kernel",
    ):  # fmt: skip
        yield Case(words.split(), backend="distributed")


def _cases() -> list[Case]:
    flags = all_flags()
    kinds = (_of_values(flags), _of_names(flags), _of_files(), _of_environments(), _of_conflicts())
    rng = random.Random(11)
    drawn = []
    for kind in map(list, kinds):
        rng.shuffle(kind)
        drawn.append(kind)
    # As many of each kind, as far as there are that many.
    turns = [case for number in range(max(map(len, drawn))) for kind in drawn for case in kind[number : number + 1]]
    return turns[: int(os.environ.get("GAGPO_BAD_CASES", COUNT))]


def _prepare(case: Case, folder: Path) -> list[str]:
    folder.mkdir()
    model_folder(folder / "model")
    for name, content in case.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    base = {"--backend": case.backend, "--env.name": "vault", "--actor.model_name_or_path": "model", "--run_dir": "out"}
    given = case.files.get("recipe.yaml", "")
    # What the case is about must not be overridden.
    kept = [(flag, value) for flag, value in base.items() if flag not in case.words and flag[2:] not in str(given)]
    return [*(word for pair in kept for word in pair), *case.words]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[str], Case, Any]]:
    root = tmp_path_factory.mktemp("bad")
    cases = _cases()
    given = [(str(root / str(number)), _prepare(case, root / str(number))) for number, case in enumerate(cases)]
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    return [(words, case, result) for (_, words), case, result in zip(given, cases, results, strict=True)]


def test_each_is_refused_in_one_sentence(outcomes: list[tuple[list[str], Case, Any]]) -> None:
    wrong = []
    for words, case, (status, said, heavy) in outcomes:
        lines = [line for line in said.splitlines() if not line.startswith("gagpo: warning: ")]
        sound = len(lines) == 1 and lines[0].startswith("gagpo: error: ") and len(lines[0]) > len("gagpo: error: ") + 9
        if status != 2 or not sound or heavy:
            wrong.append(f"{words} {case.files}\n    {status} {heavy} {said[-1500:]}")
    assert len(outcomes) == len(_cases())
    assert not wrong, f"{len(wrong)} of {len(outcomes)}:\n" + "\n".join(wrong)
