"""The command `ocl-msf`: its help, how it reads options, how it ends, and what has become of older commands."""

import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import typer

from ocl_msf import _renamed
from ocl_msf.cli import app, main
from ocl_msf.cli._app import ending_in_order
from ocl_msf.data.convert import DATASETS
from ocl_msf.data.raw.filter import PAPER
from ocl_msf.experiments import tasks
from ocl_msf.files import DataError


def leaves(command, words=("ocl-msf",)):
    """All commands by their words; groups too."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from leaves(inner, (*words, name))


COMMANDS = dict(leaves(typer.main.get_command(app)))
GROUPS = {words for words, command in COMMANDS.items() if hasattr(command, "commands")}
each_command = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


def parse(line):
    """What a command understands of a line, by the names of its parameters; nothing runs."""
    words = shlex.split(line)
    depth = max(depth for depth in range(len(words) + 1) if tuple(words[:depth]) in COMMANDS)
    assert tuple(words[:depth]) not in GROUPS, f"{line} is no command"
    return COMMANDS[tuple(words[:depth])].make_context(line, words[depth:]).params


@each_command
def test_help_says_what_a_command_does_and_shows_an_example_that_it_understands(words, capsys):
    main([*words[1:], "--help"])
    text = capsys.readouterr().out
    assert f"Usage: {' '.join(words)} " in text
    examples = [line.strip() for line in text.split("Example")[-1].splitlines()[1:]]
    assert examples and all(example.startswith(" ".join(words)) for example in examples)
    for example in examples:
        for line in example.split(" && "):
            assert parse(line)


@each_command
def test_every_option_is_explained_in_the_list_of_its_command(words):
    for parameter in COMMANDS[words].params:
        if parameter.name not in {"seed", "variant", "split"}:
            assert parameter.help, parameter.name


def test_help_and_completion_need_no_library_that_takes_long_to_load():
    heavy = {"torch", "numpy", "pytorch_lightning", "hydra", "matplotlib"}
    code = f"import sys; from ocl_msf.cli import main; main(['tables', '--help']); print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.endswith("\nset()\n")


@pytest.mark.parametrize(
    "typed, offered", [("con", {"convert"}), ("tables table7", {"table7"}), ("convert v", {"voc"})]
)
def test_a_shell_can_complete_words(typed, offered, monkeypatch, capsys):
    monkeypatch.setenv("_OCL_MSF_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"ocl-msf {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
    main([])
    assert set(capsys.readouterr().out.split()) == offered


def test_an_option_takes_all_values_up_to_the_next_option():
    chosen = parse("ocl-msf tables table4 --seeds 3 5 --set a=1 b=2 --dry-run")
    assert (list(chosen["seeds"]), list(chosen["settings"]), chosen["dry_run"]) == ([3, 5], ["a=1", "b=2"], True)
    assert list(parse("ocl-msf tables table4 --seeds 3 --seeds 5")["seeds"]) == [3, 5]
    splits = ["val=0:9", "train=9:"]
    assert list(parse(f"ocl-msf convert clevrtex a b --splits {' '.join(splits)}")["splits"]) == splits


@pytest.mark.parametrize("dataset", DATASETS)
def test_a_converter_has_an_option_for_each_of_its_parameters(dataset):
    """With the same defaults; the filter of objects is one parameter, but several options."""
    module = DATASETS[dataset]
    parameters = dict(list(inspect.signature(module.prepare).parameters.items())[1:])
    options = {option.name: option for option in COMMANDS["ocl-msf", "convert", dataset].params}
    if parameters.pop("object_filter", None):
        for name in ("max_objects", "min_box_area", "small"):
            assert options[name].default == getattr(PAPER, name)
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert {name: options[name].default or defaults[name] for name in parameters} == defaults
    for variant in getattr(module, "VARIANTS", ()):
        assert parse(f"ocl-msf convert {dataset} a b --variant {variant}")["variant"] == variant


@pytest.mark.parametrize(
    "typed, overrides", [("", []), ("--slurm", [""]), ("--slurm a=1 b=2", ["a=1", "b=2"]), ("--slurm --dry-run", [""])]
)
def test_slurm_may_stand_alone(typed, overrides):
    assert list(parse(f"ocl-msf tables table4 {typed}")["slurm"] or ()) == overrides


@pytest.mark.parametrize(
    "line, message",
    [
        ("frobnicate", "No such command"),
        ("tables table4 --seeds", "--seeds"),
        ("tables table4 --seeds x", "valid integer"),
        ("tables table4 --gpus 2 --slurm", "not both"),
        ("convert coco a b --splits test", "test is not one of train, val"),
        ("convert voc a b --variant test", "train"),
        ("scenes out --size 64", "64 is not WIDTHxHEIGHT"),
        ("scenes out --count 0", "--count"),
        ("edit run a.png b.png --swap 2", "2 is not of the form A:B"),
        ("edit run a.png", "missing|Missing|2 values"),
        ("demo --scenes 200", "--scenes"),
    ],
)
def test_a_wrong_command_line_is_explained(line, message, capsys):
    with pytest.raises(SystemExit) as ending:
        main(shlex.split(line))
    assert ending.value.code == 2 and re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("error", [DataError("a file is broken"), ValueError("a is no b"), FileNotFoundError("no c")])
def test_what_a_user_can_correct_is_one_line(error):
    with pytest.raises(SystemExit, match=f"^error: {error}$"), ending_in_order():
        raise error


def test_a_mistake_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), ending_in_order():
        raise ZeroDivisionError


def test_the_handler_of_signals_is_as_before():
    before = signal.getsignal(signal.SIGTERM)
    with ending_in_order():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number, word", [(signal.SIGINT, "Interrupted"), (signal.SIGTERM, "Terminated")])
def test_an_interrupted_command_says_how_to_go_on(tmp_path, number, word):
    command = [sys.executable, "-m", "ocl_msf", "scenes", str(tmp_path), "--count", "9000", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts)
    while not list(tmp_path.glob("*/*/*.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    lines = process.communicate(timeout=600)[1].splitlines()  # returns when the workers, who share the pipe, have ended
    assert process.returncode == 128 + number
    assert lines[-1] == f"{word}. {tasks.AGAIN}"


def _heed_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # in the background it would be ignored


@pytest.mark.parametrize("name", sorted(_renamed.COMMANDS))
def test_a_module_that_was_a_command_prints_the_new_one(name):
    done = subprocess.run([sys.executable, "-m", name, "--help"], capture_output=True, text=True)
    match = re.search(r"the command is `(ocl-msf \w+)` now", done.stderr)
    assert done.returncode == 1 and done.stdout == "" and tuple(match.group(1).split()) in COMMANDS


def test_every_module_that_was_a_command_is_known():
    """Those of the first release, by their names of then and of today."""
    first = {"data.convert", "data.inspect", "data.scenes", "data.moving_scenes"}
    first |= {"tables", "protocol", "figures", "report", "editing"}
    names = {f"ocl_msf.{name}" for name in first}
    assert set(_renamed.COMMANDS) == names | {_renamed.MODULES.get(name, name) for name in names}


@pytest.mark.parametrize(
    "chosen, count", [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_waiting_threads_spin_shortly_unless_the_user_says_otherwise(chosen, count):
    """Of the program itself, and of what it starts."""
    code = (
        "import os, subprocess, sys; from ocl_msf.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    )
    child = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"
    code += f"; subprocess.check_call([sys.executable, '-c', {child!r}])"
    unset = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {**{name: value for name, value in os.environ.items() if name not in unset}, **chosen}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert printed.stdout.split()[-1] == count
