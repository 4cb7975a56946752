"""Shared parts of the contract tests: what a plugin and a config may rely on in either host, see host/INTERFACE.md.

They ask for nothing that only one of them has, so that they run in OCLF 0.1 (Python 3.8) as well: `python -m pytest -W
default tests/host/contract`, since OCLF warns. There, tests marked `modern`, which pin what host/ does better, are left
out. `-m core` and `-m compat` select by priority.
"""

import gzip
import importlib.util
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

IS_OCLF = sys.version_info < (3, 9)  # OCLF 0.1 needs Python 3.8, host/ a newer one


def pytest_collection_modifyitems(config, items):
    here = Path(__file__).parent
    ours = [item for item in items if here in item.path.parents]
    for item in ours:
        assert len({"core", "compat"} & {mark.name for mark in item.iter_markers()}) == 1, item.nodeid
    if IS_OCLF:
        modern = [item for item in ours if item.get_closest_marker("modern")]
        items[:] = [item for item in items if item not in modern]
        config.hook.pytest_deselected(items=modern)


# --------------------------------------------------------------------------------------------------------------- shards


def npy_bytes(array):
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


def png_bytes(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path, members):
    """Write (member name, bytes) pairs as a plain tar archive."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, payload in members:
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            archive.addfile(info, io.BytesIO(payload))
    return str(path)


def write_samples(path, samples):
    """Write dicts with `__key__` plus arrays/str/objects as one webdataset shard."""
    members = []
    for sample in samples:
        for field, value in sample.items():
            if field == "__key__":
                continue
            stem = f"{sample['__key__']}.{field}"
            if isinstance(value, bytes):
                members.append((stem, value))  # the field carries its extension already
            elif isinstance(value, str):
                members.append((stem + ".txt", value.encode()))
            elif isinstance(value, (dict, list)):
                members.append((stem + ".json", json.dumps(value).encode()))
            else:
                members.append((stem + ".npy", npy_bytes(value)))
    return write_tar(path, members)


class ShardTools:
    npy = staticmethod(npy_bytes)
    png = staticmethod(png_bytes)
    gz = staticmethod(gzip.compress)
    tar = staticmethod(write_tar)
    samples = staticmethod(write_samples)


@pytest.fixture(scope="module")
def shard_tools():
    return ShardTools


@pytest.fixture
def through_pipeline(tmp_path):
    """Run samples through transforms exactly like a data module does, returning a list."""

    def run(samples, transforms, split="val"):
        from ocl.datasets import WebdatasetDataModule

        shard = write_samples(tmp_path / "pipeline" / "shard-000000.tar", samples)
        if not isinstance(transforms, dict):
            transforms = {"t": transforms}
        module = WebdatasetDataModule(
            val_shards=shard,
            train_shards=shard,
            val_size=len(samples),
            train_size=len(samples),
            batch_size=2,
            num_workers=0,
            shuffle_train=False,
            eval_transforms=transforms,
            train_transforms=transforms,
        )
        return list(getattr(module, f"{split}_data_iterator")())

    return run


# ------------------------------------------------------------------------------------------------ the package `configs`


def _looks_like_configs(path):
    return (path / "experiment" / "_output_path.yaml").is_file()


def locate_configs():
    """Return (folder, importable): where the configs of the framework are."""
    spec = importlib.util.find_spec("configs")
    if spec is not None:
        for location in spec.submodule_search_locations or ():
            if _looks_like_configs(Path(location)):
                return Path(location), True
    if os.environ.get("OCL_CONFIGS_DIR"):
        candidate = Path(os.environ["OCL_CONFIGS_DIR"])
        if _looks_like_configs(candidate):
            return candidate, False
    # The wheel of OCLF 0.1 leaves the folder out. pip has noted (PEP 610) from which checkout it was built.
    try:
        from importlib.metadata import PackageNotFoundError, distribution

        origin = distribution("ocl").read_text("direct_url.json")
    except PackageNotFoundError:
        origin = None
    if origin:
        url = json.loads(origin).get("url", "")
        if url.startswith("file://"):
            candidate = Path(url[len("file://") :]) / "configs"
            if _looks_like_configs(candidate):
                return candidate, False
    raise RuntimeError("No `configs` package found; set OCL_CONFIGS_DIR to its folder.")


@pytest.fixture(scope="module")
def configs_dir():
    return locate_configs()[0]


@pytest.fixture(scope="module")
def compose(configs_dir):
    """Compose a configuration in-process from the framework's configs and given overrides."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    def run(config_name, overrides=(), config_dir=None):
        import ocl.cli.eval  # noqa: F401  registers schemas and resolvers
        import ocl.cli.train  # noqa: F401

        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(config_dir or configs_dir), version_base="1.1"):
            return hydra.compose(config_name, overrides=list(overrides))

    return run


# ------------------------------------------------------------------------------------------------------------- programs


@pytest.fixture(scope="module")
def cli(tmp_path_factory, run_program):
    """Run `ocl_train` or `ocl_eval`; returns the exit status and everything that was printed."""
    folder, importable = locate_configs()
    extra_path = []
    if not importable:
        parent = tmp_path_factory.mktemp("configs_parent")
        (parent / "configs").symlink_to(folder, target_is_directory=True)
        extra_path.append(parent)

    def run(tool, arguments, cwd, python_path=(), **variables):
        paths = [*python_path, *extra_path, *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {"HYDRA_FULL_ERROR": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
        variables["PYTHONPATH"] = os.pathsep.join(map(str, paths))
        done = run_program(tool.replace("ocl_", "ocl.cli."), *arguments, cwd=cwd, **variables)
        return done.returncode, done.stdout + done.stderr

    return run


# ------------------------------------------------------------------------------------------------------------ Lightning


class RecordingExperiment:
    """Tensorboard-like experiment object which remembers what was added."""

    def __init__(self):
        self.calls = []

    def add_image(self, **kwargs):
        self.calls.append(("image", kwargs))

    def add_images(self, **kwargs):
        self.calls.append(("images", kwargs))

    def add_video(self, **kwargs):
        self.calls.append(("video", kwargs))


@pytest.fixture
def recording_logger():
    from pytorch_lightning.loggers.logger import Logger

    class RecordingLogger(Logger):
        def __init__(self, experiment):
            super().__init__()
            self.rows = []
            self._recording_experiment = experiment

        @property
        def name(self):
            return "recording"

        @property
        def version(self):
            return 0

        @property
        def experiment(self):
            return self._recording_experiment

        def log_hyperparams(self, *args, **kwargs):
            pass

        def log_metrics(self, metrics, step=None):
            self.rows.append((step, dict(metrics)))

        def values(self, name):
            return [metrics[name] for _, metrics in self.rows if name in metrics]

        def names(self):
            return {name for _, metrics in self.rows for name in metrics}

    def build(experiment=None):
        return RecordingLogger(RecordingExperiment() if experiment is None else experiment)

    return build


@pytest.fixture
def make_trainer(tmp_path):
    import pytorch_lightning as pl

    def build(**kwargs):
        options = dict(
            accelerator="cpu",
            devices=1,
            max_steps=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            default_root_dir=str(tmp_path),
        )
        options.update(kwargs)
        return pl.Trainer(**options)

    return build
