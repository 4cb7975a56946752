import itertools
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from ocl.transforms import Filter, Map, SampleConsecutive, SimpleTransform
from pytorch_lightning import LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import ModelCheckpoint

from ocl_msf.cli import main
from ocl_msf.data import LMDBDataModule, ShardDataModule
from ocl_msf.data.synthetic.scenes import make_scenes

pytestmark = pytest.mark.needs_host


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """23 scenes to train and 7 to validate, in both formats."""
    folder = tmp_path_factory.mktemp("prefix")
    make_scenes(folder / "raw", 30, size=(32, 24), workers=1)
    options = ["--splits", "train=:23", "val=23:", "--size", "8", "--workers", "1"]
    for form, name in (("lmdb", "clevrtex_lmdb"), ("webdataset", "clevrtex")):
        main(["convert", "clevrtex", str(folder / "raw"), str(folder), *options, "--format", form, "--name", name])
    return str(folder)


def as_they_are(sample):
    return sample


def identity(value):
    return value


def transforms():
    fields = ("image", "mask", "visibility")
    return {"all": Map(as_they_are, fields=fields, batch_transform=False)}


def module(prefix, cls=LMDBDataModule, **options):
    name = "clevrtex_lmdb" if cls is LMDBDataModule else "clevrtex"
    options = {"batch_size": 4, "num_workers": 0, **options}
    return cls(prefix, name, transforms(), transforms(), **options)


def keys(loader):
    return [batch["__key__"] for batch in loader]


def test_both_formats_hold_the_same(prefix):
    ours, theirs = (
        {
            key: {field: batch[field][i] for field in ("image", "mask", "visibility")}
            for batch in module(prefix, cls).val_dataloader()
            for i, key in enumerate(batch["__key__"])
        }
        for cls in (LMDBDataModule, ShardDataModule)
    )
    assert set(ours) == set(theirs) == {f"{i:06d}" for i in range(23, 30)}
    for key, sample in ours.items():
        for field, value in sample.items():
            assert value.dtype == theirs[key][field].dtype and torch.equal(value, theirs[key][field])


def test_batches_have_the_layout_of_the_hosts(prefix):
    batches = list(module(prefix).val_dataloader())
    assert [batch["batch_size"] for batch in batches] == [4, 3] and len(module(prefix).val_dataloader()) == 2
    assert batches[1]["image"].shape == (3, 8, 8, 3) and batches[1]["image"].dtype == torch.uint8
    assert batches[1]["mask"].shape == (3, 11, 8, 8, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(prefix, workers):
    alone, many = (module(prefix, num_workers=n) for n in (0, workers))
    assert keys(alone.val_dataloader()) == keys(many.val_dataloader())
    ours, theirs = alone.train_dataloader(), many.train_dataloader()
    for _ in range(2):
        assert keys(ours) == keys(theirs)
    assert len(ours) == 5


def test_an_epoch_is_a_permutation_of_seed_and_number(prefix):
    loader = module(prefix, batch_size=1).train_dataloader()
    first, second = (sum(keys(loader), []) for _ in range(2))
    assert sorted(first) == sorted(second) == [f"{i:06d}" for i in range(23)]
    assert first != second and first != sorted(first)
    again = module(prefix, batch_size=1).train_dataloader()
    assert [sum(keys(again), []) for _ in range(2)] == [first, second]
    assert sum(keys(module(prefix, batch_size=1, seed=1).train_dataloader()), []) != first
    assert sum(keys(module(prefix, batch_size=1, shuffle_train=False).train_dataloader()), []) == sorted(first)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_samples(prefix, monkeypatch, ranks):
    train, evaluation = [], []
    for rank in range(ranks):
        monkeypatch.setattr("ocl_msf.data.lmdb_datamodule._rank", lambda rank=rank: (rank, ranks))
        data = module(prefix, batch_size=1)
        train.append(sum(keys(data.train_dataloader()), []))
        evaluation += sum(keys(data.val_dataloader()), [])
        assert len(data.train_dataloader()) == len(train[-1]) == 23 // ranks
    assert len(set(sum(train, []))) == len(sum(train, [])) == 23 // ranks * ranks
    assert sorted(evaluation) == [f"{i:06d}" for i in range(23, 30)]


def shaken(sample):
    """Something of each generator in the sample."""
    drawn = [random.random(), np.random.rand(), torch.rand(()).item()]
    return {**sample, "drawn": np.array(drawn)}


class Journal(LightningModule):
    """Writes down what it gets, and what it draws itself."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.seen = []

    def training_step(self, batch, _):
        drawn = [random.random(), np.random.rand(), torch.rand(()).item()]
        self.seen.append((batch["__key__"], batch["drawn"].tolist(), drawn))
        return self.weight * batch["drawn"].sum()

    def validation_step(self, batch, _):
        assert batch["drawn"].shape[1] == 3

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(prefix, folder, workers, checkpoint=None, steps=12):
    """What a training run sees, 5 batches an epoch; it leaves a checkpoint of each step."""
    draw = {"a": Map(shaken, fields=("image",), batch_transform=False), "b": SampleConsecutive(2, fields=("mask",))}
    options = dict(batch_size=4, num_workers=workers, seed=3)
    data = LMDBDataModule(prefix, "clevrtex_lmdb", draw, draw, **options)
    save = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1, save_on_train_epoch_end=False)
    settings = dict(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = Trainer(max_steps=steps, callbacks=[save], num_sanity_val_steps=1, limit_val_batches=1, **settings)
    journal = Journal()
    trainer.fit(journal, data, ckpt_path=checkpoint)
    return journal.seen


@pytest.fixture(scope="module", params=[0, 2], ids=["in process", "2 workers"])
def uncut(prefix, tmp_path_factory, request):
    """A run of 12 steps: workers, folder of its checkpoints, what it sees."""
    folder = tmp_path_factory.mktemp("uncut")
    seed_everything(1)
    return request.param, folder, fit(prefix, folder, request.param)


@pytest.mark.parametrize("step", [3, 5, 7])  # within the first epoch, at its end, within the second one
def test_a_resumed_training_sees_and_draws_what_an_uncut_one_does(prefix, tmp_path, uncut, step):
    workers, folder, seen = uncut
    assert len(seen) == 12
    assert len({drawn for _, batch, own in seen for row in [*batch, own] for drawn in row}) == 12 * (4 + 1) * 3
    seed_everything(step)
    assert fit(prefix, tmp_path, workers, folder / f"step={step}.ckpt") == seen[step:]


def test_data_neither_disturb_nor_follow_the_generators_outside(prefix):
    draw = {"a": Map(shaken, fields=("image",), batch_transform=False)}
    passes = []
    for seed in (1, 2):
        data = LMDBDataModule(prefix, "clevrtex_lmdb", draw, draw, batch_size=4, num_workers=0)
        seed_everything(seed)
        expected = [random.random(), np.random.rand(), torch.rand(()).item()]
        seed_everything(seed)
        passes.append(
            [batch["drawn"].tolist() for load in (data.train_dataloader, data.val_dataloader) for batch in load()]
        )
        assert [random.random(), np.random.rand(), torch.rand(()).item()] == expected
    assert passes[0] == passes[1]


def test_a_window_of_each_sample_keeps_the_number_of_batches(prefix):
    window = {"a": SampleConsecutive(5, fields=("mask",))}
    data = LMDBDataModule(prefix, "clevrtex_lmdb", window, window, batch_size=4, num_workers=0)
    for loader, count in ((data.train_dataloader(), 5), (data.val_dataloader(), 2)):
        batches = list(loader)
        assert len(loader) == len(batches) == count
        assert all(batch["mask"].shape[1] == 5 for batch in batches)


def test_what_may_drop_samples_does_not_train_on_several_ranks(prefix, monkeypatch):
    monkeypatch.setattr("ocl_msf.data.lmdb_datamodule._rank", lambda: (0, 2))
    data = LMDBDataModule(prefix, "clevrtex_lmdb", {"a": Filter(bright, ["image"])}, num_workers=0)
    with pytest.raises(ValueError, match="Filter may change the number of samples"):
        iter(data.train_dataloader())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_may_be_started_in_any_way(prefix, method):
    same = {"a": SimpleTransform({"image": np.asarray}, batch_transform=False)}
    alone, many = (LMDBDataModule(prefix, "clevrtex_lmdb", same, batch_size=4, num_workers=n) for n in (0, 1))
    expected = list(alone.train_dataloader())  # the file is open in this process, too
    loader = many.train_dataloader()
    loader.multiprocessing_context = method
    for batch, other in itertools.zip_longest(expected, loader):
        assert batch["__key__"] == other["__key__"] and torch.equal(batch["image"], other["image"])


DDP = """
import sys
import numpy as np
import torch
from ocl.transforms import SimpleTransform
from pytorch_lightning import LightningModule, Trainer
from ocl_msf.data import LMDBDataModule

class Journal(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def note(self, phase, batch):
        with open(f"{phase}-{self.current_epoch}-{self.global_rank}.txt", "a") as file:
            file.writelines(key + "\\n" for key in batch["__key__"])

    def training_step(self, batch, _):
        self.note("train", batch)
        return self.weight * batch["image"].float().mean()

    def validation_step(self, batch, _):
        self.note("val", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

same = {"a": SimpleTransform({"image": np.asarray}, batch_transform=False)}
data = LMDBDataModule(sys.argv[1], "clevrtex_lmdb", same, same, batch_size=1, num_workers=1)
options = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, num_sanity_val_steps=0, **options)
trainer.fit(Journal(), data)
"""


@pytest.mark.slow
def test_two_processes_share_every_epoch(prefix, run_program, tmp_path):
    """A real run of DDP over gloo: 23 samples to train, 11 for each rank, 7 to validate."""
    (tmp_path / "run.py").write_text(DDP)
    done = run_program("run", prefix, cwd=tmp_path, ranks=2)
    assert done.returncode == 0, done.stderr
    read = {path.stem: path.read_text().split() for path in tmp_path.glob("*-*.txt")}
    everything, epochs = {f"{i:06d}" for i in range(23)}, []
    for epoch in "01":
        ranks = [read[f"train-{epoch}-{rank}"] for rank in "01"]
        assert [len(keys) for keys in ranks] == [11, 11]
        epochs.append(sum(ranks, []))
        assert len(set(epochs[-1])) == 22 and set(epochs[-1]) < everything
        assert sorted(read[f"val-{epoch}-0"] + read[f"val-{epoch}-1"]) == [f"{i:06d}" for i in range(23, 30)]
    assert epochs[0] != epochs[1]


def stuck(image):
    threading.Event().wait()


def test_a_worker_that_gives_nothing_is_named_and_ended(prefix):
    transforms = {"a": SimpleTransform({"image": stuck}, False)}
    data = LMDBDataModule(prefix, "clevrtex_lmdb", transforms, batch_size=2, num_workers=1, worker_timeout=1)
    with pytest.raises(RuntimeError, match=r"Rank 0 got no batch from data worker 0 \(process \d+\) for 1 s"):
        next(iter(data.train_dataloader()))


def bright(image):
    return image.mean() > 110


def test_transforms_run_in_the_order_of_their_names_and_may_filter(prefix):
    double = SimpleTransform({"image": _double}, batch_transform=False)
    flip = SimpleTransform({"image": torch.Tensor.float}, batch_transform=True)
    chosen = {"1": Filter(bright, ["image"]), "2": double, "0": flip}
    data = LMDBDataModule(prefix, "clevrtex_lmdb", None, chosen, num_workers=0)
    same = {"a": SimpleTransform({"image": identity}, False)}
    plain = LMDBDataModule(prefix, "clevrtex_lmdb", None, same, num_workers=0)
    (images,) = [batch["image"] for batch in plain.val_dataloader()]
    kept = torch.stack([image for image in images if image.float().mean() > 110])
    assert 0 < len(kept) < len(images)
    (batch,) = data.val_dataloader()
    assert set(batch) == {"__key__", "image", "batch_size"} and batch["image"].dtype == torch.float32
    assert torch.equal(batch["image"], 2 * kept.float())
    with pytest.raises(TypeError):
        len(data.val_dataloader())


def _double(image):
    return image.astype(np.int32) * 2


def test_errors_say_what_to_do(prefix, tmp_path):
    with pytest.raises(ValueError, match="DATASET_PREFIX is not set"):
        LMDBDataModule(None, "clevrtex_lmdb")
    with pytest.raises(ValueError, match=r"convert DATASET RAW .* --name clevrtex_lmdb"):
        LMDBDataModule(str(tmp_path), "clevrtex_lmdb")
    with pytest.raises(ValueError, match=r"has no \.lmdb files"):
        LMDBDataModule(prefix, "clevrtex")
    with pytest.raises(ValueError, match="no test split, only train, val"):
        module(prefix).test_dataloader()
    depth = {"a": SimpleTransform({"depth": identity}, False)}
    missing = LMDBDataModule(prefix, "clevrtex_lmdb", None, depth, num_workers=0)
    with pytest.raises(KeyError, match="has no depth"):
        list(missing.val_dataloader())


def test_the_package_itself_imports_nothing_heavy():
    script = "import sys, ocl_msf.data; assert not {'torch', 'lmdb', 'numpy', 'ocl'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
