"""Evaluations of expert, random play, warm-started and trained models on three environments, as one table.

Models are evaluated greedily and sampled, in this process and through vLLM's own server. Every step whose output exists
in the working folder is left out, so that the script can be stopped and started again.

    python benchmarks/evaluation_table.py --work runs/evaluation --out results/evaluation
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from recording import REPOSITORY, gagpo, machine

from openrlhf_gagpo.evaluation.rows import table
from openrlhf_gagpo.evaluation.store import EvaluationFolder

SPREAD = {"greedy": "0", "sampled": "1"}
SERVED = "tiny"
UNSEEDED = ("--policy.no_send_seed",)
"""vLLM's CPU build ends when it reads the prompt of a seeded request in several parts."""
PORT = 18123
"""Of vLLM's server: always the same, because the address is part of an evaluation's protocol."""
_KEPT = ("protocol.json", "result.json", "result.md", "prompt.txt")


@dataclass(frozen=True)
class World:
    """An environment with what its models are made from. ``{work}`` stands for the working folder."""

    recipe: str
    options: tuple[str, ...] = ()
    """Options that the environment has everywhere, as key=value."""
    data: tuple[tuple[str, ...], ...] = ()
    """Arguments of ``gagpo env generate``."""
    warmstart: tuple[str, ...] = ()
    train: tuple[str, ...] = ()
    served: tuple[str, ...] = ()
    """Further flags of evaluations through the server."""
    tasks: int = 128
    max_len: int = 128


WORLDS = {
    "vault": World(
        "examples/recipes/vault_demo.yaml",
        warmstart=("--env.options", "max_steps=30", "--episodes", "500", "--noise", "0.55", "--steps", "130"),
        tasks=256,
    ),
    "alfworld": World(
        "examples/recipes/alfworld_cpu.yaml",
        options=("data_dir={work}/alfworld-data",),
        data=(
            ("alfworld", "--out", "{work}/alfworld-data", "--split", "train", "--count", "1200"),
            ("alfworld", "--out", "{work}/alfworld-data", "--split", "valid_seen", "--count", "120"),
        ),
        warmstart=(
            "--env.options", "max_steps=20", "--rollout.history_length", "2", "--rollout.list_actions", "--layers", "3",
            "--episodes", "2400", "--batch_size", "16", "--steps", "2500",
        ),
        train=("--train.num_iterations", "10"),
        served=UNSEEDED,
        tasks=120,
        max_len=512,
    ),
    "webshop": World(
        "examples/recipes/webshop_cpu.yaml",
        options=("data_dir={work}/webshop-data", "test_goals=50", "observation=text_rich", "nouns=words"),
        data=(("webshop", "--out", "{work}/webshop-data", "--products", "30"),),
        warmstart=("--rollout.list_actions", "--episodes", "300", "--batch_size", "16", "--steps", "600"),
        train=("--train.num_iterations", "10"),
        served=UNSEEDED,
        tasks=50,
        max_len=1024,
    ),
}  # fmt: skip


class Script:
    """The commands of one world, run in their order and written down."""

    def __init__(self, name: str, work: Path) -> None:
        self.name = name
        self.world = WORLDS[name]
        self.work = work
        self.lines: list[str] = []
        self.evaluations: list[Path] = []

    def prepare(self) -> None:
        """Make data, the warm-started model and the trained one."""
        for number, words in enumerate(self.world.data):
            self._once(self.work / f".{self.name}-data-{number}", "env", "generate", *self._filled(words), mark=True)
        self._once(
            self.start, "warmstart", "--env.name", self.name, *self._options(), *self.world.warmstart,
            "--out", str(self.start),
        )  # fmt: skip
        self._once(
            self.run / "model", "train", "--config", str(REPOSITORY / self.world.recipe), "--backend", "local",
            *self._options(), "--actor.model_name_or_path", str(self.start), "--run_dir", str(self.run),
            "--eval.steps", "-1", "--eval.no_before_train", "--eval.no_after_train", *self.world.train,
        )  # fmt: skip

    @property
    def start(self) -> Path:
        """The warm-started model."""
        return self.work / f"{self.name}-start"

    @property
    def run(self) -> Path:
        """The run of the trained model."""
        return self.work / f"{self.name}-run"

    def evaluate(self) -> None:
        """Evaluate everything."""
        for policy in ("expert", "random"):
            self._evaluate(policy, "--policy", policy)
        for name, model in (("start", self.start), ("trained", self.run / "model")):
            for spread, temperature in SPREAD.items():
                flags = ("--policy.model", str(model), "--policy.threads", "1", "--eval.temperature", temperature)
                self._evaluate(f"{name}-{spread}-here", *flags)
            missing = [spread for spread in SPREAD if not self._result(f"{name}-{spread}-served").exists()]
            with served(model, self.world.max_len) if missing else nullcontext():
                self._evaluate_served(name, model)

    def _evaluate_served(self, name: str, model: Path) -> None:
        url = f"http://127.0.0.1:{PORT}/v1"
        for spread, temperature in SPREAD.items():
            self._evaluate(
                f"{name}-{spread}-served", "--policy.base_url", url, "--policy.model", SERVED,
                "--policy.tokenizer", str(model), "--eval.temperature", temperature, *self.world.served,
            )  # fmt: skip

    def _evaluate(self, name: str, *flags: str) -> None:
        out = self._result(name).parent
        self._once(
            self._result(name), "eval", "--out", str(out), "--config", str(REPOSITORY / self.world.recipe),
            *self._options(), "--eval.tasks", str(self.world.tasks), *flags,
        )  # fmt: skip
        self.evaluations.append(out)

    def _result(self, name: str) -> Path:
        return self.work / f"{self.name}-eval-{name}" / "result.json"

    def _options(self) -> list[str]:
        return [word for option in self._filled(self.world.options) for word in ("--env.options", option)]

    def _filled(self, words: Sequence[str]) -> list[str]:
        return [word.replace("{work}", str(self.work)) for word in words]

    def _once(self, product: Path, *words: str, mark: bool = False) -> None:
        """Run a command unless ``product`` exists; ``mark`` makes it for a command that makes nothing of that name."""
        self.lines.append(shlex.join(["gagpo", *words]))
        if not product.exists():
            sys.stdout.write(f"{self.lines[-1]}\n")
            sys.stdout.flush()
            gagpo(*words)
            if mark:
                product.touch()


@contextmanager
def served(model: Path, max_len: int) -> Iterator[None]:
    """Run vLLM's server with ``model``, on a CPU, until the block ends."""
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", SERVED, "--host", "127.0.0.1", "--port", str(PORT), "--dtype", "float32",
        "--max-model-len", str(max_len), "--enforce-eager", "--kv-cache-memory-bytes", str(2**29),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not _healthy(f"http://127.0.0.1:{PORT}/health"):
            if process.poll() is not None:
                raise RuntimeError(f"vLLM's server ended with status {process.returncode}: {shlex.join(command)}")
            time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def keep(evaluations: Sequence[Path], out: Path, work: Path) -> None:
    """Copy results and protocols to ``out``, without the paths of this machine, and write the table."""
    for evaluation in evaluations:
        folder = out / evaluation.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in _KEPT:
            text = (evaluation / name).read_text(encoding="utf-8")
            (folder / name).write_text(text.replace(str(work), "runs").replace(str(REPOSITORY), "."), encoding="utf-8")
    results = [EvaluationFolder(out / evaluation.name).result() for evaluation in evaluations]
    (out / "table.md").write_text(table(results), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, models and evaluations")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--worlds", nargs="+", choices=tuple(WORLDS), default=list(WORLDS))
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)

    scripts = [Script(name, work) for name in options.worlds]
    for script in scripts:
        script.prepare()
        script.evaluate()
    if options.out.exists():
        shutil.rmtree(options.out)
    options.out.mkdir(parents=True)
    keep([evaluation for script in scripts for evaluation in script.evaluations], options.out, work)
    commands = "\n".join(line for script in scripts for line in script.lines)
    commands = commands.replace(str(work), "runs").replace(f"{REPOSITORY}/", "")
    (options.out / "commands.txt").write_text(f"{commands}\n", encoding="utf-8")
    (options.out / "machine.json").write_text(json.dumps(machine(), indent=2) + "\n", encoding="utf-8")
    sys.stdout.write((options.out / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
