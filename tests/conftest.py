"""What all tests share: which files an environment can import, and fixtures."""

import ast
import os
import runpy
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch is imported: waiting threads would take the cores
TESTS = Path(__file__).parent
SERVER = runpy.run_path(str(TESTS / "program_server.py"))
runpy.run_path(str(TESTS / "kept_configs.py"))["keep_configs"]()
FOLDERS = {TESTS / "host": {"needs_host"}, TESTS / "host" / "contract": {"needs_host", "oclf"}}


def markers_of(path):
    """Names of the markers of all tests in a file: those of its folder, and those in its `pytestmark`."""
    nodes = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign)]
    marks = [node.value for node in nodes if getattr(node.targets[0], "id", "") == "pytestmark"]
    names = {part.attr for mark in marks for part in ast.walk(mark) if isinstance(part, ast.Attribute)}
    return names | FOLDERS.get(path.parent, set())


def pytest_ignore_collect(collection_path, config):
    """A file that `-m` leaves out as a whole is not imported either: the framework that it imports may be missing."""
    if collection_path.is_file() and collection_path.match("test_*.py"):
        chosen, markers = config.getoption("markexpr"), markers_of(collection_path)
        without_host, in_oclf = "not needs_host" in chosen, chosen.startswith("oclf")
        without_app = sys.version_info < (3, 10)
        if (
            (without_host and "needs_host" in markers)
            or (in_oclf and "oclf" not in markers)
            or (without_app and "needs_app" in markers)
        ):
            return True


def pytest_itemcollected(item):
    for name in FOLDERS.get(item.path.parent, ()):
        item.add_marker(name)


def pytest_collection_modifyitems(items):
    """Files with the most slow tests come first: in parallel, the last ones are to end at the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """DATASET_PREFIX with a ClevrTex of 12 little scenes: 4 to validate, 8 to train."""
    from ocl_msf.cli import main
    from ocl_msf.data.synthetic.scenes import make_scenes

    folder = tmp_path_factory.mktemp("shards")
    make_scenes(folder / "raw", 12, size=(96, 72), workers=1)
    raw = str(folder / "raw" / "clevrtex_full")
    main(["convert", "clevrtex", raw, str(folder), "--splits", "val=0:4", "train=4:", "--size", "64", "--workers", "1"])
    return folder


SMALL = [
    "+msf/preset=cpu",
    "trainer.max_steps=1",
    "dataset.eval_batch_size=3",
    "experiment.vae={dim:8,hidden_dim:8}",
    "experiment.slots={number:4,dim:8}",
    "experiment.encoder.dim=4",
    "experiment.decoder={dim:16,num_layers:1,num_heads:2,dropout:0}",
    "experiment.diffusion={channels:[8,16],num_layers:1,num_heads:2}",
    "experiment.image_size=32",
    "seed=0",
]


@pytest.fixture(scope="session")
def make_run(tmp_path_factory):
    """Make the folder of a run of stage 2 of an experiment, as training would leave it, with random weights."""
    import hydra
    import pytorch_lightning
    import torch
    from hydra.core.global_hydra import GlobalHydra
    from ocl.cli.train import build_model_from_config
    from omegaconf import OmegaConf

    def make(experiment, *overrides):
        GlobalHydra.instance().clear()
        with hydra.initialize_config_module("configs", version_base="1.1"):
            config = hydra.compose("training_config", overrides=[f"+experiment=msf/{experiment}", *SMALL, *overrides])
        torch.manual_seed(0)
        model = build_model_from_config(config)
        with torch.no_grad():
            for name, x in model.named_buffers():
                if name.endswith("guidance.loaded"):
                    x.fill_(1)
        folder = tmp_path_factory.mktemp("run") / experiment
        checkpoint = folder / "lightning_logs" / "version_0" / "checkpoints" / "epoch0000-step0000001.ckpt"
        (folder / "config").mkdir(parents=True)
        checkpoint.parent.mkdir(parents=True)
        OmegaConf.save(config, folder / "config" / "config.yaml")
        written_by = {"pytorch-lightning_version": pytorch_lightning.__version__}
        torch.save({"state_dict": model.state_dict(), "global_step": 1, **written_by}, checkpoint)
        return folder

    return make


@pytest.fixture(scope="session")
def slate_run(make_run):
    """A run of SLATE with 4 slots on squares of 32 pixels."""
    return make_run("slate_clevrtex")


@pytest.fixture(scope="session")
def distributions(tmp_path_factory):
    """A folder with the sdist and the wheel of both distributions."""
    folder = tmp_path_factory.mktemp("distributions")
    for source in (TESTS.parent, TESTS.parent / "host"):
        build = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
        subprocess.run(build, cwd=source, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="session")
def run_program(tmp_path_factory):
    """Run `python -m MODULE ARGUMENTS` in a folder, as `program_server` says."""
    with SERVER["program_server"](tmp_path_factory.mktemp("printed")) as run:
        yield run


@pytest.fixture
def forked(run_program, monkeypatch):
    """Programs that are started in the background are started by `run_program`, one after the other."""
    monkeypatch.setattr(subprocess, "Popen", SERVER["popen"](run_program))


@pytest.fixture(scope="session")
def run_limited():
    """`run_in_time`, for tests in any folder."""
    return run_in_time


def run_in_time(command, seconds=900, **options):
    """Run a command; after the limit all its processes print the stacks of their threads, and are ended.

    Args:
        command: Program and arguments.
        seconds: The limit.
        **options: Of `subprocess.Popen`.

    Returns:
        The exit status, and everything that was printed.
    """
    environment = dict(options.pop("env", os.environ), PYTHONFAULTHANDLER="1")  # prints stacks at SIGABRT
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes, **options) as process:
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGABRT)
            printed, _ = process.communicate()
    return process.returncode, printed
