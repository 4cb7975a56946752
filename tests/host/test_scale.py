"""Training and evaluation on two processes, and shards behind URLs."""

import csv
import functools
import http.server
import json
import os
import signal
import sys
import threading

import fsspec
import numpy as np
import pytest
import webdataset
from ocl.cli import cli_utils
from ocl.datasets import WebdatasetDataModule
from ocl.transforms import SimpleTransform

CONFIG = """
# @package _global_
defaults:
  - /experiment/_output_path
  - /training_config
  - _self_
trainer:
  accelerator: cpu
  max_epochs: 2
  num_sanity_val_steps: 1
  enable_model_summary: false
  log_every_n_steps: 1
  logger: {_target_: pytorch_lightning.loggers.CSVLogger, save_dir: .}
seed: 5
experiment:
  callbacks:
    journal: {_target_: journal.Journal}
dataset:
  _target_: ocl.datasets.WebdatasetDataModule
  train_shards: ${oc.env:SHARDS}
  val_shards: ${oc.env:SHARDS}
  batch_size: 2
  num_workers: 0
  train_transforms: &transforms
    x:
      _target_: ocl.transforms.SimpleTransform
      transforms: {x: "${lambda_fn:'lambda x: x / 15'}"}
      batch_transform: false
  eval_transforms: *transforms
models:
  net: {_target_: routed.journal.Net, x_path: input.x}
losses:
  learned: &loss
    _target_: routed.ocl.losses.ReconstructionLoss
    loss_type: mse
    input_path: net.output
    target_path: input.x
  same_for_any_weights:
    <<: *loss
    input_path: net.zeros
evaluation_metrics:
  ari:
    _target_: routed.ocl.metrics.ARIMetric
    foreground: false
    prediction_path: net.predicted_masks
    target_path: net.true_masks
optimizers:
  adam:
    _target_: ocl.optimization.OptimizationWrapper
    optimizer: {_target_: torch.optim.Adam, _partial_: true, lr: 0.01}
"""

JOURNAL = """
import json, os, signal
import pytorch_lightning as pl
import torch
from torch.nn import functional


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.register_buffer("offset", torch.ones(4))  # distributed training exchanges buffers

    def forward(self, x):
        masks = [
            functional.one_hot((x[:, :1] * 15).round().long() * torch.arange(15) % n % 3, 3)
            .transpose(1, 2).reshape(-1, 3, 3, 5)
            for n in (5, 7)
        ]
        output = self.layer(functional.dropout(x, 0.2)) + self.offset
        zeros = torch.zeros_like(x)
        return dict(output=output, zeros=zeros, predicted_masks=masks[0].float(), true_masks=masks[1])


class Seen(torch.nn.Module):
    def __init__(self, common, output_dir):
        super().__init__()
        self.rank = os.environ.get("LOCAL_RANK", "0")
        self.paths = [f"{common}/seen{self.rank}", f"{output_dir}/seen_by"]

    def forward(self, key):
        for path, text in zip(self.paths, (" ".join(key), self.rank)):
            with open(path, "a") as file:
                print(text, file=file)


class Journal(pl.Callback):
    def setup(self, trainer, pl_module, stage):
        self.lines = {"train": [], "val": []}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.lines["train"].append([trainer.current_epoch, batch["__key__"]])
        if trainer.global_step == int(os.environ.get("STOP_IN_STEP", -1)) and trainer.is_global_zero:
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not trainer.sanity_checking:
            self.lines["val"].append([trainer.current_epoch, batch["__key__"]])

    def on_exception(self, trainer, pl_module, exception):
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer, pl_module, stage):
        weights = {name: value.tolist() for name, value in pl_module.state_dict().items()}
        with open(f"journal{trainer.global_rank}.json", "w") as file:
            json.dump({**self.lines, "weights": weights}, file)
"""

COUNTS = (9, 2, 4)  # samples in each shard


def write_shards(folder, counts=COUNTS):
    """Write shards with the given numbers of samples, keys count up from 0; return their brace expression."""
    keys = iter(range(sum(counts)))
    for shard, count in enumerate(counts):
        with webdataset.TarWriter(str(folder / f"{shard}.tar")) as sink:
            for key in (next(keys) for _ in range(count)):
                sink.write({"__key__": f"{key:04d}", "x.npy": np.full(4, key, np.float32)})
    return f"{folder}/{{0..{len(counts) - 1}}}.tar"


ALL_KEYS = [f"{key:04d}" for key in range(sum(COUNTS))]


def data_module(shards, **options):
    transforms = {"t": SimpleTransform({"x": abs}, batch_transform=False)}
    options = {"batch_size": 2, "num_workers": 0, "val_shards": shards, **options}
    return WebdatasetDataModule(shards, train_transforms=transforms, eval_transforms=transforms, **options)


def keys_of(batches):
    return sorted(key for batch in batches for key in batch["__key__"])


# ----------------------------------------------------------------------------------------- two processes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder with an experiment, the modules that it needs, and shards."""
    folder = tmp_path_factory.mktemp("scale")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "scaled.yaml").write_text(CONFIG.lstrip())
    (folder / "journal.py").write_text(JOURNAL)
    write_shards(folder)
    return folder


@pytest.fixture(scope="module")
def call(folder, run_program):
    """Run a program of the host; returns its exit status and everything that it printed.

    Without `ranks`, Lightning starts the second of two processes itself.
    """
    paths = os.pathsep.join([str(folder), *sys.path])
    shards = f"{folder}/{{0..{len(COUNTS) - 1}}}.tar"
    environment = {"SHARDS": shards, "PYTHONPATH": paths}

    def run(program, *overrides, **options):
        arguments = ["--config-dir", folder, *overrides]
        done = run_program(f"ocl.cli.{program}", *arguments, cwd=folder, **environment, **options)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.fixture(scope="module")
def train(call, folder):
    """Start a training by the command line; returns its exit status, folder and journals by rank."""

    def run(name, *overrides, **options):
        command = ["+experiment=scaled", f"hydra.run.dir={folder / name}", *overrides]
        status, printed = call("train", *command, **options)
        journals = [json.loads(path.read_text()) for path in sorted((folder / name).glob("journal*.json"))]
        assert journals, printed
        return status, folder / name, journals

    return run


TWO = ("trainer.devices=2", "trainer.strategy=ddp", "+dataset.train_size=15")


@pytest.fixture(scope="module")
def one(train):
    return train("one", "trainer.devices=1")


@pytest.fixture(scope="module")
def two(train):
    return train("two", *TWO)


def keys_in(journal, phase, epoch):
    return [key for at, keys in journal[phase] if at == epoch for key in keys]


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [0, 1])
def test_an_epoch_of_two_processes_has_every_sample_once(two, epoch):
    status, _, journals = two
    assert status == 0 and len(journals) == 2
    train = [keys_in(journal, "train", epoch) for journal in journals]
    assert [len(keys) for keys in train] == [6, 6]  # three remaining samples do not fill a batch on each rank
    assert len(set(train[0] + train[1])) == 12
    val = [keys_in(journal, "val", epoch) for journal in journals]
    assert sorted(val[0] + val[1]) == ALL_KEYS and all(val)
    assert journals[0]["weights"] == journals[1]["weights"]


@pytest.mark.slow
def test_metrics_and_losses_of_two_processes_are_those_of_one(one, two):
    def read(folder):
        with open(next(folder.glob("lightning_logs/version_0/metrics.csv"))) as file:
            rows = [row for row in csv.DictReader(file) if row["val/ari"]]
        return [[float(row[f"val/{name}"]) for name in ("ari", "same_for_any_weights")] for row in rows]

    single, double = read(one[1]), read(two[1])
    assert one[0] == 0 and len(single) == len(double) == 2
    assert double == [pytest.approx(row, rel=1e-6) for row in single]
    assert 0 < single[0][0] < 1
    assert single[0][1] == pytest.approx(np.mean((np.arange(15) / 15) ** 2))


@pytest.mark.slow
def test_two_processes_stop_together_and_continue_exactly(train, two):
    status, folder, first = train("first", *TWO, ranks=2, STOP_IN_STEP="3")
    assert status == 128 + signal.SIGUSR1
    checkpoint = cli_utils.find_checkpoint(str(folder))
    assert checkpoint.endswith("epoch=1-step=4.ckpt")
    status, _, rest = train("rest", *TWO, f"load_checkpoint='{checkpoint}'", ranks=2)
    assert status == 0
    for rank, uncut in enumerate(two[2]):
        assert first[rank]["train"] + rest[rank]["train"] == uncut["train"]
        assert rest[rank]["weights"] == uncut["weights"]


SEEN = "{seen:{_target_:routed.journal.Seen,key_path:input.__key__,common:%s,output_dir:'${output_dir}'}}"
DUMMY = "{_target_:ocl.datasets.DummyDataModule,data_shapes:{x:[4]},data_types:{x:uniform},val_size:7}"


@pytest.mark.slow
@pytest.mark.parametrize("data", [[], [f"dataset={DUMMY}", "eval_test=true"]])
def test_two_processes_evaluate_as_one_and_write_one_report(call, one, tmp_path, data):
    def evaluate(devices, *overrides, ranks=0):
        common, output_dir = tmp_path / f"common{devices}", tmp_path / f"output{devices}"
        common.mkdir()
        output_dir.mkdir()
        command = [f"train_config_path={one[1]}", f"output_dir={output_dir}", f"modules={SEEN % common}"]
        status, printed = call("eval", "+evaluation=eval", *command, *data, *overrides, ranks=ranks)
        assert status == 0, printed
        assert printed.count("Report: ") == 1 and "Error" not in printed
        assert {path.name for path in output_dir.iterdir()} == {"metrics.json", "seen_by"}
        assert set((output_dir / "seen_by").read_text().split()) == {"0"}
        seen = [(common / f"seen{rank}").read_text().split() for rank in range(devices)]
        return seen, json.loads((output_dir / "metrics.json").read_text())["metrics"]

    (alone,), single = evaluate(1)
    together, double = evaluate(2, "+trainer.devices=2", ranks=2)
    assert sorted(together[0] + together[1]) == sorted(alone) and all(together)
    assert double.keys() == single.keys()
    for split in single:
        for name in ("ari", "same_for_any_weights"):  # the other loss draws dropout
            assert double[split][name] == pytest.approx(single[split][name], rel=1e-6)


# ------------------------------------------------------------------------------------------------- URLs


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, without ranges; breaks off every first answer to a path."""

    broken = set()

    def do_GET(self):
        if self.path in self.broken:
            super().do_GET()
            return
        self.broken.add(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "10000000")
        self.end_headers()
        with open(self.translate_path(self.path), "rb") as file:
            self.wfile.write(file.read(2000))
        self.close_connection = True

    def log_message(self, *args):
        pass


@pytest.fixture(params=["path", "file", "memory", "http"])
def url(request, tmp_path, monkeypatch):
    """The same shards by a path and behind several protocols."""
    shards = write_shards(tmp_path)
    if request.param == "path":
        yield shards
    elif request.param == "file":
        yield f"file://{shards}"
    elif request.param == "memory":
        filesystem = fsspec.filesystem("memory")
        filesystem.put(str(tmp_path), f"/{tmp_path.name}", recursive=True)
        yield f"memory://{tmp_path.name}/{{0..2}}.tar"
    else:
        handler = functools.partial(Handler, directory=str(tmp_path))
        monkeypatch.setattr(Handler, "broken", set())
        monkeypatch.setattr("ocl._loader.streams.WAITS", (0, 0, 0))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/{{0..2}}.tar"
            server.shutdown()


def test_shards_are_read_from_any_url(url):
    module = data_module(url, train_size=15)
    assert keys_of(module.val_dataloader()) == ALL_KEYS
    assert len(set(keys_of(module.train_dataloader()))) == 14
    with pytest.raises(FileNotFoundError, match="absent.tar"):
        list(data_module(url.replace("{0..2}", "absent")).val_dataloader())


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"train_size": 15}])
def test_workers_lose_no_more_samples_than_one_process(tmp_path, workers, options):
    module = data_module(write_shards(tmp_path), num_workers=workers, batch_size=4, **options)
    keys = keys_of(module.train_dataloader())
    assert len(keys) == len(set(keys)) == 12


def test_a_size_that_promises_too_much_is_told(tmp_path, caplog):
    loader = data_module(write_shards(tmp_path), train_size=17).train_dataloader()
    assert len(list(loader)) >= 8 == len(loader)
    assert "7 batches instead of the 8 that train_size=17 promises" in caplog.text
