"""Every run has a folder of its own, which its ranks share: runs of our experiments, and all of `host/`."""

import os
from concurrent.futures import ThreadPoolExecutor

import hydra
import ocl.cli.run_folder
import ocl.cli.train
import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict, read_write

from ocl_msf.training import folders

pytestmark = pytest.mark.needs_host
MODULES = {"msf/vqvae_clevrtex": folders, "slate/clevr6": ocl.cli.run_folder}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "a"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "MASTER_PORT": "29500", "LOCAL_RANK": "0"}


@pytest.fixture(scope="module", params=MODULES)
def composed(request):
    with hydra.initialize_config_module("configs", version_base="1.3"):
        chosen = [f"+experiment={request.param}", "trainer.devices=2"]
        config = hydra.compose("training_config", overrides=chosen, return_hydra_config=True)
    for parent, key in ((config.hydra.run, "dir"), (config.hydra.sweep, "subdir")):
        with read_write(config):
            parent[key] = parent._get_node(key)._value().replace("${now:%Y-%m-%d_%H-%M-%S}", "now")
    return config


@pytest.fixture
def start(composed, tmp_path, monkeypatch):
    """Gives the folder that a run gets that is started now, which is always the same second, as Hydra asks for it."""
    monkeypatch.chdir(tmp_path)
    for module in MODULES.values():
        monkeypatch.setattr(module, "PATIENCE", 2)

    def folder(key="hydra.run.dir", devices=2, number=None, **environment):
        config = composed.copy()
        with open_dict(config):
            config.trainer.devices = devices
            config.hydra.job.num = "???" if number is None else number
        HydraConfig.instance().set_config(config)
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            path = OmegaConf.select(config, key)
            with read_write(config.hydra):
                config.hydra.runtime.output_dir = path
            assert OmegaConf.select(config, "hydra.run.dir") == OmegaConf.select(config, key) == path
        return os.path.relpath(path, tmp_path)

    yield folder
    HydraConfig.instance().cfg = None


def test_the_time_names_a_folder_and_a_number_further_ones(start, composed):
    name = composed.hydra.runtime.choices.experiment
    found = [start() for _ in range(3)]
    assert found == [f"outputs/{name}/now", f"outputs/{name}/now_2", f"outputs/{name}/now_3"]


def test_jobs_of_sweeps_have_folders_of_their_own(start):
    found = [start("hydra.sweep.subdir", number=number) for number in (0, 1, 0, 1)]
    assert len(set(found)) == 4 and all(os.path.isdir(path) for path in found)


def test_jobs_of_an_array_have_folders_of_their_own(start):
    """Also several in one job, side by side, each with a device of its own."""
    jobs = [{**SLURM, "SLURM_JOB_ID": str(job), "SLURM_PROCID": "0"} for job in (7, 8)]
    found = [start(**job) for job in jobs] + [start(devices=1, **SLURM, SLURM_PROCID=rank) for rank in "0101"]
    assert len(set(found)) == 6


@pytest.mark.parametrize("number", [None, 3])
def test_ranks_that_slurm_starts_share_a_folder(start, number):
    key = "hydra.run.dir" if number is None else "hydra.sweep.subdir"
    launches = [{**SLURM, "SLURM_STEP_ID": step} for step in "01"]
    found = [[start(key, number=number, **launch, SLURM_PROCID=rank) for rank in "01"] for launch in launches]
    assert found[0][0] == found[0][1] != found[1][0] == found[1][1]
    assert start(key, number=4, **launches[0], SLURM_PROCID="0") not in (found[0][0], found[1][0])


def test_ranks_that_torchrun_starts_share_a_folder(start):
    """A later launch may have the same port; the folder of its errors is another one."""
    found = []
    for launch in ("a", "b"):
        errors = {rank: f"/errors/{launch}/attempt_0/{rank}/error.json" for rank in "01"}
        found.append([start(**TORCHRUN, RANK=rank, TORCHELASTIC_ERROR_FILE=errors[rank]) for rank in "01"])
    assert found[0][0] == found[0][1] != found[1][0] == found[1][1]


def test_a_rank_that_cannot_see_the_folder_of_the_first_takes_its_own(start, caplog):
    path = start(**SLURM, SLURM_PROCID="1")
    assert os.path.isdir(path) and "this rank takes its own" in caplog.text


@pytest.mark.parametrize("module", MODULES.values(), ids=lambda module: module.__name__)
def test_no_folder_is_claimed_twice(module, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(module.claim, [str(tmp_path / "a" / "b" / "now")] * 64))
    assert len(set(found)) == 64 == len(list((tmp_path / "a" / "b").iterdir()))
