"""Both distributions: what they hold, their wheels in a new environment, and OCLF beside the host."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs_host
ROOT = Path(__file__).parent.parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def run(*command, **options):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finished = subprocess.run([str(word) for word in command], env=ENVIRONMENT, **pipes, **options)
    return finished.returncode, finished.stdout


@pytest.fixture(scope="module")
def python(distributions, tmp_path_factory):
    """The interpreter of an environment with everything that both depend on, and `ocl-msf[host]` from a folder."""
    folder = tmp_path_factory.mktemp("distribution")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (folder / "dependencies").mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(("ocl", "_ocl", "hydra_plugins")):
            (folder / "dependencies" / path.name).symlink_to(path)
    (packages / "dependencies.pth").write_text(str(folder / "dependencies"))
    pip = [sys.executable, "-m", "pip", "--python", python]
    status, printed = run(*pip, "install", "--no-index", "--find-links", distributions, "ocl-msf[host]")
    assert status == 0, printed
    return python


def contents(wheel):
    """The files of a wheel without the list of them, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("RECORD")}


@pytest.mark.parametrize("name", ["ocl_msf", "ocl_msf_host"])
def test_an_sdist_makes_the_wheel_of_the_checkout(distributions, tmp_path, name):
    (sdist,), (wheel,) = distributions.glob(f"{name}-*.tar.gz"), distributions.glob(f"{name}-*.whl")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path)
    (source,) = tmp_path.iterdir()
    status, printed = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=source)
    assert status == 0, printed
    assert contents(tmp_path / wheel.name) == contents(wheel)


def test_an_editable_install_copies_nothing_that_could_get_old(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel:editable", "-d", tmp_path]
    status, printed = run(*command, cwd=ROOT)
    assert status == 0, printed
    (wheel,) = tmp_path.glob("*.whl")
    assert {Path(name).suffix for name in contents(wheel) if ".dist-info/" not in name} == {".pth"}


def test_the_wheel_of_the_host_has_all_of_it(distributions):
    (wheel,) = distributions.glob("ocl_msf_host-*.whl")
    files = {path for name in ("ocl", "routed", "configs") for path in (ROOT / "host" / name).rglob("*")}
    files = {path.relative_to(ROOT / "host") for path in files if path.is_file() and path.suffix != ".pyc"}
    assert {Path(name) for name in contents(wheel) if ".dist-info/" not in name} == files


@pytest.mark.slow
def test_the_command_is_installed(python, tmp_path):
    for words in (["-m", "ocl_msf"], [python.with_name("ocl-msf")]):
        status, printed = run(python, *words, "--help", cwd=tmp_path)
        assert status == 0 and "convert" in printed and "demo" in printed, printed


@pytest.mark.slow
def test_the_extra_gives_a_working_program(python, tmp_path):
    status, printed = run(python.with_name("ocl_train"), "+experiment=msf/vqvae_clevrtex", "--cfg", "job", cwd=tmp_path)
    assert status == 0 and "_target_: routed.ocl_msf.autoencoder.VQVAE" in printed, printed
    program = "import configs, ocl, ocl_msf, routed; print(*(m.__file__ for m in (configs, ocl, ocl_msf, routed)))"
    status, printed = run(python, "-c", program, cwd=tmp_path)
    assert status == 0 and printed.count(str(python.parent.parent)) == 4, printed


@pytest.mark.slow
@pytest.mark.parametrize("program", ["import ocl", "from ocl_msf import _host\nwith _host.require_host(): pass"])
def test_oclf_beside_the_host_is_an_error_that_names_both(python, tmp_path, program):
    metadata = tmp_path / "ocl-0.1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: ocl\nVersion: 0.1.0\n")
    status, printed = run(python, "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{program}")
    assert status != 0 and "`pip uninstall ocl ocl-msf-host`" in printed.splitlines()[-1], printed


DEMO = """
import runpy
import sys
from pathlib import Path
from unittest import mock
from ocl_msf import demo

server = runpy.run_path(sys.argv[1])

TINY = ["dataset.batch_size=4", "dataset.eval_batch_size=2", "dataset.num_workers=0", "experiment.image_size=32"]
STEPS = "{steps:2,warmup_steps:1,anneal_steps:1,validate_every:2,learning_rate:1e-3,clip_norm:1}"
TINY += [f"experiment.pretraining={STEPS}", f"experiment.training={STEPS.replace('anneal_steps:1,', '')}"]
whole = demo._run

def part(folder, title, module, *rest):
    whole(folder, title, [*module, *TINY] if module[0] == "ocl.cli.train" else module, *rest)

demo._run, demo.HELD_OUT = part, 2
Path("printed").mkdir()
with server["program_server"](Path("printed").resolve()) as run:
    with mock.patch("subprocess.Popen", server["popen"](run)):  # the steps import the libraries once, not seven times
        demo.run_demo(Path("out"), scenes=6)

import ocl_msf
from ocl_msf.cli import main

assert ocl_msf.load("pretrained:scenes")("out/scenes.png").slots.shape == (1, 11, 67)
main(["predict", "pretrained:scenes", "out/scenes.png", "--out", "predictions", "--device", "cpu"])
"""


@pytest.mark.slow
def test_the_demo_and_the_model_in_the_box_run_from_a_wheel(python, tmp_path):
    status, printed = run(python, "-c", DEMO, ROOT / "tests" / "program_server.py", cwd=tmp_path)
    assert status == 0, printed
    assert printed.count(": done in ") == 7 and "2 held-out scenes" in printed
    assert (tmp_path / "out" / "scenes.png").stat().st_size
    assert (tmp_path / "predictions" / "masks" / "scenes.png").stat().st_size
    assert f"source {python.parent.parent}/bin/activate" in printed
