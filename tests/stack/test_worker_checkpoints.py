"""What the driver makes of the workers' answers about checkpoints, with stand-ins for the workers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openrlhf_gagpo.errors import RunError
from openrlhf_gagpo.training.settings import CheckpointSettings


class Group:
    """Workers of a model that write and read a file; ``failure`` is raised by one of them, as Ray reports it."""

    def __init__(self, name: str) -> None:
        self.name = self.role = name
        self.copies, self.limit_s = 1, 1.0
        self.failure: Exception | None = None

    def async_run_method(self, method: str, folder: str, loop: str = "") -> list[Any]:
        part = Path(folder) / self.name
        if method == "read_checkpoint":
            return [lambda: (part / "state").read_text(), lambda: ""]
        return [lambda: self._write(part, loop), lambda: None]

    def _write(self, part: Path, loop: str) -> None:
        if self.failure is not None:
            raise self.failure
        part.mkdir()
        (part / "state").write_text(loop)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the checkpoints of a run with a policy and a critic."""
    from openrlhf_gagpo.backends.distributed import checkpoints

    def get(refs: list[Any], timeout: float) -> list[Any]:
        try:
            return [ref() for ref in refs]
        except OSError as error:
            raise task_error(error) from error

    monkeypatch.setattr(checkpoints.ray, "get", get)
    monkeypatch.chdir(tmp_path)
    settings = CheckpointSettings(Path("kept"), Path("model"), 2)

    def made(policy: Group, critic: Group | None, **flags: bool) -> Any:
        arguments = SimpleNamespace(ckpt=SimpleNamespace(**{"disable_ds": False, "save_hf": False} | flags))
        return checkpoints.WorkerCheckpoints(settings, arguments, policy, critic)

    return made


def task_error(error: Exception) -> Exception:
    from ray.exceptions import RayTaskError

    return RayTaskError("write", "ray::PolicyActor.write()\n  a long trace", error).as_instanceof_cause()


def test_one_folder_holds_both_models_and_the_loop(make: Any, tmp_path: Path) -> None:
    checkpoints = make(Group("actor"), Group("critic"), save_hf=True)
    assert checkpoints.load() is None
    checkpoints.save("global_step3", {"iteration": 3})
    assert json.loads((tmp_path / "kept/global_step3/actor/state").read_text()) == {"iteration": 3}
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"global_step3", "global_step3_hf", "latest"}
    restored = checkpoints.load()
    # By its whole path, since workers may have another working directory.
    assert (restored.state, restored.path) == ({"iteration": 3}, tmp_path / "kept" / "global_step3")


def test_a_run_may_keep_models_alone(make: Any, tmp_path: Path) -> None:
    checkpoints = make(Group("actor"), None, disable_ds=True, save_hf=True)
    checkpoints.save("global_step3", {"iteration": 3})
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"global_step3_hf"}
    assert checkpoints.load() is None


def test_what_a_worker_cannot_write_is_told_in_its_words(make: Any, tmp_path: Path) -> None:
    critic = Group("critic")
    checkpoints = make(Group("actor"), critic)
    checkpoints.save("global_step1", {"iteration": 1})
    critic.failure = OSError(28, "No space left on device")
    with pytest.raises(RunError, match=r"global_step2 cannot be written: \[Errno 28\] No space left on device; ear"):
        checkpoints.save("global_step2", {"iteration": 2})
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"global_step1", "latest"}
    # What has nothing to do with files stays what it is.
    critic.failure = task_error(KeyError("a defect"))
    with pytest.raises(KeyError):
        checkpoints.save("global_step2", {"iteration": 2})
    (tmp_path / "kept/global_step1/files.json").unlink()
    (tmp_path / "kept/global_step1/critic/state").unlink()
    with pytest.raises(RunError, match=r"because of FileNotFoundError: \[Errno 2\]"):
        checkpoints.load()


@pytest.mark.parametrize("interrupted", [False, True])
def test_checkpoints_of_the_first_release_are_read(make: Any, tmp_path: Path, interrupted: bool) -> None:
    """OpenRLHF wrote each model's into a folder of its own."""
    root = tmp_path / "kept"
    for tag in ("global_step2", "global_step4"):
        for name in ("_actor", "_critic"):
            (root / name / tag).mkdir(parents=True)
            (root / name / tag / "state").write_text(json.dumps({"iteration": int(tag[-1])}))
            (root / name / "latest").write_text(tag)
    if interrupted:
        (root / "global_step4").mkdir()
        (root / "_critic/global_step4").rename(root / "global_step4/critic")
    restored = make(Group("actor"), Group("critic")).load()
    assert restored.state == {"iteration": 4}
    assert {path.name for path in root.iterdir()} == {"global_step2", "global_step4"}
    assert all((root / "global_step2" / name / "state").is_file() for name in ("actor", "critic"))
