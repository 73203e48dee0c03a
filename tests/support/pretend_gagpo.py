"""Stands in for ``gagpo`` where a test needs run folders but no training; imports nothing but the standard library.

The success of a run follows from its arguments: 0.1 for each unit of the learning rate's first digit, and 0.01 for each
seed. A start's success is the content of the file ``starts.json`` beside the recipes by the start's seed, or 0.3.
A run whose seed is in ``failing.json`` fails.
"""

import json
import sys
from pathlib import Path


def main(words: list[str]) -> int:
    flags = {word[2:]: words[place + 1] for place, word in enumerate(words[:-1]) if word.startswith("--")}
    if words[0] == "warmstart":
        folder = Path(flags["out"])
        folder.mkdir()
        (folder / "seed.txt").write_text(flags["seed"])
        return 0
    base = Path(flags["config"]).parents[3]
    if "--eval_only" in words:
        made = (Path(flags["actor.model_name_or_path"]) / "seed.txt").read_text()
        success = _read(base / "starts.json").get(made, 0.3)
    else:
        if flags["train.seed"] in _read(base / "failing.json"):
            sys.stderr.write("gagpo: error: told to fail\n")
            return 1
        success = 0.1 * int(str(flags.get("actor.adam.lr", "1"))[0]) + 0.01 * int(flags["train.seed"])
    run = Path(flags["run_dir"])
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(json.dumps({"values": {"train.seed": int(flags["train.seed"])}}))
    (run / "metrics.jsonl").write_text(json.dumps({"iteration": 1, "rollout/success": success}) + "\n")
    rows = [{"iteration": at, "split": "test", "eval/success": success * at} for at in (0, 1)]
    rows = rows[1:] if "--eval_only" in words else rows
    (run / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "run.json").write_text(json.dumps({"state": "finished", "git_commit": "abc"}))
    return 0


def _read(file: Path) -> dict[str, float]:
    return json.loads(file.read_text()) if file.is_file() else {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
