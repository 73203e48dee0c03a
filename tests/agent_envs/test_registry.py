from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import agent_envs
from agent_envs import Needs, PromptTemplate, RegistryError, registry
from agent_envs.vault import VaultEnv

PLUGIN = """
from agent_envs import register
from agent_envs.vault import VaultEnv

@register("{name}")
class Mine(VaultEnv):
    pass
"""


def test_make_passes_options() -> None:
    assert agent_envs.make("vault", max_steps=20).max_steps == 20
    assert agent_envs.get("vault") is VaultEnv
    assert {"alfworld", "vault"} <= set(agent_envs.names())


def test_unknown_names_and_options_say_what_there_is() -> None:
    with pytest.raises(RegistryError, match=r"no environment 'volt'; registered are: .*vault"):
        agent_envs.make("volt")
    with pytest.raises(RegistryError, match=r"no option 'sise'; its options are: size, keys, "):
        agent_envs.make("vault", sise=3)


def test_required_options_are_asked_for() -> None:
    @agent_envs.register("demanding")
    class Demanding(VaultEnv):
        def __init__(self, folder: str) -> None:
            super().__init__()

    with pytest.raises(RegistryError, match="needs the option 'folder'"):
        agent_envs.make("demanding")
    assert Demanding.name == "demanding"


def test_duplicates_and_strangers_are_refused() -> None:
    with pytest.raises(RegistryError, match="'vault' is registered already"):
        agent_envs.register("vault")(VaultEnv)
    with pytest.raises(RegistryError, match="'alfworld' is registered already"):
        registry.register_lazy("alfworld", "somewhere:Else")
    with pytest.raises(RegistryError, match="not a subclass of TextEnv"):
        agent_envs.register("number")(int)


def test_lazy_targets() -> None:
    registry.register_lazy("later", "agent_envs.vault:VaultEnv")
    assert isinstance(agent_envs.make("later"), VaultEnv)
    registry.register_lazy("gone", "agent_envs.vault:Nothing")
    with pytest.raises(RegistryError, match="'gone' could not be loaded"):
        agent_envs.make("gone")
    with pytest.raises(RegistryError, match="'module:Class'"):
        registry.register_lazy("odd", "agent_envs.vault")


def test_listing_imports_no_environment() -> None:
    code = "import sys, agent_envs; agent_envs.names(); sys.exit('agent_envs.vault' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_with_an_env_file_is_all_it_takes(tmp_path: Path) -> None:
    shutil.copytree(Path(agent_envs.__file__).parent, tmp_path / "agent_envs")
    folder = tmp_path / "agent_envs" / "cellar"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "env.py").write_text(PLUGIN.format(name="cellar"))
    (tmp_path / "agent_envs" / "pantry").mkdir()
    odd = tmp_path / "agent_envs" / "odd"
    odd.mkdir()
    (odd / "env.py").write_text(PLUGIN.format(name="even"))
    code = """
import sys
from agent_envs import RegistryError, get, make, names
assert "cellar" in names() and "pantry" not in names(), names()
assert "agent_envs.cellar.env" not in sys.modules
assert make("cellar").name == get("cellar").name == "cellar"
try:
    get("odd")
except RegistryError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == (
        "Environment 'odd' could not be loaded from 'agent_envs.odd.env': no class in it is decorated with "
        "@register('odd')\n"
    )


def test_built_in_names_are_taken_before_they_are_imported(tmp_path: Path) -> None:
    path = tmp_path / "thief.py"
    path.write_text(PLUGIN.format(name="webshop"))
    with pytest.raises(RegistryError, match="'webshop' is registered already"):
        agent_envs.load_plugin(str(path))


def test_missing_packages_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = Needs(("json", "no_such_one", "no_such_other"), extra="some")
    monkeypatch.setattr(VaultEnv, "needs", needs)
    with pytest.raises(
        RegistryError,
        match=r"environment 'vault' needs no_such_one and no_such_other: run pip install -e '.\[some\]' in",
    ):
        agent_envs.make("vault")


def test_built_in_environments_can_be_listed_without_their_packages() -> None:
    code = """
import sys
for name in ("alfworld", "textworld", "regex"):
    sys.modules[name] = None
from agent_envs import get, names
assert all(get(name).name == name for name in names())
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_plugin_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN.format(name="mine"))
    agent_envs.load_plugin(str(path))
    agent_envs.load_plugin(str(path))
    assert agent_envs.make("mine").reset("vault-train-0", 0).observation


def test_plugin_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugin_module_of_test.py").write_text(PLUGIN.format(name="other"))
    monkeypatch.syspath_prepend(str(tmp_path))
    agent_envs.load_plugin("plugin_module_of_test")
    assert "other" in agent_envs.names()


def test_a_plugin_that_was_imported_before_is_found() -> None:
    agent_envs.load_plugin("agent_envs.vault")


def test_plugin_errors(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no plugin file"):
        agent_envs.load_plugin(str(tmp_path / "absent.py"))
    with pytest.raises(RegistryError, match="failed on import: ModuleNotFoundError"):
        agent_envs.load_plugin("no_such_module_anywhere")
    with pytest.raises(RegistryError, match="registers no environment"):
        agent_envs.load_plugin("json")
    empty = tmp_path / "empty.py"
    empty.write_text("")
    for _ in range(2):
        with pytest.raises(RegistryError, match="registers no environment"):
            agent_envs.load_plugin(str(empty))
    empty.write_text("import sys; sys.exit(4)")
    with pytest.raises(RegistryError, match="failed on import: SystemExit: 4"):
        agent_envs.load_plugin(str(empty))
    broken = tmp_path / "broken.py"
    broken.write_text(PLUGIN.format(name="half") + "\n1 / 0\n")
    with pytest.raises(RegistryError, match="ZeroDivisionError"):
        agent_envs.load_plugin(str(broken))
    assert "half" not in agent_envs.names()
    broken.write_text(PLUGIN.format(name="half"))
    agent_envs.load_plugin(str(broken))
    assert "half" in agent_envs.names()


def test_the_prompt_is_the_classs_unless_it_varies() -> None:
    made = []

    class Counted(VaultEnv):
        def __init__(self, language: str = "English") -> None:
            super().__init__()
            made.append(language)
            self.prompt = PromptTemplate(turn=f"{language}: {{{{ observation }}}}")

    agent_envs.register("counted-vault")(Counted)
    assert registry.prompt("counted-vault", {"language": "Dutch"}) is VaultEnv.prompt
    assert made == []
    Counted.prompt_varies = True
    assert registry.prompt("counted-vault", {"language": "Dutch"}).turn == "Dutch: {{ observation }}"
    assert registry.prompt("counted-vault", {"max_steps": 3}).turn == "English: {{ observation }}"
