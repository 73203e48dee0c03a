"""``gagpo env``: what the commands print, how they end, and that input of any kind gets one clear answer."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

from agent_envs import Needs, registry
from openrlhf_gagpo.cli import main as cli
from openrlhf_gagpo.cli.env import parse
from openrlhf_gagpo.errors import ConfigError
from support.paths import REPOSITORY, SUPPORT

ROOT = REPOSITORY
HUNT = str(ROOT / "examples" / "external_env" / "number_hunt.py")
SMALL = ("--env.options", "train_tasks=4", "valid_tasks=1", "test_tasks=0")


@pytest.fixture
def plugin():
    return str(SUPPORT / "strange_vaults.py")


@pytest.fixture
def env(capsys, monkeypatch):
    """Runs ``gagpo env`` with piped input; returns exit status, stdout and stderr."""

    def run(*argv: str, stdin: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        status = cli.main(["env", *argv])
        return status, *capsys.readouterr()

    return run


def test_help_is_quick_and_imports_nothing_heavy():
    code = """
import sys
from openrlhf_gagpo.cli.main import main
from openrlhf_gagpo.errors import ConfigError
try:
    main(["env", "--help"])
except SystemExit as stop:
    print("STATUS", stop.code, [name for name in ("numpy", "textworld", "alfworld", "torch") if name in sys.modules])
"""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.rstrip().endswith("STATUS 0 []"), done.stderr
    # Twice the promised time, for busy machines.
    assert time.monotonic() - begin < 2


@pytest.mark.parametrize("argv", [["list"], ["check", "vault", "--split", "valid"], ["play", "vault"]])
def test_commands_import_no_training_stack(argv):
    code = f"""
import sys
from openrlhf_gagpo.cli.main import main
status = main(["env", *{argv!r}])
heavy = ("torch", "ray", "vllm", "deepspeed", "transformers", "openrlhf")
sys.exit(status or str([name for name in heavy if name in sys.modules] or ""))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stderr.strip() == ""


def test_list_has_one_line_per_environment(env):
    status, out, _ = env("list")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert status == 0
    assert set(lines) == set(registry.names())
    assert "train, valid, test" in lines["vault"]
    assert "size=3 keys=2 max_steps=14" in lines["vault"]


def test_list_shows_plugins_and_what_cannot_be_used(env, plugin, monkeypatch):
    registry.register_lazy("gone", "no_such_module_anywhere:Env")
    monkeypatch.setattr(registry.get("vault"), "needs", Needs(("json", "no_such_package"), extra="vault"))
    status, out, _ = env("list", "--plugin", plugin)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert status == 0
    assert "train, valid, test" in lines["timid-vault"]
    assert "could not be loaded" in lines["gone"]
    assert lines["vault"].endswith("[needs no_such_package: run pip install -e '.[vault]' in the checkout]")


def test_missing_packages_are_named(env, monkeypatch):
    for name in ("vault", "alfworld"):
        monkeypatch.setattr(registry.get(name), "needs", Needs(("no_such_package",), extra=name))
    sentence = "needs no_such_package: run pip install -e '.[{}]' in the checkout"
    status, _, err = env("play", "vault")
    assert (status, err) == (2, f"gagpo: error: environment 'vault' {sentence.format('vault')}\n")
    status, _, err = env("check", "vault")
    assert (status, err) == (1, f"gagpo: error: environment 'vault' {sentence.format('vault')}\n")
    status, _, err = env("generate", "alfworld", "--out", "x", "--split", "train", "--count", "1")
    assert (status, err) == (2, f"gagpo: error: environment 'alfworld' {sentence.format('alfworld')}\n")


def test_playing_what_the_expert_says_succeeds(env):
    task = registry.make("vault").tasks("valid")[1]
    status, out, _ = env("play", "vault", "--split", "valid", "--index", "1", stdin="?\n")
    assert status == 0
    assert f"vault, task {task}, seed 0, at most 14 steps" in out
    actions = []
    while "success" not in out:
        hints = [line.partition(": ")[2] for line in out.splitlines() if line.startswith("the expert would: ")]
        actions.append(hints[-1])
        _, out, _ = env("play", "vault", "--task", task, stdin="".join(f"{action}\n" for action in actions) + "?\n")
    assert "reward 1\n" in out
    assert out.endswith(f"success after {len(actions)} steps, return 1, score 1\n")


def test_play_takes_numbers_and_words_and_stops_when_asked(env):
    status, out, _ = env("play", "vault", stdin="1\n\nsing a song\nquit\n")
    first = registry.make("vault").reset("vault-train-0", 0).admissible_actions[0]
    assert status == 0
    assert f"1 {first}" in out
    assert out.count("not possible here") == 1
    assert out.count("Type a number") == 2
    assert out.endswith("stopped after 2 steps, return 0\n")
    assert env("play", "vault", stdin="")[1].endswith("stopped after 0 steps, return 0\n")


def test_play_asks_for_the_words_of_a_placeholder(env, plugin):
    first = registry.make("vault").reset("vault-train-0", 0).admissible_actions[0].removeprefix("go ")
    status, out, _ = env("play", "wordy-vault", "--plugin", plugin, stdin=f"1\n{first}\nquit\n")
    assert (status, "not possible here" in out) == (0, False)
    assert f"> 1\n<direction> {first}\n" in out
    assert out.endswith("stopped after 1 steps, return 0\n")
    _, out, _ = env("play", "wordy-vault", "--plugin", plugin, stdin="1\n\nquit\n")
    assert "That action needs words; choose again." in out
    assert out.endswith("stopped after 0 steps, return 0\n")


def test_play_ends_at_the_step_limit_and_knows_no_expert_where_there_is_none(env, plugin):
    status, out, _ = env(
        *("play", "helpless-vault", "--plugin", plugin, "--env.options", "max_steps=13", "train_tasks=2"),
        stdin="?\n" + "wait\n" * 13,
    )
    assert status == 0
    assert "this environment has no expert" in out
    assert out.endswith("step limit reached after 13 steps, return 0, score 0\n")


def test_play_shows_the_task_where_the_observation_lacks_it(env):
    status, out, _ = env("play", "number-hunt", "--env.plugin", HUNT, "--env.options", '{"limit": 4}', "limit=2")
    assert status == 0
    assert "Find the hidden number.\n" in out
    assert "It is between 1 and 2.\n" in out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ((), "the following arguments are required: COMMAND; `gagpo env --help` describes the arguments"),
        (("play", "volt"), "There is no environment 'volt'; registered are: "),
        (("play", "vault", "--task", "a", "--index", "1"), "--task names one task, so --split and --index"),
        (("play", "vault", "--task", "nope"), "vault has no task 'nope'"),
        (("play", "vault", "--split", "nope"), "vault has no split 'nope'"),
        (("play", "vault", "--index", "-1"), "--index is -1, but split 'train' of vault has tasks 0 to 1023"),
        (("play", "vault", "--split", "test", *SMALL), "split 'test' of vault has no tasks"),
        (("play", "vault", "--env.options", "size"), "--env.options wants a JSON object or key=value, not 'size'"),
        (("play", "vault", "--env.options", "sise=3"), "Environment 'vault' has no option 'sise'"),
        (("play", "vault", "--seed", "x"), "argument --seed: invalid int value: 'x'; `gagpo env play --help`"),
        (("check", "vault", "--tasks", "0"), "--tasks is 0; the contract is checked on at least 1 task of each split"),
        (("list", "--plugin", "absent.py"), "There is no plugin file 'absent.py'"),
        (("generate", "vault", "--out", "x"), "argument NAME: invalid choice: 'vault'"),
        (("generate", "alfworld", "--out", "x"), "the following arguments are required: --split, --count"),
        (("generate", "webshop", "--out", "x"), "the following arguments are required: --products"),
        (
            ("generate", "webshop", "--out", "x", "--products", "0"),
            "argument --products: 0 is not allowed, it must be at least 1; `gagpo env generate webshop --help`",
        ),
        (
            ("generate", "webshop", "--out", "x", "--products", "many"),
            "argument --products: invalid int value: 'many'",
        ),
        (("generate", "--plugin", "absent.py", "webshop"), "There is no plugin file 'absent.py'"),
        (("serve", "vault"), "argument NAME: invalid choice: 'vault'"),
        (("serve", "search_qa"), "the following arguments are required: --data_dir"),
        (
            ("serve", "search_qa", "--data_dir", "x", "--port", "70000"),
            "argument --port: 70000 is not allowed, it must be at most 65535",
        ),
        (
            ("serve", "search_qa", "--data_dir", "absent"),
            "data_dir of question answering is absent, which is not a folder",
        ),
    ],
)
def test_unusable_input_is_one_sentence(env, argv, sentence):
    status, out, err = env(*argv)
    assert (status, out) == (2, "")
    assert err.startswith(f"gagpo: error: {sentence}")
    assert err.count("\n") == 1


def test_check_plays_an_episode_in_a_worker(env):
    status, out, _ = env("check", "vault", *SMALL)
    assert status == 0
    assert "train 4, valid 1, test 0" in out
    assert "task vault-train-0, expert: success" in out
    assert "reset" in out
    assert "contract     kept in train, valid, with up to 2 tasks of each, in " in out
    assert out.endswith("result       ready\n")
    status, _, err = env("check", "vault", "--split", "train", "nope")
    assert (status, err) == (2, "gagpo: error: vault has no split 'nope'; it has train, valid, test\n")


def test_check_tells_what_is_wrong(env, plugin):
    status, out, err = env("check", "broken-vault", "--plugin", plugin, *SMALL)
    assert status == 1
    assert "Traceback" in out
    assert err == "gagpo: error: environment 'broken-vault' failed in step: KeyError: 'lost'\n"

    status, out, err = env("check", "helpless-vault", "--plugin", plugin, *SMALL)
    assert (status, err) == (0, "")
    assert "random actions: " in out

    status, _, err = env("check", "timid-vault", "--plugin", plugin, *SMALL)
    assert status == 1
    assert "the expert did not solve task vault-train-0 within 14 steps; raise max_steps" in err

    status, out, err = env("check", "vault", "--split", "valid", "--env.options", "max_steps=9")
    assert status == 1
    assert "Traceback" not in out
    assert "ask for fewer tasks" in err

    status, _, err = env("check", "vault", "--split", "test", *SMALL)
    assert (status, err) == (1, "gagpo: error: vault has no tasks in test; check --env.options\n")


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (("vault", "--split", "train", "test", *SMALL), "vault has no tasks in test; check --env.options"),
        (
            ("mortal-vault", *SMALL),
            "the worker process of environment 'mortal-vault' exited with status 9",
        ),
        (
            ("endless-vault",),
            "task vault-train-0 goes on after max_steps = 14 steps; let step 14 return truncated=True",
        ),
        (("mute-vault",), "the environment's step returned a NoneType: it must return a StepResult"),
        (
            ("misworded-vault",),
            "environment 'misworded-vault': the turn prompt template cannot be rendered: 'thought' is undefined; "
            "fix its prompt",
        ),
        (
            ("promptless-vault",),
            "environment 'promptless-vault' has no prompt; give its class an attribute prompt with a PromptTemplate",
        ),
    ],
)
def test_check_ends_with_what_to_mend(env, plugin, argv, sentence):
    status, out, err = env("check", *argv, "--plugin", plugin)
    assert (status, err) == (1, f"gagpo: error: {sentence}\n")
    assert "Traceback" not in out
    assert "ready" not in out


def test_check_plays_as_many_tasks_as_asked(env, plugin):
    status, out, err = env("check", "forgetful-vault", "--plugin", plugin, "--tasks", "1")
    assert (status, err) == (0, "")
    status, out, err = env("check", "forgetful-vault", "--plugin", plugin)
    assert status == 1
    assert "TypeError: Object of type set is not JSON serializable" in out
    assert err.startswith("gagpo: error: the contract of environments is broken: writing the info of reset as JSON ")


def test_check_wants_a_step_limit(env, plugin):
    _, _, err = env("check", "limitless-vault", "--plugin", plugin)
    assert err == "gagpo: error: the environment's max_steps is 'many'; make it a whole number of at least 1\n"


@pytest.fixture
def mapped():
    """A plugin with data and a generator of its own."""
    return ("--plugin", str(SUPPORT / "mapped_vault.py"))


def test_a_plugin_has_data_and_a_generator_like_a_built_in_environment(env, mapped, tmp_path):
    status, out, _ = env("list", *mapped)
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["mapped-vault"].endswith("folder=None pairs=False  [data: gagpo env generate mapped-vault]")

    folder = tmp_path / "maps"
    data = ("--env.options", f"folder={folder}")
    status, out, err = env("check", "mapped-vault", *mapped, *data)
    assert (status, err) == (1, f"gagpo: error: {folder} has no maps: run gagpo env generate mapped-vault\n")
    assert f"data         looked into {folder}\n" in out

    with pytest.raises(SystemExit):
        env("generate", "mapped-vault", "--help", *mapped)
    status, out, err = env("generate", "mapped-vault", "--out", str(folder), "--maps", "9", *mapped)
    assert status == 2
    assert "argument --maps: 9 is not allowed, it must be at most 8" in err
    making = ("generate", *mapped, "mapped-vault", "--out", str(folder), "--maps", "3", "--colours", "blue", "red")
    status, out, _ = env(*making)
    assert status == 0
    assert out.endswith(f"gagpo env play mapped-vault --env.options folder={folder}\n")
    assert [path.read_text() for path in sorted(folder.iterdir())] == ["blue red"] * 3
    assert env(*making)[::2] == (2, f"gagpo: error: {folder} cannot be used: File exists; choose another path\n")

    status, out, err = env("check", "mapped-vault", *mapped, *data)
    assert (status, err) == (0, "")
    assert f"data         looked into {folder}\n             3 maps\n" in out
    assert "tasks        train: 3 of 8\n" in out
    assert "contract     kept in train, with" in out
    status, out, err = env("check", "mapped-vault", *mapped, *data, "pairs=true")
    assert (status, err) == (0, "")
    assert "contract     kept in train, valid, with" in out


def test_a_plugin_says_how_its_packages_are_installed(env, mapped, monkeypatch):
    assert env("list", *mapped)[0] == 0
    monkeypatch.setattr(registry.get("mapped-vault"), "needs", Needs(("no_such_package",), install="such[all]"))
    for command in ("check", "play"):
        assert env(command, "mapped-vault", *mapped)[2] == (
            "gagpo: error: environment 'mapped-vault' needs no_such_package: run pip install such[all]\n"
        )


def test_openenv_serves_until_it_is_interrupted():
    words = [sys.executable, "-m", "openrlhf_gagpo.cli.main", "env", "openenv", "vault", "--port", "0", *SMALL]
    server = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        said = server.stdout.readline()
        address = said.split()[0]
        assert said == f"{address} serves vault to OpenEnv clients; Ctrl-C stops it\n"
        body = {"split": "train"}
        assert httpx.post(f"{address}/vault/num_tasks", json=body, trust_env=False).json() == {"num_tasks": 4}
    finally:
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=60)
    assert "Traceback" not in errors


def test_openenv_refuses_a_taken_port(env):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, _, errors = env("openenv", "vault", *SMALL, "--port", str(taken.getsockname()[1]))
    assert (status, errors.count("\n")) == (2, 1)
    assert "choose another port or host" in errors
    assert env("openenv", "volt")[0] == 2
    assert "--sessions at least 1" in env("openenv", "vault", "--sessions", "0")[2]


def test_play_shows_text_that_no_encoding_holds(env, plugin):
    status, out, _ = env("play", "surrogate-vault", "--plugin", plugin)
    assert status == 0
    assert "a \\ud800 b" in out


def test_parsed_options_are_values():
    assert parse(["check", "vault", "--env.options", "size=4", "--env.options", '{"keys": 1}']).options == {
        "size": 4,
        "keys": 1,
    }
    with pytest.raises(ConfigError):
        parse(["generate"])


def test_alfworld_from_nothing_to_a_checked_environment(env, tmp_path, monkeypatch):
    pytest.importorskip("alfworld")
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "data"))
    status, _, err = env("check", "alfworld")
    assert status == 1
    assert f"no ALFWorld games under {tmp_path / 'data' / 'json_2.1.1'}: make some with" in err

    argv = ("generate", "alfworld", "--out", str(tmp_path / "data"), "--split", "train", "--count", "3")
    types = ("--task_types", "pick_and_place_simple", "look_at_obj_in_light")
    status, out, _ = env(*argv, *types)
    assert status == 0
    assert out.endswith(f"gagpo env play alfworld --env.options data_dir={tmp_path / 'data'}\n")
    games = sorted((tmp_path / "data").rglob("game.tw-pddl"))
    stamps = [game.stat().st_mtime_ns for game in games]
    assert len(games) == 3
    assert env(*argv, *types)[0] == 0
    assert [game.stat().st_mtime_ns for game in sorted((tmp_path / "data").rglob("game.tw-pddl"))] == stamps

    status, out, err = env("check", "alfworld", "--split", "train")
    assert (status, err) == (0, "")
    assert "(variable ALFWORLD_DATA)" in out
    assert "3/3553" in out
    assert "2/790" in out
    assert "not the official games" in out
    assert "expert: success" in out
    status, _, err = env("check", "alfworld")
    assert status == 1
    assert "no games of split 'valid_seen'" in err
    assert "name the splits you need with --split" in err

    # The same games under names of the official data, which is not there in full; then one that was fetched by half.
    for number, game in enumerate(games):
        game.parent.rename(game.parent.with_name(f"trial_T20190906_{number:06}_000000"))
    assert "official games, but not all of them" in env("check", "alfworld", "--split", "train")[1]
    games = sorted((tmp_path / "data").rglob("game.tw-pddl"))
    games[0].unlink()
    assert "train: 1 games lack game.tw-pddl" in env("check", "alfworld", "--split", "train")[1]
    for game in games[1:]:
        game.unlink()
    status, _, err = env("check", "alfworld", "--split", "train")
    assert status == 1
    assert "3 games of split 'train'" in err
    assert "no game.tw-pddl: fetch the rest with `alfworld-download`" in err

    occupied = tmp_path / "file"
    occupied.write_text("")
    status, _, err = env("generate", "alfworld", "--out", str(occupied), "--split", "train", "--count", "1")
    assert status == 2
    assert "cannot be used: Not a directory; choose another path" in err
    status, _, err = env(*argv, "--size", "huge")
    assert (status, "no houses of size 'huge'" in err) == (2, True)


@pytest.fixture
def no_webshop_data(tmp_path, monkeypatch):
    pytest.importorskip("regex")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WEBSHOP_DATA", raising=False)


@pytest.mark.usefixtures("no_webshop_data")
def test_webshop_from_nothing_to_a_checked_environment(env, tmp_path):
    status, out, err = env("check", "webshop")
    assert (status, out.count("\n")) == (1, 1)
    assert "the WebShop environment has no data: run 'gagpo env generate webshop'" in err
    assert "WEBSHOP_DATA" in err

    shop = tmp_path / "shop"
    shop.mkdir()
    data = ("--env.options", f"data_dir={shop}")
    status, out, err = env("check", "webshop", *data)
    assert status == 1
    assert out.count(" missing  ") == 5
    assert "setup.sh (-d small or -d all) of the repository princeton-nlp/WebShop" in out
    assert f"{shop} has no items_shuffle.json and no items_ins_v2.json" in err

    status, out, _ = env("generate", "webshop", "--out", str(shop), "--products", "60", "--seed", "4")
    assert status == 0
    assert out.endswith(f"gagpo env play webshop --env.options data_dir={shop}\n")

    status, out, err = env("check", "webshop", *data, "test_goals=30", "nouns=words")
    assert (status, err) == (0, "")
    assert out.count(" missing  ") == 2
    assert "played: items_shuffle.json, items_ins_v2.json, items_human_ins.json" in out
    assert "60 products; synthetic goals: train " in out
    assert "test 30" in out
    assert "task train-0, expert: success" in out

    status, out, _ = env("check", "webshop", *data, "mode=clean", "human_goals=true", "nouns=words", "--split", "valid")
    assert status == 0
    assert "60 products; human goals: valid " in out

    (shop / "items_ins_v2.json").write_text("{")
    status, out, err = env("check", "webshop", *data)
    assert status == 1
    assert "Traceback" not in out
    assert "items_ins_v2.json cannot be read as JSON" in err


@pytest.mark.usefixtures("no_webshop_data")
def test_webshop_is_played_and_its_modes_have_the_splits_that_check_expects(env, tmp_path):
    assert env("generate", "webshop", "--out", str(tmp_path), "--products", "60")[0] == 0
    options = ("--env.options", f"data_dir={tmp_path}", "test_goals=30", "nouns=words")
    status, out, _ = env("play", "webshop", *options, stdin="?\nsearch[shoes]\nclick[nothing]\nquit\n")
    assert status == 0
    assert "the expert would: search[" in out
    assert "'Page 1 (Total results: " in out
    assert out.count("not possible here") == 1
    status, out, _ = env("play", "webshop", *options, stdin="1\nshoes\nquit\n")
    assert status == 0
    assert "1 search[<your query>]" in out
    assert "'Page 1 (Total results: " in out
    status, _, err = env("check", "webshop", *options, "--split", "valid")
    assert (status, err) == (2, "gagpo: error: webshop has no split 'valid'; it has train, test\n")
    status, out, _ = env("check", "webshop", *options, "mode=clean")
    assert status == 0
    assert "contract     kept in train, valid, test, " in out
