"""The plugin as Hydra sees it: is it discovered, and are its experiments offered?"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment/msf").glob("*.yaml"))
LEAVES = {name for name in EXPERIMENTS if name[0] != "_"}
OFFERED = sorted(EXPERIMENTS)

ASK_HYDRA = """
import json, sys
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

with initialize_config_dir(sys.argv[1], version_base="1.1"):
    loader = GlobalHydra.instance().config_loader()
    print(json.dumps({
        "plugins": [plugin.__name__ for plugin in Plugins.instance().discover(SearchPathPlugin)],
        "paths": {item.provider: item.path for item in loader.get_search_path().get_path()},
        "experiments": loader.get_group_options("experiment/msf"),
        "evaluations": loader.get_group_options("evaluation/msf"),
        "modules": sorted(sys.modules),
    }))
"""


def ask_hydra(folder, **environment):
    """What a Hydra application that has no configs of its own finds out, in a process of its own."""
    call = [sys.executable, "-B", "-c", ASK_HYDRA, str(folder)]  # leaves no byte code in the unpacked wheel
    return json.loads(subprocess.check_output(call, cwd=folder, env={**os.environ, **environment}))


@pytest.fixture(scope="module")
def wheel(distributions, tmp_path_factory):
    """The plugin as a wheel holds it, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    (archive,) = distributions.glob("ocl_msf-*.whl")
    with zipfile.ZipFile(archive) as members:
        members.extractall(folder / "site-packages")
    return folder / "site-packages"


def test_a_checkout_offers_its_experiments(tmp_path):
    answer = ask_hydra(tmp_path)
    assert "MSFSearchPathPlugin" in answer["plugins"], "not installed here? pip install -e ."
    assert answer["paths"]["ocl-msf"] == f"file://{ROOT / 'configs'}"
    assert answer["experiments"] == OFFERED and LEAVES <= set(answer["evaluations"])


def test_a_wheel_offers_its_experiments(tmp_path, wheel):
    answer = ask_hydra(tmp_path, PYTHONPATH=str(wheel))
    assert "MSFSearchPathPlugin" in answer["plugins"]
    assert answer["paths"]["ocl-msf"] == f"file://{wheel / 'ocl_msf/configs'}"
    assert answer["experiments"] == OFFERED and LEAVES <= set(answer["evaluations"])


def test_a_wheel_holds_every_module_and_config_once(wheel):
    kinds = ("*.py", "py.typed", "*.css", "*.html")  # the report has a style sheet and a template
    modules = {path.relative_to(ROOT) for kind in kinds for path in (ROOT / "ocl_msf").rglob(kind)}
    modules = {path for path in modules if "_plugins" not in path.parts}
    modules |= {Path("hydra_plugins/ocl_msf/__init__.py"), Path("hydra_plugins/ocl_msf/components.py")}
    pretrained = {path.relative_to(ROOT) for path in (ROOT / "ocl_msf" / "pretrained").rglob("*") if path.is_file()}
    configs = {"ocl_msf" / path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*") if path.is_file()}
    members = {path.relative_to(wheel) for path in wheel.rglob("*") if path.is_file()}
    assert {path for path in members if ".dist-info" not in path.parts[0]} == modules | configs | pretrained


def test_start_up_stays_light(tmp_path):
    assert not {"torch", "ocl_msf", "ocl"} & set(ask_hydra(tmp_path)["modules"])


def test_configs_hide_no_package():
    assert not list((ROOT / "configs").rglob("__init__.py"))


@pytest.mark.parametrize(
    "name, now",
    [
        ("clevrtex_lmdb", "dataset=clevrtex dataset.name=clevrtex_lmdb"),
        ("clevrtex_ood_lmdb", "dataset=clevrtex_ood dataset.name=clevrtex_outd_lmdb"),
        ("movi_d_boxes", "dataset=movi dataset.name=movi_d"),
        ("movi_e_boxes_lmdb", "dataset=movi dataset.name=movi_e_lmdb"),
    ],
)
def test_a_data_set_that_was_renamed_is_refused_with_its_new_name(tmp_path, name, now):
    with initialize_config_dir(str(tmp_path), version_base="1.1"):
        with pytest.raises(OmegaConfBaseException, match=rf"dataset={name} is gone: .* {now}$"):
            instantiate(compose(overrides=[f"+dataset={name}", "dataset.batch_size=2"]).dataset)
        old, new = now.split()[0].split("=")[1], now.split("=")[-1]
        config = compose(overrides=[f"+dataset={old}", f"dataset.name={new}"]).dataset
        assert config._target_ == "ocl_msf.data.open_dataset" and config.name == new
