"""Both distributions as wheels in a new environment, and OCLF beside the host."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def run(*command, **options):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    finished = subprocess.run([str(word) for word in command], env=ENVIRONMENT, **pipes, **options)
    return finished.returncode, finished.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment with everything that both depend on, and `ocl-msf[host]` from a folder."""
    folder = tmp_path_factory.mktemp("distribution")
    for source in (ROOT, ROOT / "host"):
        status, printed = run(
            sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "wheels", cwd=source
        )
        assert status == 0, printed
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (folder / "dependencies").mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith(("ocl", "_ocl", "hydra_plugins")):
            (folder / "dependencies" / path.name).symlink_to(path)
    (packages / "dependencies.pth").write_text(str(folder / "dependencies"))
    pip = [sys.executable, "-m", "pip", "--python", python]
    status, printed = run(*pip, "install", "--no-index", "--find-links", folder / "wheels", "ocl-msf[host]")
    assert status == 0, printed
    return python


@pytest.mark.slow
def test_the_extra_gives_a_working_program(python, tmp_path):
    status, printed = run(python.with_name("ocl_train"), "+experiment=msf/vqvae_clevrtex", "--cfg", "job", cwd=tmp_path)
    assert status == 0 and "_target_: routed.ocl_msf.autoencoder.VQVAE" in printed, printed
    for name in ("ocl", "routed", "configs", "ocl_msf"):
        status, printed = run(python, "-c", f"import {name}; print({name}.__file__)", cwd=tmp_path)
        assert status == 0 and str(python.parent.parent) in printed, printed


@pytest.mark.slow
@pytest.mark.parametrize("program", ["import ocl", "from ocl_msf import _host\nwith _host.require_host(): pass"])
def test_oclf_beside_the_host_is_an_error_that_names_both(python, tmp_path, program):
    metadata = tmp_path / "ocl-0.1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: ocl\nVersion: 0.1.0\n")
    status, printed = run(python, "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{program}")
    assert status != 0 and "`pip uninstall ocl ocl-msf-host`" in printed.splitlines()[-1], printed
