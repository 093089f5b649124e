"""The command line: configs by name, settings, what is answered by one message."""

import io
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import ml_collections
import pytest
from ml_collections import config_dict

from configs import demo, train_hash
from launch import command, settings, terminal
from launch import main as launch_main
from saat_jax import objectives, options, parallel

ROOT = pathlib.Path(__file__).parents[1]


def _process(*arguments, **changes):
    """A command run from a checkout by the fewest words, as `saat-jax` when installed."""
    return subprocess.run(
        [sys.executable, "-m", "saat_jax", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "", **changes},
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- configs ---


def test_a_config_is_found_by_path_and_by_name():
    wanted = demo.get_config("smoke").to_dict()
    for place in ("demo:smoke", "configs/demo.py:smoke", f"{ROOT}/configs/demo.py:smoke"):
        config = settings.load_config(place)
        assert config.to_dict() == wanted and config.is_locked
    assert settings.load_config("demo").to_dict() == demo.get_config().to_dict()


def test_a_file_of_ones_own_comes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = "import ml_collections\ndef get_config(): return ml_collections.ConfigDict({'mine': 1})"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.py").write_text(own)
    assert settings.load_config("configs/demo.py").to_dict() == {"mine": 1}
    assert "mine" not in settings.load_config("demo")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1\ny = 'open", r"own\.py, line 2: unterminated string literal .*: y = 'open"),
        ("x = 1", r"own\.py: it has no function get_config"),
        ("get_config = 3", r"own\.py: it has no function get_config"),
        ("def get_config(variant=''): return {'seed': 0}", "returns a dict; return a ml_coll"),
        ("def get_config():\n    return 1 / 0", r"own\.py, line 2: ZeroDivisionError: division"),
        ("import nosuch_package", r"own\.py, line 1: ModuleNotFoundError: No module named 'nosuch"),
        ("\0", r"own\.py"),
    ],
)
def test_a_config_that_fails_is_answered_with_file_and_line(tmp_path, code, message):
    (tmp_path / "own.py").write_text(code)
    with pytest.raises(ValueError, match=message):
        settings.load_config(str(tmp_path / "own.py"))


@pytest.mark.parametrize("place", ["nosuch", "nosuch.py", "configs/nosuch.py:small", ".", ""])
def test_a_config_that_is_not_there_is_answered_with_those_that_are(place):
    with pytest.raises(ValueError, match=r"no config .*'attacks', 'audit', 'defenses', 'demo'"):
        settings.load_config(place)


def test_a_file_of_another_kind_is_no_config(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is no Python file"):
        settings.load_config(str(tmp_path / "config.json"))


def test_the_list_names_each_config_its_summary_and_variants(capsys):
    assert command.main(["configs"]) == 0
    listed = capsys.readouterr().out
    assert "demo  demo:smoke" in listed
    assert demo.__doc__.partition("\n")[0] in listed
    assert "train_hash:DATASET,OBJECTIVE,NETWORK,BITS" in listed
    assert "common" not in listed


# --- settings ---


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed=3", 3),
        ("task=None", "None"),
        ("donate=False", False),
        ("model.widths=(4,8,8)", (4, 8, 8)),
        ("model.widths=4,8", (4, 8)),
        ("attacks.mainstay.epsilon=0.0625", 0.0625),
        ("attacks.mainstay.epsilon=4/255", 4 / 255),
        ("attacks.mainstay.epsilon= 4 / 255 ", 4 / 255),
        ("attacks.mainstay.epsilon=1e-3", 1e-3),
        ("evaluation.models=('hardened',)", ("hardened",)),
        ("evaluation.models='hardened'", ("hardened",)),
        ("data.resize=256", 256),
        ("data.resize=None", None),
    ],
)
def test_a_setting_has_the_type_of_its_field(setting, value):
    config = demo.get_config("smoke")
    config.data.resize = config_dict.FieldReference(None, int)
    config.lock()
    settings.override(config, [f"--config.{setting}"])
    *sections, field = setting.partition("=")[0].split(".")
    found = config
    for part in sections:
        found = found[part]
    assert found[field] == value and type(found[field]) is type(value)


def test_a_setting_may_stand_in_two_words():
    config = settings.load_config("demo:smoke")
    settings.override(config, ["--config.seed", "3", "-config.model.num_bits=16"])
    assert (config.seed, config.model.num_bits) == (3, 16)


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_every_option_of_an_objective_can_be_set(name):
    config = settings.load_config("lists:small")
    declared = options.declared(objectives.OBJECTIVES[name])
    arguments = [f"--config.objective.{option}={value}" for option, value in declared.items()]
    # The name may come last.
    settings.override(config, [*arguments, f"--config.objective.name={name}"])
    assert config.objective.to_dict() == {"name": name, **declared}


def test_radii_are_fractions_or_decimals():
    config = settings.load_config("demo")
    settings.override(config, ["--config.evaluation.epsilons=(1/255, 0.0157,8/255)"])
    assert config.evaluation.epsilons == (1 / 255, 0.0157, 8 / 255)
    # What is a literal already is no fraction.
    settings.override(config, ["--config.transfer.models=('runs/a/1/2:x',)"])
    assert config.transfer.models == ("runs/a/1/2:x",)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--config.objective.margin=3", r"config.objective has no field 'margin'; .*'known_labels"),
        ("--config.pretrain.num_epoch=3", "config.pretrain has no field 'num_epoch'; it has .*did"),
        ("--config.nosuch.epsilon=3", "config has no field 'nosuch'; it has"),
        ("--config.seed.more=3", "config.seed is a value and has no field 'more'"),
        ("--config.model=3", "config.model is a section; set one of its fields"),
        ("--config.seed=0.5", "--config.seed=0.5: expected a whole number, got '0.5'"),
        ("--config.seed=4/255", "expected a whole number"),
        ("--config.seed", "needs a value: --config.seed=VALUE"),
        ("--config.donate=maybe", "expected true or false, got 'maybe'"),
        ("--config.attacks.mainstay.epsilon=4/0", "expected a number, such as 0.5 or 8/255"),
        ("--config.attacks.mainstay.epsilon=8/255/2", "expected a number"),
        ("--config.attacks.mainstay.epsilon=", "expected a number"),
        ("--config.evaluation.epsilons=(4/0,)", r"expected a tuple, such as .*\(4/255,8/255\)"),
        ("--config.model.widths=(4,", "expected a tuple, such as"),
        ("tasks=evaluate", "unknown argument 'tasks=evaluate'; settings are --config.NAME=VALUE"),
        ("--confg.seed=3", "unknown argument '--confg.seed=3'"),
        ("--config.=3", "unknown argument|no field"),
    ],
)
def test_a_wrong_setting_is_named(setting, message):
    with pytest.raises(ValueError, match=message):
        settings.override(settings.load_config("demo:smoke"), [setting])


def test_every_field_of_a_config_can_be_set_to_what_it_is():
    config = train_hash.get_config("nuswide,csq,alexnet,32").lock()

    def walk(section, place):
        for name, value in section.items():
            if isinstance(value, ml_collections.ConfigDict):
                walk(value, f"{place}{name}.")
            else:
                settings.set_field(config, place + name, str(value))

    before = config.to_dict()
    walk(config, "")
    assert config.to_dict() == before


# --- commands ---


def test_every_command_has_a_main_that_says_how_it_is_used(capsys):
    for name, (module, _, summary) in command.COMMANDS.items():
        assert f"  {name} " in command.usage() and summary in command.usage()
        if name != "configs":
            with pytest.raises(SystemExit) as ended:
                command.main([name, "--help"])
            assert ended.value.code == 0, module
            assert "usage" in capsys.readouterr().out


def test_the_first_word_may_be_left_out(monkeypatch):
    seen = []
    monkeypatch.setattr(launch_main, "main", seen.append)
    command.main(["--config=demo", "--workdir=x"])
    command.main(["run", "--config=demo", "--workdir=x"])
    assert seen == [["--config=demo", "--workdir=x"]] * 2


def test_an_unknown_command_is_answered_with_those_that_are():
    with pytest.raises(ValueError, match="unknown command 'trian'; expected one of .*'run'"):
        command.main(["trian"])


def test_the_module_runs_the_command_and_needs_no_folder_of_its_own(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "saat_jax", "configs"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert "demo:smoke" in process.stdout


@pytest.mark.parametrize("given", ["--config=demo", "--workdir=x"])
def test_a_missing_flag_is_named(given, capsys):
    missing = {"--config", "--workdir"} - {given.partition("=")[0]}
    with pytest.raises(SystemExit):
        launch_main.main([given])
    assert f"arguments are required: {missing.pop()}" in capsys.readouterr().err


# --- answers ---


def test_no_message_advises_to_install_what_no_index_has():
    for folder in ("saat_jax", "launch", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search("pip install .?saat", path.read_text()), path


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("epsilon must be"), 1, "ValueError: epsilon must be"),
        (PermissionError(13, "Permission denied", "/x"), 1, "Permission denied: '/x'"),
        (MemoryError("no 20 GiB"), 1, "take a smaller batch_size"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_what_a_user_can_mend_is_one_message(monkeypatch, capsys, error, status, message):
    monkeypatch.delenv("SAAT_TRACEBACK", raising=False)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)

    def main():
        raise error

    assert terminal.run(main) == status
    answer = capsys.readouterr().err
    assert message in answer if message else not answer
    assert "Traceback" not in answer


def test_a_fault_of_ours_keeps_its_traceback():
    def main():
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        terminal.run(main)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_every_terminal_can_show_what_is_printed(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert terminal.run(lambda: print("──── a → b, 祝 \udcff")) == 0
    shown = stream.buffer.getvalue().decode(encoding)
    assert shown == "---- a -> b, \\u795d \\udcff\n"


def test_a_platform_that_is_not_there_is_answered_with_what_is():
    process = _process(
        "--config=demo:smoke", "--workdir=/nonexistent/run", "--compilation_cache=",
        JAX_PLATFORMS="tpuu",
    )  # fmt: skip
    assert process.returncode == 1
    assert "no device of the platform 'tpuu'" in process.stderr
    assert "this machine has ['cpu']" in process.stderr
    assert "Traceback" not in process.stderr


def test_others_that_do_not_come_are_not_waited_for_without_end():
    start = time.monotonic()
    process = _process(
        *("--config=demo:smoke", "--workdir=/nonexistent/run", "--compilation_cache="),
        *("--distributed", "--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1"),
        "--wait=2",
    )
    assert process.returncode == 1
    assert "not all 2 processes came within 2 s to 127.0.0.1:9" in process.stderr
    assert "Traceback" not in process.stderr and "Check failure" not in process.stderr
    assert time.monotonic() - start < 60


def test_a_coordinator_without_a_port_is_refused():
    with pytest.raises(ValueError, match="must be ADDRESS:PORT, got 'host'"):
        parallel.start("host", 2, 0)


def test_ctrl_c_ends_with_one_line(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.main", "--config=demo:smoke", f"--workdir={tmp_path}/run",
         "--compilation_cache=", "--distributed", "--coordinator=127.0.0.1:9",
         "--num_processes=2", "--process_id=1"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "waiting up to 120 s" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert "interrupted" in process.communicate(timeout=60)[1]
    assert process.returncode == 130


def test_the_answer_to_a_closed_pipe_is_silence():
    process = subprocess.run(
        f"{sys.executable} -m saat_jax configs | true; exit ${{PIPESTATUS[0]}}",
        shell=True, executable="/bin/bash", cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert process.stderr == "" and process.returncode == 141
