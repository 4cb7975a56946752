"""What goes wrong on the way: damaged shards, flaky servers, signals and full disks."""

import functools
import http.server
import io
import logging
import os
import resource
import signal
import tarfile
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from fsspec.implementations.memory import MemoryFileSystem
from ocl import scheduling
from ocl._loader import streams
from ocl.callbacks import STOP_SIGNALS, Interrupted, StopOnSignal, UpdateHyperparameterScheduling
from ocl.combined_model import CombinedModel
from ocl.datasets import DummyDataModule, ShardError, WebdatasetDataModule
from ocl.optimization import OptimizationWrapper
from ocl.transforms import SimpleTransform
from ocl.utils.checkpoints import AtomicCheckpointIO, CheckpointError
from torch import nn


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def samples(*keys):
    return {f"{key:04d}.x.npy": npy(np.full(4, key, np.float32)) for key in keys}


def noisy(x):
    return x + np.random.randn(4).astype(np.float32)


def plain(x):
    return x


def data_module(shards, function=plain, **options):
    transforms = {"t": SimpleTransform({"x": function}, batch_transform=False)}
    options = {"batch_size": 2, "num_workers": 0, "val_shards": shards, **options}
    return WebdatasetDataModule(shards, train_transforms=transforms, eval_transforms=transforms, **options)


def keys_of(batches):
    return sorted(key for batch in batches for key in batch["__key__"])


# ---------------------------------------------------------------------------------------- damaged data


@pytest.fixture
def damaged(tmp_path):
    """Five samples of seven are whole: one does not decode, one is cut off."""
    (tmp_path / "0.tar").write_bytes(tar({**samples(0), "0001.x.npy": npy(np.ones(4))[:-1], **samples(2)}))
    (tmp_path / "1.tar").write_bytes(tar(samples(3, 4))[: 2 * 1024 - 1])
    (tmp_path / "2.tar").write_bytes(tar(samples(5, 6)))
    return str(tmp_path / "{0..2}.tar")


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_is_an_error_that_names_shard_and_key(damaged, workers):
    with pytest.raises(ShardError, match=r"`0001` in shard `.*0\.tar`|1\.tar` is damaged.*`0004`"):
        list(data_module(damaged, num_workers=workers).val_dataloader())
    with pytest.raises(ShardError, match=r"1\.tar` is damaged at or after sample `0004`"):
        list(data_module(damaged.replace("{0..2}", "1"), num_workers=workers).val_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_damage_is_counted_and_summed_up_at_the_end(damaged, workers, caplog):
    module = data_module(damaged, num_workers=workers, on_error="skip")
    with caplog.at_level(logging.WARNING):
        assert keys_of(module.val_dataloader()) == ["0000", "0002", "0003", "0005", "0006"]
        assert len(keys_of(module.train_dataloader())) == 4  # the fifth does not fill a batch
        module.teardown("fit")
    messages = [record.getMessage() for record in caplog.records]
    assert [message[:18] for message in messages[:4]] == [f"Skipped, number {n}:" for n in (1, 2, 3, 4)]
    told = "".join(messages[:2])
    assert "`0001` in shard" in told and "0.tar" in told and "1.tar` is damaged" in told
    assert messages[4:] == ["4 damaged shards or samples were skipped in total."]


def test_a_shard_that_may_not_be_read_is_named_or_skipped(monkeypatch):
    for number in range(2):
        with fsspec.open(f"memory://forbidden/{number}.tar", "wb") as file:
            file.write(tar(samples(number)))
    whole = MemoryFileSystem.open

    def guarded(self, path, *args, **kwargs):
        if "0.tar" in path:
            raise PermissionError("Forbidden")
        return whole(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "open", guarded)
    url = "memory://forbidden/{0..1}.tar"
    with pytest.raises(ShardError, match="forbidden/0.tar.*Forbidden"):
        list(data_module(url).val_dataloader())
    assert keys_of(data_module(url, on_error="skip").val_dataloader()) == ["0001"]


def test_skipping_does_not_hide_wrong_paths_and_wrong_options(damaged):
    with pytest.raises(FileNotFoundError, match=r"3\.tar"):
        list(data_module([damaged, damaged.replace("{0..2}", "3")], on_error="skip").val_dataloader())
    with pytest.raises(ValueError, match="'ignore'"):
        data_module(damaged, on_error="ignore")


# --------------------------------------------------------------------------------------- flaky servers


class FlakyFile(io.BytesIO):
    """Fails in its fifth read, behind the second sample, and once more; cannot seek, whatever it says."""

    reads = 0

    def read(self, *args):
        FlakyFile.reads += 1
        if FlakyFile.reads in (5, 11):
            raise ConnectionError("connection lost")
        return super().read(*args)

    def seek(self, *args):
        raise ValueError("Cannot seek streaming HTTP file")


@pytest.fixture
def flaky(monkeypatch):
    """A shard of many blocks in memory, whose file system opens only `FlakyFile`s."""
    content = tar({f"{key}.x.npy": npy(np.full(200_000, key, np.float64)) for key in range(4)})
    with fsspec.open("memory://flaky/s.tar", "wb") as file:
        file.write(content)
    monkeypatch.setattr(MemoryFileSystem, "open", lambda self, path, mode="rb": FlakyFile(content))
    monkeypatch.setattr(FlakyFile, "reads", 0)
    return "memory://flaky/s.tar"


def test_a_shard_that_breaks_off_is_continued_behind_the_last_sample(flaky, monkeypatch, caplog):
    monkeypatch.setattr(streams, "WAITS", (0, 0, 0))
    read = [(sample["__key__"], sample["x"]) for sample in data_module(flaky).val_data_iterator()]
    assert [key for key, _ in read] == ["0", "1", "2", "3"]
    assert all((x == int(key)).all() and len(x) == 200_000 for key, x in read)
    assert caplog.text.count("connection lost") == 2 and "s.tar" in caplog.text


class CuttingHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, only whole files, and breaks off the first answers."""

    cuts = []

    def do_GET(self):
        if not self.cuts:
            super().do_GET()
            return
        content = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.cuts.pop(0)])
        self.close_connection = True

    def log_message(self, *args):
        pass


def test_a_web_server_without_ranges_may_break_off_anywhere(tmp_path, monkeypatch):
    content = tar({f"{key}.x.npy": npy(np.full(200_000, key, np.float64)) for key in range(6)})
    (tmp_path / "s.tar").write_bytes(content)
    monkeypatch.setattr(streams, "WAITS", (0, 0, 0))
    monkeypatch.setattr(CuttingHandler, "cuts", [5_000_000, len(content) - 1_000_000])
    handler = functools.partial(CuttingHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        samples = list(data_module(f"http://127.0.0.1:{server.server_port}/s.tar").val_data_iterator())
        server.shutdown()
    assert [sample["__key__"] for sample in samples] == [str(key) for key in range(6)]
    assert all((sample["x"] == int(sample["__key__"])).all() for sample in samples)
    assert not CuttingHandler.cuts


def test_after_some_attempts_the_error_is_told(flaky, monkeypatch):
    def fail(*args):
        raise ConnectionError("connection lost")

    monkeypatch.setattr(streams, "WAITS", (0,))
    monkeypatch.setattr(FlakyFile, "read", fail)
    with pytest.raises(ShardError, match="s.tar.*2 attempts failed, the last one with: connection lost"):
        list(data_module(flaky).val_data_iterator())


@pytest.mark.parametrize("protocol", ["file", "memory", "local"])
def test_opening_is_tried_again_on_every_file_system(protocol, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "WAITS", (0, 0))
    url = f"memory://{tmp_path}/s.tar" if protocol == "memory" else (tmp_path / "s.tar").as_uri()
    url = str(tmp_path / "s.tar") if protocol == "local" else url
    with fsspec.open(url, "wb") as file:
        file.write(tar(samples(0, 1)))
    filesystem, _ = fsspec.core.url_to_fs(url)
    whole, failures = type(filesystem).open, iter([OSError("busy"), TimeoutError("slow")])

    def failing(self, *args, **kwargs):
        for failure in failures:
            raise failure
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(type(filesystem), "open", failing)
    assert keys_of(data_module(url).val_dataloader()) == ["0000", "0001"]


# ------------------------------------------------------------------------------------------ resuming


class Net(nn.Module):
    """A layer with everything that is random in a model."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs):
        x = torch.nn.functional.dropout(inputs["input"]["x"], 0.3)  # in validation, too
        return self.layer(x) + 0.1 * torch.randn(4) + 0.1 * float(np.random.randn())


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = scheduling.LinearHPScheduler(end_value=2.0, end_step=20, start_value=1.0)

    def forward(self, inputs):
        return (inputs["net"] - inputs["input"]["x"]).square().mean() * self.weight


class Journal(pl.Callback):
    """Notes the data and learning rates of all steps; sends a signal in the steps it is told."""

    def __init__(self, number=None, after=()):
        self.number, self.after, self.sent, self.lines = number, after, False, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        where = trainer.global_step, trainer.current_epoch
        self.lines.append((*where, batch["__key__"], batch["x"].tolist(), rate))
        if trainer.global_step + 1 in self.after and not self.sent:
            self.sent = True  # a second signal would stop at once
            os.kill(os.getpid(), self.number)


def fit(folder, data, max_steps, journal, checkpoint=None, **options):
    pl.seed_everything(7, workers=True, verbose=False)
    schedule = functools.partial(
        scheduling.exponential_decay_with_optional_warmup, decay_rate=0.5, decay_steps=10, warmup_steps=4
    )
    adam = OptimizationWrapper(functools.partial(torch.optim.Adam, lr=0.05), lr_scheduler=schedule)
    model = CombinedModel({"net": Net()}, {"adam": adam}, {"square": Square()}, {})
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        plugins=[AtomicCheckpointIO()],
        callbacks=[UpdateHyperparameterScheduling(), journal, StopOnSignal()],
        **options,
    )
    if checkpoint is not None:
        torch.rand(checkpoint["after"])  # whatever happened before does not matter
    stop = None
    try:
        trainer.fit(model, datamodule=data(), ckpt_path=checkpoint and checkpoint["path"])
    except Interrupted as interrupted:
        stop = interrupted.code
    return model.state_dict(), trainer, stop


def shard_data(tmp_path, **options):
    for shard in range(3):
        (tmp_path / f"{shard}.tar").write_bytes(tar(samples(*range(6 * shard, 6 * shard + 6 - shard))))
    return functools.partial(data_module, str(tmp_path / "{0..2}.tar"), noisy, **options)


def dummy_data(**options):
    return functools.partial(DummyDataModule, {"x": (4,)}, {"x": "uniform"}, batch_size=2, **options)


@pytest.mark.parametrize(
    "options, cuts, more",
    [
        ({"num_workers": 0, "train_size": 15}, (3, 12), {}),  # an epoch has 7 steps
        ({"num_workers": 0, "train_size": 15}, (7, 14), {}),
        ({"num_workers": 0}, (3, 12), {}),
        ({"num_workers": 0}, (7, 10), {}),
        ({"num_workers": 1, "train_size": 15}, (3, 12), {}),
        ({"num_workers": 2, "train_size": 15}, (5, 7), {}),
        ({"num_workers": 0, "train_size": 15}, (5, 12), {"val_check_interval": 5}),
        ({"num_workers": 0, "train_size": 15}, (3, 7), {"accumulate_grad_batches": 2}),
        (None, (3, 12), {}),  # random samples
    ],
)
@pytest.mark.parametrize("by", ["signal", "max_steps"])
def test_a_run_cut_into_three_equals_an_uncut_one(tmp_path, options, cuts, more, by):
    data = dummy_data(train_size=15) if options is None else shard_data(tmp_path, **options)
    uncut = Journal()
    expected, *_ = fit(tmp_path / "uncut", data, 20, uncut, **more)

    lines, checkpoint = [], None
    for part, cut in enumerate((*cuts, 20)):
        last = cut == 20
        journal = Journal(signal.SIGUSR1, () if last or by == "max_steps" else (cut,))
        max_steps = cut if by == "max_steps" else 20
        folder = tmp_path / f"part{part}"
        state, trainer, stop = fit(folder, data, max_steps, journal, checkpoint, **more)
        assert trainer.global_step == cut
        assert stop == (None if last or by == "max_steps" else 128 + signal.SIGUSR1)
        lines += journal.lines
        if not last:
            (path,) = (folder / "checkpoints").glob(f"*step={cut}.ckpt")
            checkpoint = {"path": str(path), "after": part + 1}
    assert lines == uncut.lines
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_an_epoch_of_a_resumed_run_has_every_sample_once(tmp_path):
    data, journal = shard_data(tmp_path, train_size=15, num_workers=2), Journal(signal.SIGTERM, (3,))
    handlers = [signal.getsignal(number) for number in STOP_SIGNALS]
    _, trainer, stop = fit(tmp_path / "a", data, 7, journal)
    assert stop == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == handlers
    (path,) = (tmp_path / "a" / "checkpoints").glob("*step=3.ckpt")
    rest = Journal()
    fit(tmp_path / "b", data, 7, rest, {"path": str(path), "after": 1})
    keys = [key for line in journal.lines + rest.lines for key in line[2]]
    assert len(keys) == len(set(keys)) == 14


# --------------------------------------------------------------------------------------- checkpoints


def test_a_disk_that_fills_up_leaves_the_previous_checkpoint(tmp_path):
    io_, path = AtomicCheckpointIO(), str(tmp_path / "a.ckpt")
    io_.save_checkpoint({"weights": torch.zeros(1000)}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails instead
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(CheckpointError, match="a.ckpt could not be written.*File too large"):
            io_.save_checkpoint({"weights": torch.ones(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert os.listdir(tmp_path) == ["a.ckpt"]
    assert torch.equal(io_.load_checkpoint(path)["weights"], torch.zeros(1000))


def test_a_checkpoint_of_a_run_has_nothing_to_unpickle_and_a_payload_is_refused(tmp_path):
    data = shard_data(tmp_path, train_size=15)
    fit(tmp_path / "run", data, 3, Journal())
    (path,) = (tmp_path / "run" / "checkpoints").glob("*step=3.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["WebdatasetDataModule"]["n_batches"] == 3

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({**checkpoint, "extra": Payload()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt is refused: .*mkdir") as error:
        fit(tmp_path / "b", data, 5, Journal(), {"path": str(tmp_path / "evil.ckpt"), "after": 0})
    assert "\n" not in str(error.value) and not (tmp_path / "owned").exists()
